//! Batches: many tasks from one submission. A *task* is one run of the batch's job, with an index and parameters of its
//! own. A task becomes a job when the market opens it.
//!
//! Belongs here: the id of a batch and the ids of its tasks, the list of tasks, and the specification that one task
//! gets. Must not come here: the rules that a batch must keep (`services/domain`).

use std::{collections::BTreeMap, fmt, ops::RangeInclusive, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    event::BatchSubmitted,
    ids::{BadId, JobId},
    spec::JobSpec,
    time::{Seconds, Timestamp},
};

/// The most tasks of a batch.
pub const MAX_TASKS: u32 = 10_000;
/// A batch of this age is closed. Its secrets and datasets are kept a little longer.
pub const MAX_AGE: Seconds = Seconds(14 * 24 * 3_600);
/// The most parameters of a task.
pub const MAX_PARAMETERS: usize = 16;
/// The longest name and the longest value of a parameter, bytes.
pub const MAX_NAME: usize = 32;
/// See [`MAX_NAME`].
pub const MAX_VALUE: usize = 1_024;
/// The most bytes of the list of tasks as JSON. A request with the list, and the job, has at most 256 KiB.
pub const MAX_LIST: u64 = 192 << 10;
/// The name of the parameter of a batch over items, such as the lines of a file: `{}` stands for it in a command, too.
pub const ITEM: &str = "item";
/// The prefix of the environment variables that have the parameters of a task: `GPUBNB_PARAM_LR` has the parameter
/// `lr`.
pub const PARAMETER_VARIABLE: &str = "GPUBNB_PARAM_";

/// The bits at the end of an id that count the tasks of a batch.
const TASK_BITS: u32 = 20;
const TASK_MASK: u128 = (1 << TASK_BITS) - 1;

/// A batch. Its id is a UUID of version 7 whose last 20 bits are zero. The id of task number `i`, counted from 0, is
/// the batch's id + `i` + 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(value_type = String, format = Uuid)]
#[serde(try_from = "Uuid", into = "Uuid")]
pub struct BatchId(JobId);

fn bits(job: JobId) -> u128 {
    Uuid::from(job).as_u128()
}

impl BatchId {
    /// A lower bound for ranges, which is not a valid id.
    pub const MIN: Self = Self(JobId::MIN);

    /// A new id, which begins like this job id.
    pub fn beginning_like(job: JobId) -> Self {
        JobId::try_from(Uuid::from_u128(bits(job) & !TASK_MASK)).map_or(Self::MIN, Self)
    }

    /// A new id.
    pub fn generate() -> Self {
        Self::beginning_like(JobId::generate())
    }

    /// The job of task number `number`, counted from 0. `None` for a number that no batch has.
    pub fn task(self, number: u32) -> Option<JobId> {
        let offset = u128::from(number).checked_add(1).filter(|offset| *offset <= TASK_MASK)?;
        JobId::try_from(Uuid::from_u128(bits(self.0) | offset)).ok()
    }

    /// The batch whose task a job is, if there is such a batch, and the number of the task, counted from 0. `None` for
    /// a job that cannot be a task.
    pub fn of_task(job: JobId) -> Option<(Self, u32)> {
        let number = u32::try_from(bits(job) & TASK_MASK).ok()?.checked_sub(1)?;
        Some((Self::beginning_like(job), number))
    }

    /// The job id with the same bytes. No task has it, so it stands for the batch where a job id is needed, such as in
    /// [`crate::event::HoldReleased`].
    pub fn as_job(self) -> JobId {
        self.0
    }

    /// All ids that the batch and its tasks can have.
    pub fn range(self) -> RangeInclusive<JobId> {
        let last = JobId::try_from(Uuid::from_u128(bits(self.0) | TASK_MASK));
        self.0..=last.unwrap_or(self.0)
    }

    /// The time at which the id was made, by the clock of the process that made it.
    pub fn made_at(self) -> Timestamp {
        self.0.made_at()
    }

    /// The sixteen bytes, big-endian.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The eight hexadecimal digits before those that count tasks, for people.
    pub fn short(self) -> String {
        Uuid::from(self).simple().to_string()[19..27].to_owned()
    }
}

impl TryFrom<Uuid> for BatchId {
    type Error = BadId;

    fn try_from(id: Uuid) -> Result<Self, BadId> {
        let job = JobId::try_from(id)?;
        let batch = Self::beginning_like(job);
        if batch.0 == job { Ok(batch) } else { Err(BadId(id.to_string())) }
    }
}

impl From<BatchId> for Uuid {
    fn from(id: BatchId) -> Self {
        id.0.into()
    }
}

impl FromStr for BatchId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        Self::try_from(Uuid::from(text.parse::<JobId>()?))
    }
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The tasks of a batch, with their parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TaskList {
    /// The number of tasks.
    pub count: u32,
    /// The index of each task, which the task finds in its environment. Empty: 0, 1, 2, ….
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub indices: Vec<u32>,
    /// The names of the parameters. Empty: the tasks differ only in their index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// One row for each task, with one value for each name. Empty without names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rows: Vec<Vec<String>>,
}

impl TaskList {
    /// The index of task number `number`.
    pub fn index(&self, number: u32) -> u32 {
        self.indices.get(number as usize).copied().unwrap_or(number)
    }

    /// The parameters of task number `number`.
    pub fn parameters(&self, number: u32) -> BTreeMap<String, String> {
        let values = self.rows.get(number as usize).into_iter().flatten();
        self.names.iter().cloned().zip(values.cloned()).collect()
    }

