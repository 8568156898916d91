//! Money: balances, statements, days and receipts.

use gpubnb_events::{JobId, MicroUsd, Millis, Seq, Timestamp, event::Settled, spec::Terms};
use serde::{Deserialize, Serialize};

/// One line of an account's statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct StatementLine {
    /// The sequence of the event.
    pub seq: Seq,
    /// The time of the event.
    pub at: Timestamp,
    /// The event's name.
    pub event: String,
    /// The job that the event is about.
    pub job: Option<JobId>,
    /// The change of the available amount.
    pub available: MicroUsd,
    /// The change of the held amount.
    pub held: MicroUsd,
    /// The available amount after the event.
    pub balance: MicroUsd,
}

/// The money of an account.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Balance {
    /// The amount that the account may spend.
    pub available: MicroUsd,
    /// The amount that is held for unsettled jobs.
    pub held: MicroUsd,
    /// The amount of the payouts that are on their way.
    pub payable: MicroUsd,
    /// The cost of all the account's jobs.
    pub spent: MicroUsd,
    /// The earnings of all the account's machines.
    pub earned: MicroUsd,
}

/// The settlements of one day (UTC).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Day {
    /// Days since 1970.
    pub day: u32,
    /// The cost of jobs.
    pub spent: MicroUsd,
    /// The earnings of machines.
    pub earned: MicroUsd,
    /// The metered time of the settled jobs.
    pub metered: Millis,
    /// The number of settled jobs.
    pub jobs: u32,
}

impl Day {
    /// The number of the day that a moment belongs to.
    pub fn of(at: Timestamp) -> u32 {
        u32::try_from(at.millis() / 86_400_000).unwrap_or(0)
    }
}

/// A job's bill: the event `Settled`, its place in the log, and the price.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Receipt {
    /// The sequence of `Settled`.
    pub seq: Seq,
    /// The time of `Settled`.
    pub at: Timestamp,
    /// The price terms of the billed attempt, from `JobAssigned`.
    pub terms: Option<Terms>,
    /// The event.
    #[serde(flatten)]
    pub settled: Settled,
}
