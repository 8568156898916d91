//! The answers for operators: the platform's streams and read models, the work on the models (rebuild and
//! verification), and the market at an earlier point in the log.

use std::time::Duration;

use gpubnb_events::{AccountId, JobId, MicroUsd, Millis, ProjectorId, Seq, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Balance, Figures, JobState, ListedMachine, TrailEvent};

/// The current state of the platform's streams and read models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Platform {
    /// The projector that answers. The read models, rebuilds and verifications below are its own. `None` if the
    /// projector has an old version without an id.
    #[serde(default)]
    pub projector: Option<ProjectorId>,
    /// The streams.
    pub streams: Vec<StreamState>,
    /// The last sequence in MARKET.
    pub last: Seq,
    /// The read models.
    pub models: Vec<ModelStatus>,
    /// The number of events folded per second, as a mean of about the last ten seconds.
    pub per_second: u64,
    /// The running verification, or the last one.
    pub verification: Option<Verification>,
    /// The growth of MARKET; `None` if it is unknown, for example before the first job is settled.
    #[serde(default)]
    pub growth: Option<Growth>,
}

/// The growth of the stream MARKET. MARKET only grows, because no event is ever deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Growth {
    /// The number of settled jobs.
    pub jobs: u64,
    /// Bytes of MARKET for each thousand settled jobs. All events count, also the events of machines and accounts.
    pub per_thousand: u64,
    /// Bytes that MARKET grows in a year at its mean rate since its first event.
    pub per_year: u64,
}

impl Growth {
    /// The growth of a log that has `bytes` after `jobs` settled jobs in the time `elapsed`. `None` without settled
    /// jobs.
    pub fn estimate(bytes: u64, jobs: u64, elapsed: Millis) -> Option<Self> {
        const YEAR: u128 = 365 * 86_400_000;
        let per_thousand = bytes.saturating_mul(1_000).checked_div(jobs)?;
        let per_year = u128::from(bytes) * YEAR / u128::from(elapsed.0.max(1));
        Some(Self { jobs, per_thousand, per_year: u64::try_from(per_year).unwrap_or(u64::MAX) })
    }
}

/// A stream of the broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct StreamState {
    /// The stream's name.
    pub name: String,
    /// The number of messages.
    pub messages: u64,
    /// The size of the messages, bytes.
    pub bytes: u64,
    /// The sequence of the first message.
    pub first: Seq,
    /// The last sequence.
    pub last: Seq,
    /// The number of messages that this stream must still copy from its source stream; `None` without a source stream.
    #[serde(default)]
    pub behind: Option<u64>,
    /// The number of consumers.
    pub consumers: u64,
    /// The limit on the size, bytes; `None` without a limit.
    pub max_bytes: Option<u64>,
    /// The maximum age of a message, after which the broker deletes it; `None` without a limit.
    pub max_age: Option<Millis>,
}

/// A read model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = ModelLine)]
pub struct ModelStatus {
    /// The model's name.
    pub name: String,
    /// The last sequence that the model has folded.
    pub checkpoint: Seq,
    /// The reason why the model stopped; `None` while the model runs.
    pub stopped: Option<String>,
    /// The running rebuild of this model, or the last one.
    pub rebuild: Option<Rebuild>,
}

impl ModelStatus {
    /// The number of events that the model must still fold, if the log ends at the sequence `last`.
    pub fn lag(&self, last: impl std::borrow::Borrow<Seq>) -> u64 {
        last.borrow().0.saturating_sub(self.checkpoint.0)
    }
}

/// The progress of work that reads the log in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = LogProgress)]
pub struct Progress {
    /// The last sequence that the work has processed.
    pub at: Seq,
    /// The sequence at which the work ends.
    pub until: Seq,
    /// The speed, events per second.
    pub per_second: u64,
}

impl Progress {
    /// The progress of work that began after the sequence `from`, ends at `until`, and has processed the events up to
    /// `at` in the time `elapsed`.
    pub fn since(elapsed: Duration, from: Seq, at: Seq, until: Seq) -> Self {
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
        Self { at, until, per_second: at.0.saturating_sub(from.0).saturating_mul(1_000) / millis }
    }

    /// The finished share of the work, percent.
    pub fn percent(&self) -> u64 {
        (self.at.0 * 100).checked_div(self.until.0).unwrap_or(100).min(100)
    }

    /// Seconds until the work is done, at its current speed; `None` if the speed is zero.
    pub fn seconds_left(&self) -> Option<u64> {
        self.until.0.saturating_sub(self.at.0).checked_div(self.per_second)
    }
}

/// A rebuild of a model from the log. The old rows answer until the rebuild is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Rebuild {
    /// The progress of the fold.
    pub progress: Progress,
    /// The time at which the new rows replaced the old rows; `None` until then.
    pub swapped_at: Option<Timestamp>,
    /// The error that ended the rebuild; `None` without an error.
    pub failed: Option<String>,
}

