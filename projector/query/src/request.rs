//! The requests to a projector, and the limits on each answer. Each request is the body of one query, `query.<name>`.

use gpubnb_events::{AccountId, Aggregate, JobId, MachineId, Seq, Timestamp};
use serde::{Deserialize, Serialize};

use crate::view::JobState;

/// Most machines in one answer. A machine takes 12 KB at most, and a message of the broker holds a megabyte.
pub const MACHINES_AT_ONCE: usize = 64;

/// A request, and the sequence that the answer must have seen.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ask<T> {
    /// The sequence that the projector must have folded before it answers.
    pub min_seq: Seq,
    /// The request.
    pub body: T,
}

/// Asks for jobs, newest first. Each field that is given narrows the list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobsQuery {
    /// The jobs of this account.
    pub account: Option<AccountId>,
    /// The jobs of this machine. Even the machine's owner gets only the jobs that the owner submitted.
    pub machine: Option<MachineId>,
    /// The jobs in this state.
    pub state: Option<JobState>,
    /// The jobs with this text in their name, image or id.
    pub text: Option<String>,
    /// `next` of the page before.
    pub cursor: Option<String>,
    /// The number of jobs in the answer, at most 100.
    pub limit: Option<u32>,
}

/// The thing whose trail is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrailOf {
    /// A job.
    Job(JobId),
    /// A machine.
    Machine(MachineId),
    /// An account.
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

/// Asks for a part of a trail, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrailQuery {
    /// The thing whose trail it is.
    pub of: TrailOf,
    /// The number of events to skip: from the first, or, with `from_end`, from the last.
    pub skip: u32,
    /// The number of events in the answer, at most 200.
    pub limit: u32,
    /// True if the newest events are wanted. They come oldest first all the same.
    #[serde(default)]
    pub from_end: bool,
}

/// Asks for a part of a statement, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatementQuery {
    /// The account.
    pub account: AccountId,
    /// Only lines before this sequence.
    pub before: Option<Seq>,
    /// The number of lines in the answer, at most 500.
    pub limit: u32,
}

/// Asks for the machines of an owner, by id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachinesOfQuery {
    /// The owner.
    pub owner: AccountId,
    /// Only machines after this one; all of them where none is named.
    pub after: Option<MachineId>,
}

/// Asks for the readings of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadingsQuery {
    /// The machine.
    pub machine: MachineId,
    /// The number of minutes; the last ones are answered.
    pub minutes: u32,
}

/// The account or machine whose days are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DaysOf {
    /// An account.
    Account(AccountId),
    /// A machine.
    Machine(MachineId),
}

/// Asks for the days on which something was settled, newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaysQuery {
    /// The account or machine.
    pub of: DaysOf,
    /// The number of days in the answer, at most 366.
    pub most: u32,
}

/// How far the read models are behind the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lag {
    /// The last sequence in MARKET.
    pub last: Seq,
    /// The last sequence that every running model has folded.
    pub applied: Seq,
    /// The models that stopped, each with the reason.
    pub stopped: Vec<(String, String)>,
}

/// Asks for events of the whole log, newest first. For operators. Each field that is given narrows the list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsQuery {
    /// The events before this sequence.
    pub before: Option<Seq>,
    /// The events of this kind of aggregate: `account`, `machine` or `job`.
    pub kind: Option<String>,
    /// The events with this name.
    pub event: Option<String>,
    /// The events in the trail of this job, machine or account.
    pub of: Option<TrailOf>,
    /// The number of events in the answer, at most 200.
    pub limit: u32,
}

/// A point in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Point {
    /// The point after the event with this sequence.
    Seq(Seq),
    /// The point after the last event that is not later than this time.
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

/// The state of one model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ModelState {
    /// The model's name.
    pub name: String,
    /// The last sequence that the model has folded.
    pub checkpoint: Seq,
    /// Why the model stopped, if it did.
    pub stopped: Option<String>,
}
