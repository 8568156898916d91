//! What machines say of themselves every few seconds, and the watchdog's tick. Volatile: never in MARKET.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{JobId, Lease, MachineId},
    spec::Mebibytes,
    time::Timestamp,
};

/// Wire name of [`Heartbeat`].
pub const HEARTBEAT: &str = "Heartbeat.v1";

/// A machine is there, and this is how it fares.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Heartbeat {
    /// The machine.
    pub machine: MachineId,
    /// By its clock.
    pub occurred_at: Timestamp,
    /// Whether it would take a job now.
    pub state: WorkerState,
    /// Load of the whole machine's CPUs, percent.
    pub cpu_percent: f32,
    /// Its GPUs.
    #[serde(default)]
    pub gpus: Vec<GpuReading>,
    /// What it runs.
    #[serde(default)]
    pub leases: Vec<RunningLease>,
}

/// Whether a worker takes jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// It takes jobs while a slot is free.
    Ready,
    /// The owner paused it.
    Paused,
    /// It finishes what it has.
    Draining,
}

/// One attempt that a machine has in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RunningLease {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub lease: Lease,
    /// When it ended there, by the machine's clock, while the market has not taken its files and its report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
}

/// One reading of a GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct GpuReading {
    /// Which.
    pub uuid: String,
    /// Utilisation, percent.
    pub utilisation_percent: u32,
    /// Memory in use.
    pub memory_used: Mebibytes,
    /// Temperature, degrees Celsius.
    pub celsius: u32,
    /// Power, watts.
    pub watts: u32,
    /// Processes that compute or draw on it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub processes: u32,
    /// What is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<GpuTrouble>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// What can be wrong with a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GpuTrouble {
    /// It has fallen off the bus.
    Lost,
    /// It has to be reset.
    ResetRequired,
    /// Its memory has errors that could not be corrected.
    Ecc,
    /// The driver does not answer for it.
    Driver,
}

impl GpuTrouble {
    /// In words, with what to do.
    pub const fn description(self) -> &'static str {
        match self {
            Self::Lost => {
                "the GPU has fallen off the bus: look for Xid 79 in the kernel's log; check its power and seat, and restart the machine"
            }
            Self::ResetRequired => "the GPU has to be reset: nvidia-smi --gpu-reset",
            Self::Ecc => {
                "the GPU's memory has errors that could not be corrected: restart it, and replace it if they come back"
            }
            Self::Driver => {
                "the NVIDIA driver does not answer: it is being updated or was unloaded; restart the worker when it is back"
            }
        }
    }
}

/// A watchdog replica's own beat: silence is counted in ticks received back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tick {
    /// The replica.
    pub replica: String,
    /// Counts up.
    pub number: u64,
}
