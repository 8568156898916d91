//! The requests to a projector, and the limits on each answer. Each request is the body of one query, `query.<name>`.

use gpubnb_events::{AccountId, Aggregate, BatchId, JobId, MachineId, Seq, Timestamp};
use serde::{Deserialize, Serialize};

use crate::view::JobState;

/// The maximum number of machines in one answer. The JSON of a machine has at most 12 KB, and the answer must fit
/// into a message of the broker, which has at most 1 MB.
pub const MACHINES_PER_ANSWER: usize = 64;

/// The message that a client sends: the request, and the sequence that the answer must include.
#[derive(Debug, Serialize, Deserialize)]
pub struct QueryRequest<T> {
    /// The projector must fold the event with this sequence before it answers.
    pub min_seq: Seq,
    /// The request.
    pub body: T,
}

/// Asks for jobs, newest first. The answer has the jobs that match all given fields.
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
    /// The field `next` of the previous page; `None` for the first page.
    pub cursor: Option<String>,
    /// The number of jobs in the answer, at most 100.
    pub limit: Option<u32>,
}

/// Asks for batches of an account, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchesQuery {
    /// The account.
    pub account: AccountId,
    /// The field `next` of the previous page; `None` for the first page.
    pub cursor: Option<String>,
    /// The number of batches in the answer, at most 50.
    pub limit: u32,
}

/// The order of a list of tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskOrder {
    /// By number.
    #[default]
    Number,
    /// The failed tasks first, then those that have not ended, then the others. Each by number.
    WorstFirst,
}

/// Asks for tasks of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TasksQuery {
    /// The batch.
    pub batch: BatchId,
    /// The tasks in this state. `Running` also has the tasks that a machine prepares, and those whose files it uploads.
    pub state: Option<JobState>,
    /// The order.
    #[serde(default)]
    pub order: TaskOrder,
    /// The number of tasks to skip.
    pub skip: u32,
    /// The number of tasks in the answer, at most 200.
    pub limit: u32,
}

/// The job, machine, account or batch of a trail. A *trail* is the list of all events that affect one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrailOf {
    /// A job.
    Job(JobId),
    /// A machine.
    Machine(MachineId),
    /// An account.
    Account(AccountId),
    /// A batch.
    Batch(BatchId),
}

impl From<TrailOf> for Aggregate {
    fn from(of: TrailOf) -> Self {
        match of {
            TrailOf::Job(id) => Self::Job(id),
            TrailOf::Machine(id) => Self::Machine(id),
            TrailOf::Account(id) => Self::Account(id),
            TrailOf::Batch(id) => Self::Batch(id),
        }
    }
}

/// Asks for a part of a trail, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrailQuery {
    /// The job, machine or account.
    pub of: TrailOf,
    /// The number of events to skip at the beginning of the trail; with `from_end`, at the end of the trail.
    pub skip: u32,
    /// The number of events in the answer, at most 200.
    pub limit: u32,
    /// True to get the last events of the trail. The order of the answer is always oldest first.
    #[serde(default)]
    pub from_end: bool,
}

/// Asks for a part of a statement, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatementQuery {
    /// The account.
    pub account: AccountId,
    /// The lines of events before this sequence; `None` for the newest lines.
    pub before: Option<Seq>,
    /// The number of lines in the answer, at most 500.
    pub limit: u32,
}

/// Asks for the machines of an owner, in the order of their ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachinesOfQuery {
    /// The owner.
    pub owner: AccountId,
    /// The machines after this machine; `None` for the first machines.
    pub after: Option<MachineId>,
}

/// Asks for the readings of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadingsQuery {
    /// The machine.
    pub machine: MachineId,
    /// The number of past minutes. A minute without a heartbeat has no reading and is not counted.
    pub minutes: u32,
}

/// The account or machine of a [`DaysQuery`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DaysOf {
    /// An account.
    Account(AccountId),
    /// A machine.
    Machine(MachineId),
}

/// Asks for the history of a model of GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelHistoryQuery {
    /// The model, or `CPU only`.
    pub model: String,
    /// The first hour, as the number of hours since 1970. The answer has at most 1,000 hours.
    pub from_hour: u32,
}

/// Asks for the sums of the days with a settlement, newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaysQuery {
    /// The account or machine.
    pub of: DaysOf,
    /// The number of days in the answer, at most 366.
    pub most: u32,
}

/// The lag of the read models: the log has events up to `last`, and the models have folded the events up to `applied`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lag {
    /// The last sequence in MARKET.
    pub last: Seq,
    /// The last sequence that every running model has folded.
    pub applied: Seq,
    /// The models that stopped, each with the reason.
    pub stopped: Vec<(String, String)>,
}

/// Asks for events of the whole log, newest first. For operators. The answer has the events that match all given
/// fields.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsQuery {
    /// The events before this sequence.
    pub before: Option<Seq>,
    /// The events of this kind of aggregate: `account`, `machine` or `job`.
    pub kind: Option<String>,
    /// The events with this name, for example `JobAssigned`.
    pub event: Option<String>,
    /// The events in the trail of this job, machine or account.
    pub of: Option<TrailOf>,
    /// The number of events in the answer, at most 200.
    pub limit: u32,
}

/// A point in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogPoint {
    /// The point after the event with this sequence.
    Seq(Seq),
    /// The point after the last event that was recorded at this time or earlier.
    Time(Timestamp),
}

impl std::str::FromStr for LogPoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let time = || text.parse().map(Self::Time);
        text.parse()
            .map(|seq| Self::Seq(Seq(seq)))
            .or_else(|_| time())
            .map_err(|_| "write a sequence, or a time such as 2026-01-31T12:00:00Z".to_owned())
    }
}

/// The progress of one read model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ModelState {
    /// The model's name.
    pub name: String,
    /// The last sequence that the model has folded.
    pub checkpoint: Seq,
    /// The reason why the model stopped; `None` while the model runs.
    pub stopped: Option<String>,
}
