//! Heartbeats of machines, and ticks of the watchdog (the process that notices silent machines). Both are in the stream
//! TELEMETRY, which the broker keeps in memory, and never in MARKET.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{JobId, Lease, MachineId},
    spec::Mebibytes,
    time::Timestamp,
};

/// Wire name of [`Heartbeat`].
pub const HEARTBEAT: &str = "Heartbeat.v1";

/// The state of a machine, which the machine sends every few seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Heartbeat {
    /// The machine.
    pub machine: MachineId,
    /// The time at which the heartbeat was sent, by the machine's clock.
    pub occurred_at: Timestamp,
    /// The state of the worker.
    pub state: WorkerState,
    /// Load of the whole machine's CPUs, percent.
    pub cpu_percent: f32,
    /// One reading per GPU.
    #[serde(default)]
    pub gpus: Vec<GpuReading>,
    /// The attempts that the machine works on.
    #[serde(default)]
    pub leases: Vec<RunningLease>,
}

/// The state of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// The worker takes jobs while a slot is free.
    Ready,
    /// The owner paused the worker.
    Paused,
    /// The worker finishes its jobs and takes no new ones.
    Draining,
}

/// An attempt that a machine works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RunningLease {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub lease: Lease,
    /// The time at which the attempt ended, by the machine's clock, if the market has not received the report yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
}

/// One reading of a GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct GpuReading {
    /// The GPU's id from the driver, `GPU-…`.
    pub uuid: String,
    /// Utilisation, percent.
    pub utilisation_percent: u32,
    /// Memory in use.
    pub memory_used: Mebibytes,
    /// Temperature, degrees Celsius.
    pub celsius: u32,
    /// Power, watts.
    pub watts: u32,
    /// Number of processes that use the GPU.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub processes: u32,
    /// The defect of the GPU; `None` for a working GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<GpuTrouble>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// A defect of a GPU or of its driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GpuTrouble {
    /// The GPU has fallen off the PCI bus.
    Lost,
    /// The GPU has to be reset.
    ResetRequired,
    /// The GPU's memory has errors that could not be corrected.
    Ecc,
    /// The driver does not answer.
    Driver,
}

impl GpuTrouble {
    /// The defect and the remedy, for people.
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

/// A message that a watchdog sends regularly, and receives back from the broker. The watchdog measures the silence of
/// machines in received ticks. In an outage of the broker no ticks arrive, so no machine counts as silent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tick {
    /// The replica of the services that sends the tick.
    pub replica: String,
    /// The number of the tick, which grows by 1.
    pub number: u64,
}
