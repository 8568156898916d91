//! The market as a whole.

use gpubnb_events::{HourlyRate, MicroUsd, Millis};
use serde::{Deserialize, Serialize};

/// Figures of the whole market.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Figures {
    /// Machines on the market.
    pub machines: u32,
    /// Real GPUs in these machines; simulated GPUs are not counted.
    pub gpus: u32,
    /// Jobs that wait for a machine.
    pub queued: u32,
    /// Jobs that are assigned to a machine or run there.
    pub active: u32,
    /// Jobs that are settled.
    pub settled: u64,
    /// The cost of all settled jobs.
    pub cost: MicroUsd,
    /// The platform's share of that cost.
    pub fees: MicroUsd,
    /// The metered time of all settled jobs.
    pub metered: Millis,
    /// The lowest price of a machine that takes jobs now.
    pub cheapest: Option<HourlyRate>,
}
