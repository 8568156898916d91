//! The answers to operators: the platform's streams and models, work on the models, and the market as it was.

use std::time::Duration;

use gpubnb_events::{AccountId, JobId, MicroUsd, Millis, ProjectorId, Seq, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Balance, Figures, JobState, ListedMachine, TrailEvent};

/// The streams and read models of the platform, now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Platform {
    /// The projector that answers. Read models, rebuilds and verifications are those of this projector.
    #[serde(default)]
    pub projector: Option<ProjectorId>,
    /// The streams.
    pub streams: Vec<StreamState>,
    /// The last sequence in MARKET.
    pub last: Seq,
    /// The read models.
    pub models: Vec<ModelLine>,
    /// Events that were folded in a second, on average over the last ten seconds or so.
    pub per_second: u64,
    /// The verification that is running, or ran last.
    pub verification: Option<Verification>,
    /// How fast the log grows; known once a job was settled.
    #[serde(default)]
    pub growth: Option<Growth>,
}

/// How fast MARKET grows. MARKET is never trimmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Growth {
    /// Settled jobs.
    pub jobs: u64,
    /// Bytes for every thousand settled jobs, with the events of machines and accounts that came meanwhile.
    pub per_thousand: u64,
    /// Bytes in a year, if the market goes on at its pace so far.
    pub per_year: u64,
}

impl Growth {
    /// The growth of a log that has `bytes` after so many jobs and so much time.
    pub fn of(bytes: u64, jobs: u64, since: Millis) -> Option<Self> {
        const YEAR: u128 = 365 * 86_400_000;
        let per_thousand = bytes.saturating_mul(1_000).checked_div(jobs)?;
        let per_year = u128::from(bytes) * YEAR / u128::from(since.0.max(1));
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
    /// The first sequence.
    pub first: Seq,
    /// The last sequence.
    pub last: Seq,
    /// Messages that this stream has yet to copy from the stream that it sources; `None` where it sources none.
    #[serde(default)]
    pub behind: Option<u64>,
    /// The number of consumers.
    pub consumers: u64,
    /// The limit on the size, bytes; `None` without a limit.
    pub most_bytes: Option<u64>,
    /// How long messages are kept; `None` for ever.
    pub most_age: Option<Millis>,
}

/// A read model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ModelLine {
    /// The model's name.
    pub name: String,
    /// The last sequence that the model has folded.
    pub checkpoint: Seq,
    /// Why the model stopped, if it did.
    pub stopped: Option<String>,
    /// The rebuild of this model that is running, or ran last.
    pub rebuild: Option<Rebuild>,
}

impl ModelLine {
    /// Events that the model has yet to fold, where the log ends at `last`.
    pub fn lag(&self, last: impl std::borrow::Borrow<Seq>) -> u64 {
        last.borrow().0.saturating_sub(self.checkpoint.0)
    }
}

/// The progress of work through the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Progress {
    /// The sequence that is reached.
    pub at: Seq,
    /// The sequence at which the work ends.
    pub until: Seq,
    /// The pace, events in a second.
    pub per_second: u64,
}

impl Progress {
    /// The progress of work that began after the sequence `from` and has reached `at` in the time `elapsed`.
    pub fn since(elapsed: Duration, from: Seq, at: Seq, until: Seq) -> Self {
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
        Self { at, until, per_second: at.0.saturating_sub(from.0).saturating_mul(1_000) / millis }
    }

    /// The share that is done, percent.
    pub fn percent(&self) -> u64 {
        (self.at.0 * 100).checked_div(self.until.0).unwrap_or(100).min(100)
    }

    /// Seconds until the work is done, at its present pace.
    pub fn seconds_left(&self) -> Option<u64> {
        self.until.0.saturating_sub(self.at.0).checked_div(self.per_second)
    }
}

/// A rebuild of a model beside the one that answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Rebuild {
    /// The progress of the fold.
    pub progress: Progress,
    /// The time at which the rebuilt model began to answer.
    pub swapped_at: Option<Timestamp>,
    /// Why the rebuild was given up.
    pub failed: Option<String>,
}

