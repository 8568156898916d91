//! Batches and their tasks.

use std::collections::BTreeMap;

use gpubnb_events::{
    AccountId, BatchId, JobId, MachineId, MicroUsd, Millis, Seq, Timestamp,
    event::{CloseReason, Reason},
    spec::{JobSpec, Limits, Placement},
};
use serde::{Deserialize, Serialize};

use super::JobState;

/// The number of tasks of a batch in each state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TaskCounts {
    /// Tasks that are not opened, or wait for a machine.
    pub waiting: u32,
    /// Tasks that machines have.
    pub running: u32,
    /// Tasks that ended without a failure.
    pub completed: u32,
    /// Tasks that failed.
    pub failed: u32,
    /// Tasks that were cancelled, also before they were opened.
    pub cancelled: u32,
}

/// A batch, as the pages and the API show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BatchView {
    /// The batch's id.
    pub batch: BatchId,
    /// The consumer.
    pub account: AccountId,
    /// The program of each task, with placeholders in the command.
    pub spec: JobSpec,
    /// The conditions that a machine must satisfy.
    pub placement: Placement,
    /// The limits of each task.
    pub limits: Limits,
    /// The number of tasks.
    pub tasks: u32,
    /// The names of the tasks' parameters.
    pub parameters: Vec<String>,
    /// The most tasks that machines have at the same time.
    pub max_running: u32,
    /// The number of failed tasks after which no other task starts.
    pub max_failures: u32,
    /// The number of tasks in each state.
    pub counts: TaskCounts,
    /// The number of tasks that are open or were open.
    pub opened: u32,
    /// The number of tasks that are settled.
    pub settled: u32,
    /// The amount that was held for all tasks.
    pub hold: MicroUsd,
    /// The amount that is held now.
    pub held: MicroUsd,
    /// The cost of the settled tasks.
    pub cost: MicroUsd,
    /// The billed time of the settled tasks.
    pub metered: Millis,
    /// The time of the submission.
    pub submitted_at: Timestamp,
    /// The reason why no other task is opened; `None` while tasks may be opened.
    pub closed: Option<CloseReason>,
    /// The time at which the last task was settled; `None` before.
    pub ended_at: Option<Timestamp>,
    /// The sequence of the last event about the batch or its tasks.
    pub seq: Seq,
}

impl BatchView {
    /// True if no task is or will be open.
    pub fn is_over(&self) -> bool {
        self.ended_at.is_some()
    }

    /// True if a machine has had a task.
    pub fn has_begun(&self) -> bool {
        self.counts.waiting < self.tasks
    }

    /// The state in one word.
    pub fn state_name(&self) -> &'static str {
        match (self.closed, self.is_over()) {
            (None, _) if self.has_begun() => "Running",
            (None, _) => "Waiting",
            (Some(_), false) => "Stopping",
            (Some(CloseReason::Finished), true) if self.counts.failed > 0 => "Finished with failures",
            (Some(CloseReason::Finished), true) => "Finished",
            (Some(CloseReason::Cancelled), true) => "Cancelled",
            (Some(CloseReason::TooManyFailures | CloseReason::TooOld), true) => "Stopped",
        }
    }
}

/// A task of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TaskView {
    /// The number of the task in its batch, counted from 0.
    pub number: u32,
    /// The index, which the task finds in its environment.
    pub index: u32,
    /// The id of the task, and of its job when it is opened.
    pub job: JobId,
    /// The parameters.
    pub parameters: BTreeMap<String, String>,
    /// The state. A task that is not opened is `Queued`, or `Cancelled` if its batch is closed.
    pub state: JobState,
    /// True if the task is settled.
    pub settled: bool,
    /// The reason why the task failed, or why its last attempt ended.
    pub reason: Option<Reason>,
    /// The machine of the last attempt.
    pub machine: Option<MachineId>,
    /// The time at which the last attempt started the task's code.
    pub started_at: Option<Timestamp>,
    /// The time at which the task ended.
    pub ended_at: Option<Timestamp>,
    /// The billed time; `None` until the task is settled, or if nothing is billed.
    pub billed: Option<Millis>,
    /// The cost; `None` until the task is settled.
    pub cost: Option<MicroUsd>,
}
