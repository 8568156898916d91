//! The templates: approved jobs that every consumer may run. The web form is made from a template's fields.

use crate::spec::{JobSpec, Mebibytes, Resources};
use serde::Serialize;

/// An approved job.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Template {
    /// The id, in requests and events.
    pub id: &'static str,
    /// The title for people.
    pub title: &'static str,
    /// A sentence about the job.
    pub about: &'static str,
    /// The container image.
    pub image: &'static str,
    /// The arguments that every job of this template has. The arguments of the fields follow.
    #[schema(value_type = Vec<String>)]
    pub command: &'static [&'static str],
    /// The arguments that a person may choose.
    #[schema(value_type = Vec<Field>)]
    pub fields: &'static [Field],
    /// The resources, if the request names none.
    pub resources: Resources,
    /// The time limit in seconds, if the request names none.
    pub seconds: u64,
    /// True if the machine pulls the image from a public registry.
    pub pulled: bool,
}

/// An argument that a person may choose: `--<name> <value>`.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Field {
    /// Name of the argument, without dashes.
    pub name: &'static str,
    /// The label in the form.
    pub label: &'static str,
    /// The value if the request has none.
    pub default: &'static str,
    /// Least value; `None`: 0.
    pub least: Option<u32>,
    /// Greatest value; `None`: no limit.
    pub most: Option<u32>,
}

const WORKLOADS: &str = "gpubnb/workloads:1";

const fn number(name: &'static str, label: &'static str, default: &'static str, least: u32, most: u32) -> Field {
    Field { name, label, default, least: Some(least), most: Some(most) }
}

/// One core, with `memory` and `output` in MiB.
const fn small(memory: u64, output: u64) -> Resources {
    Resources::new(1_000, Mebibytes(memory), Mebibytes(output))
}

/// Four cores, 16 GiB of memory, and one GPU with at least `vram` MiB of memory.
const fn gpu(vram: u64) -> Resources {
    Resources::new(4_000, Mebibytes(16_384), Mebibytes(10_240)).with_gpus(1, Mebibytes(vram))
}

/// All templates, in the order of the form. A new user's first choice comes first.
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
    /// The specification of a job of this template, without the arguments of the fields.
    pub fn spec(&self, name: &str) -> JobSpec {
        let command = self.command.iter().map(|argument| (*argument).to_owned()).collect();
        let spec = JobSpec::for_image(name, self.image, command, self.resources.clone());
        JobSpec { template: Some(self.id.to_owned()), ..spec }
    }
}

/// The template with this id.
pub fn find(id: &str) -> Option<&'static Template> {
    ALL.iter().find(|t| t.id == id)
}