/// A verification folds the whole log again, compares the new rows with the rows of the models that answer, and checks
/// the invariants after every event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Verification {
    /// The time at which the verification began.
    pub began_at: Timestamp,
    /// The progress through the log.
    pub progress: Progress,
    /// The time at which the verification ended; `None` while it runs.
    pub ended_at: Option<Timestamp>,
    /// The error that ended the verification; `None` without an error.
    pub failed: Option<String>,
    /// The comparison of each model.
    pub models: Vec<ModelCheck>,
    /// The first hundred broken invariants.
    pub violations: Vec<Violation>,
    /// The number of signed tree heads that agree with the log.
    #[serde(default)]
    pub heads: u64,
    /// The first hundred quarantined messages.
    pub quarantined: Vec<Seq>,
}

impl Verification {
    /// True if the verification ended and found no difference and no broken invariant.
    pub fn is_clean(&self) -> bool {
        self.ended_at.is_some()
            && self.failed.is_none()
            && self.violations.is_empty()
            && self.models.iter().all(|m| m.differing.is_empty())
    }
}

/// The comparison of a model's rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ModelCheck {
    /// The model's name.
    pub name: String,
    /// The number of rows that were compared.
    pub rows: u64,
    /// The keys of the first hundred rows that differ.
    pub differing: Vec<String>,
}

/// A broken invariant: a rule that must be true after every event, for example that all postings sum to zero.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Violation {
    /// The sequence of the event that broke the invariant.
    pub seq: Seq,
    /// A description of the problem.
    pub what: String,
}

/// Sums of the ledger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LedgerSums {
    /// The number of accounts with a balance.
    pub accounts: u64,
    /// The sum of the amounts that accounts may spend.
    pub available: MicroUsd,
    /// The sum of the amounts that are held for jobs.
    pub held: MicroUsd,
    /// The sum of the payouts that are requested and not paid yet.
    pub payable: MicroUsd,
    /// The platform's fees.
    pub fees: MicroUsd,
    /// The balance of the outside world: minus the sum of the four amounts above.
    pub external: MicroUsd,
}

impl LedgerSums {
    /// The sum of all five amounts. It must be zero.
    pub fn total(&self) -> MicroUsd {
        self.available + self.held + self.payable + self.fees + self.external
    }
}

/// A page of accounts, and the sums of the whole ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Accounts {
    /// The sequence of the last event that the sums include.
    pub at: Seq,
    /// The sums of all accounts, the platform and the outside world.
    pub sums: LedgerSums,
    /// The accounts of this page, in the order of their ids.
    pub rows: Vec<AccountBalance>,
    /// True if more accounts follow.
    pub more: bool,
}

/// One account and its balance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = AccountLine)]
pub struct AccountBalance {
    /// The account.
    pub account: AccountId,
    /// The account's balance.
    pub balance: Balance,
}

/// The market right after an event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = MarketThen)]
pub struct PastMarket {
    /// The sequence of the event.
    pub seq: Seq,
    /// The event; `None` if the message with this sequence is no valid event.
    pub event: Option<TrailEvent>,
    /// The market's figures.
    pub figures: Figures,
    /// The sums of the ledger.
    pub ledger: LedgerSums,
    /// The first fifty machines on the market, in the order of their ids.
    pub machines: Vec<ListedMachine>,
    /// The number of machines on the market.
    pub machine_count: u64,
}

/// The answer to a query for the market at an earlier point in the log. To answer, the projector folds the log up to
/// this point, which can take minutes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = Travel)]
pub enum TimeTravel {
    /// The fold is not done yet: send the query again.
    Folding(Progress),
    /// The market at that point.
    There(Box<PastMarket>),
}

/// One job, machine or account right after an event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = RowThen)]
pub struct PastRow {
    /// The sequence of the event.
    pub seq: Seq,
    /// The view of the job, machine or account, as JSON; `None` if it did not exist yet.
    #[schema(value_type = Object)]
    pub row: Option<serde_json::Value>,
    /// The last two hundred events of the trail up to this point, without their bodies.
    pub trail: Vec<TrailEvent>,
}

/// The fields of a JSON value in order, each with its path and its value: `("offer.hardware.cpu_cores", "8")`.
pub fn fields(row: Option<&serde_json::Value>) -> Vec<(String, String)> {
    fn walk(path: &str, value: &serde_json::Value, found: &mut Vec<(String, String)>) {
        use serde_json::Value::{Array, Null, Object, String};
        let child = |part: &str| if path.is_empty() { part.to_owned() } else { format!("{path}.{part}") };
        match value {
            Object(fields) => fields.iter().for_each(|(part, value)| walk(&child(part), value, found)),
            Array(items) => items.iter().enumerate().for_each(|(i, item)| walk(&child(&i.to_string()), item, found)),
            Null => {}
            String(text) => found.push((path.to_owned(), text.clone())),
            other => found.push((path.to_owned(), other.to_string())),
        }
    }
    let mut found = Vec::new();
    if let Some(row) = row {
        walk("", row, &mut found);
    }
    found
}

/// A job that has been in one state for too long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Stuck)]
pub struct StuckJob {
    /// The job.
    pub job: JobId,
    /// The job's name.
    pub name: String,
    /// The job's state.
    pub state: JobState,
    /// The time at which the job entered this state.
    pub since: Timestamp,
    /// The likely cause.
    pub cause: String,
    /// The advice to the operator.
    pub remedy: String,
}