    /// The list of some of these tasks, which keep their indices and parameters.
    #[must_use]
    pub fn only(&self, numbers: &[u32]) -> Self {
        let rows = numbers.iter().filter_map(|number| self.rows.get(*number as usize).cloned());
        Self {
            count: u32::try_from(numbers.len()).unwrap_or(u32::MAX),
            indices: numbers.iter().map(|number| self.index(*number)).collect(),
            names: self.names.clone(),
            rows: rows.collect(),
        }
    }
}

/// The task that a job is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Task {
    /// The batch.
    pub batch: BatchId,
    /// The index of the task.
    pub index: u32,
    /// The number of tasks of the batch.
    pub tasks: u32,
    /// The parameters of the task.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, String>,
}

impl Task {
    /// The environment variables that tell the program which task it is.
    pub fn environment(&self) -> Vec<(String, String)> {
        let mut found = vec![
            ("GPUBNB_BATCH_ID".to_owned(), self.batch.to_string()),
            ("GPUBNB_TASK_INDEX".to_owned(), self.index.to_string()),
            ("GPUBNB_TASK_COUNT".to_owned(), self.tasks.to_string()),
        ];
        let variable = |name: &String| format!("{PARAMETER_VARIABLE}{}", name.to_ascii_uppercase());
        found.extend(self.parameters.iter().map(|(name, value)| (variable(name), value.clone())));
        found
    }

    /// An argument of the command, with the values of the parameters in place of `{name}`, and the index in place of
    /// `{index}`. Other braces stay: `{"a": 1}` is no placeholder. Values are not searched for placeholders again.
    pub fn fill_in(&self, argument: &str) -> String {
        let mut filled = String::with_capacity(argument.len());
        let mut rest = argument;
        while let Some(start) = rest.find('{') {
            let (before, from_brace) = rest.split_at(start);
            filled.push_str(before);
            // No name is longer, so a long argument of braces takes no long time.
            let mut nearby = from_brace.as_bytes().iter().take(MAX_NAME + 2);
            let value = nearby.position(|byte| *byte == b'}').and_then(|end| {
                let value = self.value_of(from_brace.get(1..end)?)?;
                Some((value, from_brace.get(end + 1..)?))
            });
            let (value, after) = value.unwrap_or_else(|| ("{".to_owned(), from_brace.get(1..).unwrap_or_default()));
            filled.push_str(&value);
            rest = after;
        }
        filled + rest
    }

    fn value_of(&self, name: &str) -> Option<String> {
        match name {
            "" => self.parameters.get(ITEM).cloned(),
            "index" => Some(self.index.to_string()),
            name => self.parameters.get(name).cloned(),
        }
    }
}

impl BatchSubmitted {
    /// The specification of task number `number`: that of the batch, with the task's name and parameters. `None` if the
    /// batch has no such task.
    pub fn task_spec(&self, number: u32) -> Option<JobSpec> {
        if number >= self.tasks.count {
            return None;
        }
        let (batch, index, tasks) = (self.batch, self.tasks.index(number), self.tasks.count);
        let task = Task { batch, index, tasks, parameters: self.tasks.parameters(number) };
        Some(JobSpec {
            command: self.spec.command.iter().map(|argument| task.fill_in(argument)).collect(),
            task: Some(task),
            ..self.spec.clone()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ids_of_tasks_follow_the_id_of_their_batch() {
        let batch = BatchId::generate();
        assert_eq!(batch.to_string().parse(), Ok(batch));
        let task = batch.task(41).unwrap();
        assert_eq!(BatchId::of_task(task), Some((batch, 41)));
        assert_eq!(BatchId::of_task(batch.as_job()), None);
        assert!(task.to_string().parse::<BatchId>().is_err());
        assert_eq!(batch.task((1 << TASK_BITS) - 1), None);
        assert!(batch.range().contains(&task) && batch.made_at() == task.made_at());
    }

    #[test]
    fn placeholders_of_a_command_are_filled_in_once_and_other_braces_stay() {
        let parameters = [("item", "a b"), ("lr", "{index}")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let task = Task { batch: BatchId::generate(), index: 7, tasks: 9, parameters: parameters.into() };
        for (argument, filled) in [
            ("{}", "a b"),
            ("x-{item}-{index}.json", "x-a b-7.json"),
            ("{lr}", "{index}"),
            (r#"{"a": {1}}"#, r#"{"a": {1}}"#),
            ("{{index}}", "{7}"),
            ("{", "{"),
            ("{unknown}", "{unknown}"),
            ("é{}é", "éa bé"),
        ] {
            assert_eq!(task.fill_in(argument), filled, "{argument}");
        }
        let names: Vec<String> = task.environment().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names[1..], ["GPUBNB_TASK_INDEX", "GPUBNB_TASK_COUNT", "GPUBNB_PARAM_ITEM", "GPUBNB_PARAM_LR"]);
    }

    #[test]
    fn some_tasks_of_a_list_keep_their_indices_and_parameters() {
        let rows = ["a", "b", "c"].map(|value| vec![value.to_owned()]).to_vec();
        let list = TaskList { count: 3, indices: vec![5, 6, 9], names: vec!["x".to_owned()], rows };
        let some = list.only(&[0, 2]);
        assert_eq!((some.count, &some.indices[..]), (2, &[5, 9][..]));
        assert_eq!(some.parameters(1), [("x".to_owned(), "c".to_owned())].into());
    }
}
