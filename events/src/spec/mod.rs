//! The specification of a job and the offer of a machine: the values inside events and commands.

mod machine;
mod placement;

use serde::{Deserialize, Serialize};

pub use self::{
    machine::{Gpu, Hardware, Offer, OwnerPolicy},
    placement::{Chosen, Placement, PlacementExplanation, Reject, RejectCount, Requirements, Strategy, Winner, Won},
};
use crate::{
    ids::{AccountId, CommandId, Seq},
    money::{HourlyRate, MicroUsd},
    time::{Millis, Seconds},
};

/// Mebibytes (1,048,576 bytes).
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(transparent)]
pub struct Mebibytes(pub u64);

impl Mebibytes {
    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0.saturating_mul(1 << 20)
    }
}

/// The specification of a job: the program and the room that it gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobSpec {
    /// A name for people.
    pub name: String,
    /// The approved template it was made from; `None` for a custom image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Image reference: a template's, or one pinned by digest.
    pub image: String,
    /// Arguments for the image's entry point.
    #[serde(default)]
    pub command: Vec<String>,
    /// The directory that the program starts in, an absolute path; `None`: `/output`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// The resources that the job may use.
    pub resources: Resources,
    /// The job asks for network access, and needs a machine that allows it.
    #[serde(default)]
    pub egress: bool,
    /// Names of its environment's variables. Their values are secrets, and stand in no event.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Files it is given, below `/input`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Input>,
}

impl JobSpec {
    /// The specification of a job of an image, with nothing chosen but its resources. Every specification is made from this
    /// one, so that a field that is added later needs a change only where it is set.
    pub fn of_image(name: &str, image: &str, command: Vec<String>, resources: Resources) -> Self {
        Self {
            name: name.to_owned(),
            template: None,
            image: image.to_owned(),
            command,
            workdir: None,
            resources,
            egress: false,
            env: Vec::new(),
            inputs: Vec::new(),
        }
    }
}

/// A file a job is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Input {
    /// The upload that holds it.
    pub input: CommandId,
    /// Path below `/input`, with `/` between its parts.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the content, in hex.
    pub sha256: String,
}

/// The limits a container runs under.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Resources {
    /// CPU time in thousandths of a core.
    pub cpu_millis: u32,
    /// Memory; there is no swap.
    pub memory: Mebibytes,
    /// Size of `/dev/shm`, which counts as memory; `None`: a quarter of the memory, at most 1 GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm: Option<Mebibytes>,
    /// Room in `/output`.
    pub output: Mebibytes,
    /// Whole GPUs.
    #[serde(default)]
    pub gpus: u32,
    /// Least memory of each GPU.
    #[serde(default)]
    pub vram: Mebibytes,
}

impl Resources {
    /// CPU in thousandths of a core, memory, and room for output; no GPU, and all else as usual.
    pub const fn new(cpu_millis: u32, memory: Mebibytes, output: Mebibytes) -> Self {
        Self { cpu_millis, memory, shm: None, output, gpus: 0, vram: Mebibytes(0) }
    }

    /// The same with GPUs, each with at least so much memory.
    #[must_use]
    pub const fn with_gpus(mut self, gpus: u32, vram: Mebibytes) -> Self {
        (self.gpus, self.vram) = (gpus, vram);
        self
    }
}

/// Bounds on a job's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Limits {
    /// Wall-clock time a run may take.
    pub time: Seconds,
    /// Most it may cost; held when it is submitted.
    pub budget: MicroUsd,
    /// How often it may start anew after a fault of the provider. 1 = at most once.
    pub max_attempts: u32,
    /// How long it may wait for a machine.
    pub queue: Seconds,
}

/// The price terms, locked when a job is assigned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Terms {
    /// Price per hour of metered time.
    pub price: HourlyRate,
    /// The platform's share of the cost, in ten-thousandths.
    pub fee_basis_points: u32,
    /// The account that earns.
    pub provider: AccountId,
}

/// One file a job left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Artifact {
    /// Path below `/output`, with `/` between its parts.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the content, in hex.
    pub sha256: String,
}

/// The measured use of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Usage {
    /// Run time by the worker's monotonic clock.
    pub run: Millis,
}

/// How the metered time came about. The smallest of the four is billed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Metering {
    /// The broker's time from `Started` to the outcome (or to the request to cancel).
    pub broker: Millis,
    /// The worker's monotonic run time, where it reported one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<Millis>,
    /// The job's time limit.
    pub limit: Millis,
    /// How long the budget lasts at the price; `None` if the price is zero.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Millis>,
    /// The time that is billed.
    pub billed: Millis,
    /// `Started`.
    pub started: Seq,
    /// The event the broker's time ends with.
    pub ended: Seq,
}
