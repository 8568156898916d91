//! Events of a batch. `BatchSubmitted` belongs to the account, because it holds money of the account. The tasks that
//! the market opens are jobs, with the events of jobs.

use serde::{Deserialize, Serialize};

use crate::{
    batch::{BatchId, TaskList},
    ids::{AccountId, JobId, Seq},
    money::MicroUsd,
    spec::{JobSpec, Limits, Placement},
};

/// A batch was submitted, and the budget of all its tasks is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchSubmitted {
    /// The consumer.
    pub account: AccountId,
    /// The batch. Its id is the id of the command.
    pub batch: BatchId,
    /// The specification of each task, with placeholders in the command.
    pub spec: JobSpec,
    /// The rule by which a machine is chosen for each task.
    pub placement: Placement,
    /// The limits of each task.
    pub limits: Limits,
    /// The money that is held for each task until the task is settled.
    pub hold: MicroUsd,
    /// The tasks.
    pub tasks: TaskList,
    /// The most tasks that machines have at the same time.
    pub max_running: u32,
    /// The number of failed tasks after which no other task starts.
    pub max_failures: u32,
}

impl BatchSubmitted {
    /// The money that is held for a number of tasks.
    pub fn hold_of(&self, tasks: u32) -> MicroUsd {
        MicroUsd(self.hold.0.saturating_mul(i64::from(tasks)))
    }
}

/// Tasks of a batch became jobs, which wait for machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TasksOpened {
    /// The batch.
    pub batch: BatchId,
    /// The sequence of `BatchSubmitted`.
    pub submission: Seq,
    /// The number of the first task that is opened, counted from 0.
    pub first: u32,
    /// The number of tasks that are open or were open, which is one more than the number of the last one.
    pub up_to: u32,
}

impl TasksOpened {
    /// The tasks that became jobs, each with its number.
    pub fn tasks(&self) -> impl Iterator<Item = (u32, JobId)> + use<> {
        let batch = self.batch;
        (self.first..self.up_to).filter_map(move |number| Some((number, batch.task(number)?)))
    }
}

/// The reason why no other task of a batch is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CloseReason {
    /// All tasks were opened, and are settled.
    Finished,
    /// The consumer cancelled the rest.
    Cancelled,
    /// More tasks failed than the consumer allowed.
    TooManyFailures,
    /// The batch is so old that its secrets and datasets would be gone soon.
    TooOld,
}

/// No other task of the batch is opened. The hold of the tasks that were not opened is released.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchClosed {
    /// The batch.
    pub batch: BatchId,
    /// The sequence of `BatchSubmitted`.
    pub submission: Seq,
    /// The reason.
    pub reason: CloseReason,
    /// The number of tasks that were opened.
    pub opened: u32,
    /// The account whose money is released.
    pub account: AccountId,
    /// The money that is released.
    pub released: MicroUsd,
}
