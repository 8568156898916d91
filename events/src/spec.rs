//! What a job asks for and what a machine offers: the values inside events and commands.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{AccountId, CommandId, MachineId, Seq},
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

/// What to run.
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
    /// What it may use.
    pub resources: Resources,
    /// Whether it asks for network access (needs a machine that allows it).
    #[serde(default)]
    pub egress: bool,
    /// Names of its environment's variables. Their values are secrets, and stand in no event.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Files it is given, below `/input`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Input>,
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
    /// Room in `/output`.
    pub output: Mebibytes,
    /// Whole GPUs.
    #[serde(default)]
    pub gpus: u32,
    /// Least memory of each GPU.
    #[serde(default)]
    pub vram: Mebibytes,
}

/// Where a job may run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Placement {
    /// On this machine and no other.
    Machine {
        /// The machine.
        machine: MachineId,
        /// Most it may cost per hour: its owner may change the price before the job is assigned.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        price_cap: Option<HourlyRate>,
    },
    /// Wherever it is cheapest under these limits.
    Cheapest {
        /// What a machine must satisfy.
        #[serde(default)]
        requirements: Requirements,
    },
    /// Wherever one GPU (one core, for a job without a GPU) is fastest, by the machine's self-test.
    Fastest {
        /// What a machine must satisfy.
        #[serde(default)]
        requirements: Requirements,
    },
    /// Wherever an attempt is most likely to end without a fault of the machine, by its record.
    MostReliable {
        /// What a machine must satisfy.
        #[serde(default)]
        requirements: Requirements,
    },
}

impl Placement {
    /// What a machine must satisfy, where the market chooses.
    pub fn requirements(&self) -> Option<&Requirements> {
        match self {
            Self::Machine { .. } => None,
            Self::Cheapest { requirements } | Self::Fastest { requirements } | Self::MostReliable { requirements } => {
                Some(requirements)
            }
        }
    }

    /// Most a machine may cost per hour.
    pub fn price_cap(&self) -> Option<HourlyRate> {
        match self {
            Self::Machine { price_cap, .. } => *price_cap,
            _ => self.requirements()?.price_cap,
        }
    }
}

/// What a machine must satisfy beyond the job's resources.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Requirements {
    /// Most it may cost per hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_cap: Option<HourlyRate>,
    /// Part of the GPU's model name, in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_model: Option<String>,
    /// Region, exactly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Whether machines with simulated GPUs will do (for trying things out).
    #[serde(default)]
    pub allow_simulated: bool,
    /// Least share of its attempts that ended without a fault of the machine, percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reliability: Option<u32>,
    /// Whether every check of its self-test must have passed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub verified: bool,
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

/// Why a job runs where it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PlacementExplanation {
    /// Machines that satisfied everything.
    pub candidates: u32,
    /// Machines that did not, counted by the first reason.
    pub rejected: Vec<RejectCount>,
    /// How the winner was chosen, in words.
    pub chosen: String,
}

/// How many machines were not taken for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RejectCount {
    /// The reason.
    pub reason: Reject,
    /// How many machines.
    pub machines: u32,
}

/// Why a machine was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
pub enum Reject {
    /// Another machine was named.
    NotNamed,
    /// It is no longer listed.
    Delisted,
    /// The owner paused it, or it drains.
    Paused,
    /// Its owner uses it.
    Away,
    /// The account of its owner is suspended.
    OwnerSuspended,
    /// It missed heartbeats.
    Offline,
    /// This job failed there before, or was declined.
    Excluded,
    /// All its slots are taken.
    NoFreeSlot,
    /// Other jobs hold the GPUs, the memory or the disk that this one needs.
    Busy,
    /// Too few GPUs, or too little GPU memory.
    GpuTooSmall,
    /// Its GPUs are simulated and the job did not allow that.
    Simulated,
    /// Not the GPU model asked for.
    GpuModel,
    /// Too little memory, CPU or disk.
    TooSmall,
    /// Not in the region asked for.
    Region,
    /// Dearer than the cap.
    Price,
    /// Its record is below the floor, or it has none.
    Reliability,
    /// Not every check of its self-test passed.
    NotVerified,
    /// The job asks for network access and the owner does not allow it.
    NoEgress,
}

