//! The approved templates: jobs anyone may run, with a form made from their fields.

use crate::spec::{JobSpec, Mebibytes, Resources};
use serde::Serialize;

/// An approved job.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Template {
    /// Its id.
    pub id: &'static str,
    /// For people.
    pub title: &'static str,
    /// A sentence about the job.
    pub about: &'static str,
    /// The image it runs.
    pub image: &'static str,
    /// First arguments.
    #[schema(value_type = Vec<String>)]
    pub command: &'static [&'static str],
    /// Further arguments that a person may choose.
    #[schema(value_type = Vec<Field>)]
    pub fields: &'static [Field],
    /// The resources that it may use.
    pub resources: Resources,
    /// Wall-clock limit that suits it, seconds.
    pub seconds: u64,
    /// The image is pulled from a public registry, so the machine must reach one.
    pub pulled: bool,
}

/// One choice of a template: `--<name> <value>`.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Field {
    /// Name of the argument, without dashes.
    pub name: &'static str,
    /// For people.
    pub label: &'static str,
    /// The value where nothing is chosen.
    pub default: &'static str,
    /// Least value, where it is a number.
    pub least: Option<u32>,
    /// Most.
    pub most: Option<u32>,
}

const WORKLOADS: &str = "gpubnb/workloads:1";

const fn number(name: &'static str, label: &'static str, default: &'static str, least: u32, most: u32) -> Field {
    Field { name, label, default, least: Some(least), most: Some(most) }
}

const fn small(memory: u64, output: u64) -> Resources {
    Resources::new(1_000, Mebibytes(memory), Mebibytes(output))
}

const fn gpu(vram: u64) -> Resources {
    Resources::new(4_000, Mebibytes(16_384), Mebibytes(10_240)).with_gpus(1, Mebibytes(vram))
}

/// All templates, in the order of the form: the best first impression first.
pub const ALL: &[Template] = &[
    Template {
        id: "train",
        title: "Train a neural network",
        about: "Trains a small network on 1,797 real handwritten digits; leaves the model, its metrics and a plot.",
        image: WORKLOADS,
        command: &["train"],
        fields: &[
            number("epochs", "Epochs", "12", 1, 1_000),
            number("hidden", "Hidden units", "64", 4, 1_024),
            number("seed", "Seed", "7", 0, 1_000_000),
        ],
        resources: small(512, 64),
        seconds: 600,
        pulled: false,
    },
    Template {
        id: "render",
        title: "Render an image",
        about: "Traces the light through a small scene and leaves a picture.",
        image: WORKLOADS,
        command: &["render"],
        fields: &[
            number("width", "Width, pixels", "640", 16, 4_096),
            number("height", "Height, pixels", "360", 16, 4_096),
            number("samples", "Samples a pixel", "32", 1, 4_096),
        ],
        resources: small(512, 64),
        seconds: 900,
        pulled: false,
    },
    Template {
        id: "matmul",
        title: "Measure matrix multiplication",
        about: "Multiplies matrices for a while and says how fast.",
        image: WORKLOADS,
        command: &["matmul"],
        fields: &[number("size", "Matrix size", "512", 16, 4_096), number("seconds", "Seconds", "5", 1, 600)],
        resources: small(1_024, 16),
        seconds: 300,
        pulled: false,
    },
    Template {
        id: "count",
        title: "Count lines",
        about: "Prints numbered lines with a pause between them: to try logs and cancelling.",
        image: WORKLOADS,
        command: &["count"],
        fields: &[
            number("lines", "Lines", "100", 1, 1_000_000),
            number("interval-ms", "Pause, ms", "100", 0, 60_000),
            number("exit-code", "Exit code", "0", 0, 255),
        ],
        resources: small(64, 16),
        seconds: 600,
        pulled: false,
    },
    Template {
        id: "noop",
        title: "Do nothing",
        about: "Ends at once: to measure what the market itself costs.",
        image: WORKLOADS,
        command: &["noop"],
        fields: &[],
        resources: small(64, 16),
        seconds: 60,
        pulled: false,
    },
    Template {
        id: "pytorch",
        title: "PyTorch on a GPU",
        about: "Shows the GPU that PyTorch sees and multiplies matrices on it.",
        image: "pytorch/pytorch:2.9.1-cuda12.8-cudnn9-runtime",
        command: &[
            "python",
            "-c",
            "import torch,time; d='cuda'; a=torch.randn(4096,4096,device=d); print(torch.cuda.get_device_name()); \
             t=time.time(); [a@a for _ in range(100)]; torch.cuda.synchronize(); \
             print('GFLOP/s', round(100*2*4096**3/(time.time()-t)/1e9))",
        ],
        fields: &[],
        resources: gpu(8_192),
        seconds: 1_800,
        pulled: true,
    },
    Template {
        id: "cuda",
        title: "nvidia-smi",
        about: "Shows the GPU as the driver sees it, from NVIDIA's own CUDA image.",
        image: "nvidia/cuda:12.8.1-base-ubuntu24.04",
        command: &["nvidia-smi"],
        fields: &[],
        resources: gpu(1_024),
        seconds: 300,
        pulled: true,
    },
];

impl Template {
    /// The specification of a job of this template, with the template's own arguments and nothing chosen.
    pub fn spec(&self, name: &str) -> JobSpec {
        let command = self.command.iter().map(|argument| (*argument).to_owned()).collect();
        let spec = JobSpec::of_image(name, self.image, command, self.resources.clone());
        JobSpec { template: Some(self.id.to_owned()), ..spec }
    }
}

/// The template with this id.
pub fn find(id: &str) -> Option<&'static Template> {
    ALL.iter().find(|t| t.id == id)
}
