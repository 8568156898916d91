//! Heartbeats of machines and ticks of the watchdog. Both are volatile and never in MARKET.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{JobId, Lease, MachineId},
    spec::Mebibytes,
    time::Timestamp,
};

/// Wire name of [`Heartbeat`].
pub const HEARTBEAT: &str = "Heartbeat.v1";

/// The state of a machine, which it sends every few seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Heartbeat {
    /// The machine.
    pub machine: MachineId,
    /// When it was sent, by the machine's clock.
    pub occurred_at: Timestamp,
    /// The state of the worker.
    pub state: WorkerState,
    /// Load of the whole machine's CPUs, percent.
    pub cpu_percent: f32,
    /// A reading of each GPU.
    #[serde(default)]
    pub gpus: Vec<GpuReading>,
    /// The attempts that the machine has.
    #[serde(default)]
    pub leases: Vec<RunningLease>,
}

/// The state of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// The worker takes jobs while a slot is free.
    Ready,
    /// The owner paused it.
    Paused,
    /// The worker finishes its jobs and takes no new ones.
    Draining,
}

/// An attempt that a machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RunningLease {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub lease: Lease,
    /// When the attempt ended on the machine, by its clock, if the report of that is not delivered yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
}

/// One reading of a GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct GpuReading {
    /// The GPU.
    pub uuid: String,
    /// Utilisation, percent.
    pub utilisation_percent: u32,
    /// Memory in use.
    pub memory_used: Mebibytes,
    /// Temperature, degrees Celsius.
    pub celsius: u32,
    /// Power, watts.
    pub watts: u32,
    /// Processes that compute or draw on the GPU.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub processes: u32,
    /// The trouble with the GPU, if there is any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<GpuTrouble>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// A trouble with a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GpuTrouble {
    /// The GPU has fallen off the bus.
    Lost,
    /// The GPU has to be reset.
    ResetRequired,
    /// The GPU's memory has errors that could not be corrected.
    Ecc,
    /// The driver does not answer.
    Driver,
}

impl GpuTrouble {
    /// The trouble in words, and what to do about it.
    pub const fn description(self) -> &'static str {
        match self {
            Self::Lost => {
                "the GPU has fallen off the bus: look for Xid 79 in the kernel's log; check its power and seat, and \
                 restart the machine"
            }
            Self::ResetRequired => "the GPU has to be reset: nvidia-smi --gpu-reset",
            Self::Ecc => {
                "the GPU's memory has errors that could not be corrected: restart it, and replace it if they come back"
            }
            Self::Driver => {
                "the NVIDIA driver does not answer: it is being updated or was unloaded; restart the worker when it is \
                 back"
            }
        }
    }
}

/// The beat of a watchdog. A watchdog counts the silence of machines in its own ticks, as they come back from the
/// broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tick {
    /// The replica.
    pub replica: String,
    /// The number of the tick.
    pub number: u64,
}
