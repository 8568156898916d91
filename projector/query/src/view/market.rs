//! The market as a whole.

use gpubnb_events::{HourlyRate, MicroUsd, Millis, Timestamp};
use serde::{Deserialize, Serialize};

/// Figures of the whole market.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Figures {
    /// The number of machines on the market.
    pub machines: u32,
    /// The number of real GPUs in these machines. Simulated GPUs are not counted.
    pub gpus: u32,
    /// The number of jobs that wait for a machine.
    pub queued: u32,
    /// The number of jobs that are assigned to a machine or run on it.
    pub active: u32,
    /// The number of settled jobs.
    pub settled: u64,
    /// The cost of all settled jobs.
    pub cost: MicroUsd,
    /// The platform's share of that cost.
    pub fees: MicroUsd,
    /// The metered time of all settled jobs.
    pub metered: Millis,
    /// The lowest price of all machines that take jobs now; `None` if no machine takes jobs.
    pub cheapest: Option<HourlyRate>,
}

/// The machines of one model of GPU that took jobs at the end of an hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ModelHour {
    /// The hour, as the number of hours since 1970-01-01T00:00:00Z.
    pub hour: u32,
    /// The number of machines that took jobs.
    pub machines: u32,
    /// The number of these machines that could begin a job at once.
    pub free: u32,
    /// The lowest price; `None` without machines.
    pub lowest: Option<HourlyRate>,
    /// The median price; `None` without machines.
    pub median: Option<HourlyRate>,
}

impl ModelHour {
    /// The number of hours from 1970 to the hour of a time.
    pub fn number(at: Timestamp) -> u32 {
        u32::try_from(at.millis() / 3_600_000).unwrap_or(0)
    }
}

/// The name that stands for the model of machines without a GPU.
pub const NO_GPU: &str = "CPU only";

/// The history of one model of GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ModelHistory {
    /// The model, or `CPU only` for machines without a GPU.
    pub model: String,
    /// The hours in which something changed, oldest first. Between two of them, the earlier one stays true. The first
    /// may be earlier than asked for, because it was still true.
    pub hours: Vec<ModelHour>,
}

/// A model of GPU with its machines now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ModelSummary {
    /// The model, or `CPU only` for machines without a GPU.
    pub model: String,
    /// The machines since the hour of the last change.
    #[serde(flatten)]
    pub now: ModelHour,
}

/// The usual time and cost of a template's jobs: the medians of the newest 25 completed runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TypicalRun {
    /// The template's id.
    pub template: String,
    /// The number of completed runs, also of those before the newest 25.
    pub runs: u64,
    /// The median of the billed times.
    pub time: Millis,
    /// The median of the costs.
    pub cost: MicroUsd,
}

/// What became of the jobs and machines of the market on a day (UTC).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MarketDay {
    /// The day, as the number of days since 1970-01-01.
    pub day: u32,
    /// Submitted jobs.
    pub submitted: u32,
    /// Jobs that got their first machine.
    pub assigned: u32,
    /// The time that these jobs had waited, together.
    pub waited: Millis,
    /// Completed jobs.
    pub completed: u32,
    /// Jobs that failed by their own fault.
    pub failed: u32,
    /// Jobs that failed by another fault, for example because no machine was free in time.
    pub given_up: u32,
    /// Cancelled jobs.
    pub cancelled: u32,
    /// Settled jobs.
    pub settled: u32,
    /// The longest time between the end of a job and its bill.
    pub slowest_bill: Millis,
    /// Attempts that ended by a fault of the machine, after which the job was tried again.
    pub machine_faults: u32,
    /// Machines that fell silent.
    pub machines_lost: u32,
}
