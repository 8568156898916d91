//! The requests: what may be asked of a projector, and how much of it at once. Each is the body of one `query.<name>`.

use gpubnb_events::{AccountId, Aggregate, JobId, MachineId, Seq, Timestamp};
use serde::{Deserialize, Serialize};

use crate::view::JobState;

/// Machines in one answer: each takes some 12 KB at most.
pub const MACHINES_AT_ONCE: usize = 64;

/// A query and the sequence it must have seen.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ask<T> {
    /// The sequence that the projector must have folded before it answers.
    pub min_seq: Seq,
    /// The request.
    pub body: T,
}

/// Which jobs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobsQuery {
    /// Of this account.
    pub account: Option<AccountId>,
    /// On this machine (its owner's view: without what others run).
    pub machine: Option<MachineId>,
    /// In this state.
    pub state: Option<JobState>,
    /// With this in the name, image or id.
    pub text: Option<String>,
    /// From a former page.
    pub cursor: Option<String>,
    /// At most this many; 100 at the most.
    pub limit: Option<u32>,
}

/// Whose trail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrailOf {
    /// A job's.
    Job(JobId),
    /// A machine's.
    Machine(MachineId),
    /// An account's.
    Account(AccountId),
}

impl From<TrailOf> for Aggregate {
    fn from(of: TrailOf) -> Self {
        match of {
            TrailOf::Job(id) => Self::Job(id),
            TrailOf::Machine(id) => Self::Machine(id),
            TrailOf::Account(id) => Self::Account(id),
        }
    }
}

/// Part of a trail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrailQuery {
    /// Whose.
    pub of: TrailOf,
    /// How many events to skip, from the first; from the last if `from_end`.
    pub skip: u32,
    /// At most this many; 200 at the most.
    pub limit: u32,
    /// The newest are wanted; they come oldest first all the same.
    #[serde(default)]
    pub from_end: bool,
}

/// Part of a statement, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatementQuery {
    /// Whose.
    pub account: AccountId,
    /// Lines before this one.
    pub before: Option<Seq>,
    /// At most this many; 500 at the most.
    pub limit: u32,
}

/// Machines of an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachinesOfQuery {
    /// The owner.
    pub owner: AccountId,
    /// Machines after this one, by id; from the first where none is named.
    pub after: Option<MachineId>,
}

/// Minutes of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadingsQuery {
    /// The machine.
    pub machine: MachineId,
    /// At most this many minutes, the last ones.
    pub minutes: u32,
}

/// Whose days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DaysOf {
    /// An account's.
    Account(AccountId),
    /// A machine's.
    Machine(MachineId),
}

/// Days of an account or machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaysQuery {
    /// Whose days.
    pub of: DaysOf,
    /// At most this many days, the newest first.
    pub most: u32,
}

/// How far each model is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lag {
    /// The last sequence in MARKET.
    pub last: Seq,
    /// What every running model has taken in.
    pub applied: Seq,
    /// Models that stopped, and why.
    pub stopped: Vec<(String, String)>,
}

/// Which events of the whole log, newest first. For operators.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsQuery {
    /// Events before this one; the newest if not given.
    pub before: Option<Seq>,
    /// `account`, `machine` or `job`.
    pub kind: Option<String>,
    /// The event's name.
    pub event: Option<String>,
    /// Of this job, machine or account.
    pub of: Option<TrailOf>,
    /// At most this many; 200 at the most.
    pub limit: u32,
}

/// A point in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Point {
    /// After this event.
    Seq(Seq),
    /// After the last event of this time or before.
    Time(Timestamp),
}

impl std::str::FromStr for Point {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let time = || text.parse().map(Self::Time);
        text.parse()
            .map(|seq| Self::Seq(Seq(seq)))
            .or_else(|_| time())
            .map_err(|_| "write a sequence, or a time such as 2026-01-31T12:00:00Z".to_owned())
    }
}

/// How far one model is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ModelState {
    /// Its name.
    pub name: String,
    /// The last sequence it has taken in.
    pub checkpoint: Seq,
    /// Why it stopped, if it did.
    pub stopped: Option<String>,
}
