//! What operators are answered with: the platform's streams and models, work on them, and how it was.

use std::time::Duration;

use gpubnb_events::{AccountId, JobId, MicroUsd, Millis, ProjectorId, Seq, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Balance, Figures, JobState, ListedMachine, TrailEvent};

/// The streams and models of the platform, now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Platform {
    /// The projector that answers: models, rebuilds and verifications are its own.
    #[serde(default)]
    pub projector: Option<ProjectorId>,
    /// The streams.
    pub streams: Vec<StreamState>,
    /// The last sequence in MARKET.
    pub last: Seq,
    /// The read models.
    pub models: Vec<ModelLine>,
    /// Events that were folded in each of the last seconds, on average.
    pub per_second: u64,
    /// The verification that runs, or ran last.
    pub verification: Option<Verification>,
    /// What the log grows by, once a job was settled.
    #[serde(default)]
    pub growth: Option<Growth>,
}

/// What MARKET grows by. It is never trimmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Growth {
    /// Jobs that were settled.
    pub jobs: u64,
    /// Bytes for every thousand of them, with all that goes with them.
    pub per_thousand: u64,
    /// Bytes in a year at the pace so far.
    pub per_year: u64,
}

impl Growth {
    /// Of a log that has `bytes` after so many jobs and so much time.
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
    /// Its name.
    pub name: String,
    /// Messages in it.
    pub messages: u64,
    /// Bytes.
    pub bytes: u64,
    /// First sequence.
    pub first: Seq,
    /// Last sequence.
    pub last: Seq,
    /// Messages of the stream that it sources which are not in it yet; `None`: it sources none.
    #[serde(default)]
    pub behind: Option<u64>,
    /// Its consumers.
    pub consumers: u64,
    /// What it may grow to, bytes; `None`: there is no limit.
    pub most_bytes: Option<u64>,
    /// How long its messages are kept; `None`: for ever.
    pub most_age: Option<Millis>,
}

/// A read model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ModelLine {
    /// Its name.
    pub name: String,
    /// The last sequence it has taken in.
    pub checkpoint: Seq,
    /// Why it stopped, if it did.
    pub stopped: Option<String>,
    /// Its rebuild beside itself, if one runs or ran last.
    pub rebuild: Option<Rebuild>,
}

impl ModelLine {
    /// Events it has not taken in yet.
    pub fn lag(&self, last: impl std::borrow::Borrow<Seq>) -> u64 {
        last.borrow().0.saturating_sub(self.checkpoint.0)
    }
}

/// Work through the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Progress {
    /// Where it is.
    pub at: Seq,
    /// Where it ends.
    pub until: Seq,
    /// Events in a second.
    pub per_second: u64,
}

impl Progress {
    /// After so long, having begun after `from`.
    pub fn since(elapsed: Duration, from: Seq, at: Seq, until: Seq) -> Self {
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
        Self { at, until, per_second: at.0.saturating_sub(from.0).saturating_mul(1_000) / millis }
    }

    /// How much is done, percent.
    pub fn percent(&self) -> u64 {
        (self.at.0 * 100).checked_div(self.until.0).unwrap_or(100).min(100)
    }

    /// Seconds until it is done.
    pub fn seconds_left(&self) -> Option<u64> {
        self.until.0.saturating_sub(self.at.0).checked_div(self.per_second)
    }
}

/// A rebuild of a model beside the one that answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Rebuild {
    /// How far it is.
    pub progress: Progress,
    /// When it was swapped in.
    pub swapped_at: Option<Timestamp>,
    /// Why it was given up.
    pub failed: Option<String>,
}

/// A replay of the whole log, compared with the models that answer, with the invariants looked at in every event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Verification {
    /// When it began.
    pub began_at: Timestamp,
    /// How far it is.
    pub progress: Progress,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Why it could not end.
    pub failed: Option<String>,
    /// Rows that were compared, by model.
    pub models: Vec<ModelCheck>,
    /// Broken invariants, the first hundred.
    pub violations: Vec<Violation>,
    /// Signed tree heads that agree with the log.
    #[serde(default)]
    pub heads: u64,
    /// Messages that are no events of ours, the first hundred.
    pub quarantined: Vec<Seq>,
}

impl Verification {
    /// Whether it ended, and found nothing.
    pub fn clean(&self) -> bool {
        self.ended_at.is_some()
            && self.failed.is_none()
            && self.violations.is_empty()
            && self.models.iter().all(|m| m.differing.is_empty())
    }
}

/// The rows of a model, compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ModelCheck {
    /// Its name.
    pub name: String,
    /// Rows that were compared.
    pub rows: u64,
    /// Keys of rows that differ, the first hundred.
    pub differing: Vec<String>,
}

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Violation {
    /// The event at which it broke.
    pub seq: Seq,
    /// What is wrong.
    pub what: String,
}

/// Sums of the ledger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LedgerSums {
    /// Accounts with a balance.
    pub accounts: u64,
    /// What they may spend.
    pub available: MicroUsd,
    /// What is held for jobs.
    pub held: MicroUsd,
    /// What is on its way out.
    pub payable: MicroUsd,
    /// The platform's fees.
    pub fees: MicroUsd,
    /// The world outside: minus what is inside.
    pub external: MicroUsd,
}

impl LedgerSums {
    /// Everything together: zero, always.
    pub fn total(&self) -> MicroUsd {
        self.available + self.held + self.payable + self.fees + self.external
    }
}

/// What accounts have, and what everything comes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Accounts {
    /// Up to this event.
    pub at: Seq,
    /// Of all accounts, the platform and the world outside.
    pub sums: LedgerSums,
    /// Some of them, by id.
    pub rows: Vec<AccountLine>,
    /// Whether there are more after the last.
    pub more: bool,
}

/// One account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AccountLine {
    /// Which.
    pub account: AccountId,
    /// What it has.
    pub balance: Balance,
}

/// The market as it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MarketThen {
    /// After this event.
    pub seq: Seq,
    /// The event itself.
    pub event: Option<TrailEvent>,
    /// The figures.
    pub figures: Figures,
    /// The ledger.
    pub ledger: LedgerSums,
    /// The machines that were on the market, the first fifty.
    pub machines: Vec<ListedMachine>,
    /// How many there were.
    pub machine_count: u64,
}

/// The market at a point, or how far the way there is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Travel {
    /// It is being folded.
    Folding(Progress),
    /// There it is.
    There(Box<MarketThen>),
}

/// One job, machine or account as it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RowThen {
    /// After this event.
    pub seq: Seq,
    /// Its row; `None` where it was not there yet.
    #[schema(value_type = Object)]
    pub row: Option<serde_json::Value>,
    /// The events it was made of: the last two hundred.
    pub trail: Vec<TrailEvent>,
}

/// The fields of a row with their whole names, in order.
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

/// Work that has been in one state for too long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Stuck {
    /// The job.
    pub job: JobId,
    /// Its name.
    pub name: String,
    /// Where it is.
    pub state: JobState,
    /// Since when.
    pub since: Timestamp,
    /// What is likely wrong.
    pub cause: String,
    /// What to do.
    pub remedy: String,
}
