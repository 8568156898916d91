//! The market as a whole.

use gpubnb_events::{HourlyRate, MicroUsd, Millis};
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