impl Reject {
    /// In words: "3 machines: …".
    pub fn words(self) -> &'static str {
        match self {
            Self::NotNamed => "not the machine you named",
            Self::Delisted => "no longer listed",
            Self::Paused => "paused by the owner",
            Self::Away => "in use by its owner",
            Self::OwnerSuspended => "its owner's account is suspended",
            Self::Offline => "offline",
            Self::Excluded => "already tried for this job",
            Self::NoFreeSlot => "no free slot",
            Self::Busy => "other jobs hold the GPUs, memory or disk it would need",
            Self::GpuTooSmall => "too few GPUs or too little GPU memory",
            Self::Simulated => "simulated GPUs only",
            Self::GpuModel => "another GPU model",
            Self::TooSmall => "too little CPU, memory or disk",
            Self::Region => "another region",
            Self::Price => "over the price cap",
            Self::Reliability => "not reliable enough, or without a record",
            Self::NotVerified => "not every check of its self-test passed",
            Self::NoEgress => "no network access for jobs",
        }
    }
}

/// What a machine has, as its worker measured it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Hardware {
    /// CPU model name.
    pub cpu_model: String,
    /// Cores given to jobs.
    pub cpu_cores: u32,
    /// Memory given to jobs.
    pub memory: Mebibytes,
    /// Disk room given to jobs.
    pub disk: Mebibytes,
    /// Its GPUs; empty for a CPU-only machine.
    #[serde(default)]
    pub gpus: Vec<Gpu>,
    /// NVIDIA driver version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// CUDA version of the driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuda: Option<String>,
    /// Whether the GPUs are simulated: they compute nothing.
    #[serde(default)]
    pub simulated: bool,
}

/// One GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Gpu {
    /// Vendor's id, `GPU-…`.
    pub uuid: String,
    /// Model name.
    pub model: String,
    /// Memory.
    pub memory: Mebibytes,
    /// CUDA compute capability, such as `9.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capability: Option<String>,
    /// Where it sits, `00000000:01:00.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci: Option<String>,
}

/// What the owner of a machine allows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OwnerPolicy {
    /// Whether the owner may take the machine back while a job runs.
    #[serde(default)]
    pub may_evict: bool,
    /// Whether jobs may use the network.
    #[serde(default)]
    pub egress: bool,
    /// It is spare once its GPUs were idle for so many minutes; `None`: it does not look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_minutes: Option<u32>,
    /// The hours of the day at which it is spare, by its own clock, such as `22:00-08:00`; `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hours: Option<String>,
}

impl OwnerPolicy {
    /// In words: when the machine is spare, and what happens to a job when it is not any more.
    pub fn words(&self) -> String {
        let hours = self.hours.as_ref().map(|hours| format!("spare at {hours}"));
        let idle = self.idle_minutes.map(|minutes| format!("spare when its GPUs were idle for {minutes} min"));
        let when: Vec<_> = hours.into_iter().chain(idle).collect();
        let ends =
            if self.may_evict { "may take it back while a job runs; that costs nothing" } else { "lets jobs finish" };
        if when.is_empty() { ends.to_owned() } else { format!("{}; {ends}", when.join(", ")) }
    }
}

/// A machine as it is offered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Offer {
    /// Name for people.
    pub name: String,
    /// Where it stands, for people and filters.
    pub region: String,
    /// What it has.
    pub hardware: Hardware,
    /// Price per hour and slot.
    pub price: HourlyRate,
    /// Jobs it runs at once.
    pub slots: u32,
    /// What the owner allows.
    #[serde(default)]
    pub policy: OwnerPolicy,
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

/// What a run used.
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
    /// What is billed.
    pub billed: Millis,
    /// `Started`.
    pub started: Seq,
    /// The event the broker's time ends with.
    pub ended: Seq,
}
