//! Money: balances, statements, sums by day, and receipts.

use gpubnb_events::{BatchId, JobId, MicroUsd, Millis, Seq, Timestamp, event::Settled, spec::Terms};
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
    /// The batch that the event is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<BatchId>,
    /// The change of the available amount.
    pub available: MicroUsd,
    /// The change of the held amount.
    pub held: MicroUsd,
    /// The available amount after the event.
    pub balance: MicroUsd,
}

/// The balance of an account.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Balance {
    /// The amount that the account may spend.
    pub available: MicroUsd,
    /// The amount that is held for unsettled jobs.
    pub held: MicroUsd,
    /// The amount of payouts that are requested and not paid yet.
    pub payable: MicroUsd,
    /// The cost of all settled jobs of the account.
    pub spent: MicroUsd,
    /// The earnings of all machines of the account.
    pub earned: MicroUsd,
    /// True while an operator has suspended the account.
    #[serde(default)]
    pub suspended: bool,
}

/// The sums of the settlements of one day (UTC).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Day {
    /// The day, as the number of days since 1970-01-01.
    pub day: u32,
    /// The cost of the settled jobs.
    pub spent: MicroUsd,
    /// The earnings of the machines from the settled jobs.
    pub earned: MicroUsd,
    /// The metered time of the settled jobs.
    pub metered: Millis,
    /// The number of settled jobs.
    pub jobs: u32,
}

impl Day {
    /// The number of days from 1970-01-01 to the day (UTC) of a time.
    pub fn number(at: Timestamp) -> u32 {
        u32::try_from(at.millis() / 86_400_000).unwrap_or(0)
    }
}

/// The receipt of a settled job: the event `Settled`, its sequence, its time, and the price terms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Receipt {
    /// The sequence of `Settled`.
    pub seq: Seq,
    /// The time of `Settled`.
    pub at: Timestamp,
    /// The price terms of the billed attempt, from `JobAssigned`; `None` if no attempt was billed.
    pub terms: Option<Terms>,
    /// The event `Settled`.
    #[serde(flatten)]
    pub settled: Settled,
}