/// A replay of the whole log. Its rows are compared with the models that answer, and the invariants are checked at
/// every event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Verification {
    /// The time at which the verification began.
    pub began_at: Timestamp,
    /// The progress through the log.
    pub progress: Progress,
    /// The time at which the verification ended.
    pub ended_at: Option<Timestamp>,
    /// Why the verification could not be finished.
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
    pub fn clean(&self) -> bool {
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

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Violation {
    /// The event at which it broke.
    pub seq: Seq,
    /// The problem, for people.
    pub what: String,
}

/// Sums of the ledger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LedgerSums {
    /// The number of accounts with a balance.
    pub accounts: u64,
    /// The amounts that accounts may spend.
    pub available: MicroUsd,
    /// The amounts that are held for jobs.
    pub held: MicroUsd,
    /// The amounts of payouts that are on their way.
    pub payable: MicroUsd,
    /// The platform's fees.
    pub fees: MicroUsd,
    /// The balance of the world outside: the other sums together, negated.
    pub external: MicroUsd,
}

impl LedgerSums {
    /// The sum of everything, which must be zero.
    pub fn total(&self) -> MicroUsd {
        self.available + self.held + self.payable + self.fees + self.external
    }
}

/// A page of accounts, and the sums of the whole ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Accounts {
    /// The ledger is that after the event with this sequence.
    pub at: Seq,
    /// The sums of all accounts, the platform and the world outside.
    pub sums: LedgerSums,
    /// The accounts of this page, by id.
    pub rows: Vec<AccountLine>,
    /// True if more accounts follow.
    pub more: bool,
}

/// One account and its money.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AccountLine {
    /// The account.
    pub account: AccountId,
    /// The account's money.
    pub balance: Balance,
}

/// The market as it was after an event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MarketThen {
    /// The sequence of the event.
    pub seq: Seq,
    /// The event itself.
    pub event: Option<TrailEvent>,
    /// The market's figures.
    pub figures: Figures,
    /// The sums of the ledger.
    pub ledger: LedgerSums,
    /// The first fifty machines on the market.
    pub machines: Vec<ListedMachine>,
    /// The number of machines on the market.
    pub machine_count: u64,
}

/// The market at a point in the log; or, while the market is still being folded, the progress.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Travel {
    /// The market is being folded: ask again.
    Folding(Progress),
    /// The market at that point.
    There(Box<MarketThen>),
}

/// One job, machine or account as it was after an event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RowThen {
    /// The sequence of the event.
    pub seq: Seq,
    /// The row; `None` where there was none yet.
    #[schema(value_type = Object)]
    pub row: Option<serde_json::Value>,
    /// The last two hundred events that made the row, without their bodies.
    pub trail: Vec<TrailEvent>,
}

/// The fields of a row in order, each with its path and its value: `("offer.hardware.cpu_cores", "8")`.
pub fn fields(row: Option<&serde_json::Value>) -> Vec<(String, String)> {
    fn walk(name: &str, value: &serde_json::Value, found: &mut Vec<(String, String)>) {
        use serde_json::Value::{Array, Null, Object, String};
        let below = |part: &str| if name.is_empty() { part.to_owned() } else { format!("{name}.{part}") };
        match value {
            Object(fields) => fields.iter().for_each(|(part, value)| walk(&below(part), value, found)),
            Array(items) => items.iter().enumerate().for_each(|(i, item)| walk(&below(&i.to_string()), item, found)),
            Null => {}
            String(text) => found.push((name.to_owned(), text.clone())),
            other => found.push((name.to_owned(), other.to_string())),
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
pub struct Stuck {
    /// The job.
    pub job: JobId,
    /// The job's name.
    pub name: String,
    /// The job's state.
    pub state: JobState,
    /// The time since which the job is in this state.
    pub since: Timestamp,
    /// The likely cause.
    pub cause: String,
    /// The remedy.
    pub remedy: String,
}
