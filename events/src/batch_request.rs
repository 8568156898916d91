//! The request for a batch: one type, which the web form, the API and the client `gpubnb` write.
//!
//! Belongs here: the ways to name the tasks of a batch, and the way from a request to a command. Must not come here:
//! the rules that a batch must keep (`services/domain/src/batch.rs`).

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
};

use serde::{Deserialize, Serialize};

use crate::{
    batch::{BatchId, ITEM, MAX_LIST, MAX_PARAMETERS, MAX_TASKS, TaskList},
    command::{SubmitBatch, SubmitJob},
    job_request::JobRequest,
    refusal::{Refusal, invalid},
};

/// A batch: one job, and the tasks that run it. Of `array`, `items`, `sweep` and `tasks`, the request has exactly one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BatchRequest {
    /// The id of the batch, a UUID of version 7 whose last 20 bits are zero. Two requests with the same id are one
    /// batch. The market makes an id for a request without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<BatchId>,
    /// The program of each task. In the arguments of the command, `{name}` stands for a parameter and `{index}` for the
    /// index of the task. The budget is that of one task.
    pub job: JobRequest,
    /// The indices of the tasks: `0-999`, `0-100:10` (every tenth), or `1,2,5-7`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub array: Option<String>,
    /// One task for each item. The item is the parameter `item`; `{}` stands for it in the command, too.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub items: Vec<String>,
    /// The values of each parameter. There is one task for each combination of values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sweep: BTreeMap<String, Vec<String>>,
    /// The parameters of each task. All tasks have the same names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<BTreeMap<String, String>>,
    /// The index of each of `items` or `tasks`; without it, 0, 1, 2, ….
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub indices: Vec<u32>,
    /// The most tasks that machines have at the same time, from 1 to 1,000; without it, 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_running: Option<u32>,
    /// The number of tasks that may fail. If one more fails, no other task starts, and the running ones are cancelled;
    /// without it, a tenth of the tasks, and at least ten.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_failures: Option<u32>,
}

fn too_many(field: &str) -> Refusal {
    invalid(field, format!("A batch has at most {MAX_TASKS} tasks."))
}

impl BatchRequest {
    /// The command that submits the batch. `job` is the command of the request's job.
    pub fn into_command(self, batch: BatchId, job: SubmitJob) -> Result<SubmitBatch, Refusal> {
        let tasks = self.task_list()?;
        let (max_running, max_failures) = (self.max_running, self.max_failures);
        Ok(SubmitBatch { batch, job: SubmitJob { job: batch.as_job(), ..job }, tasks, max_running, max_failures })
    }

    /// The tasks. Refuses a request that names no tasks, names them in several ways, or names too many.
    pub fn task_list(&self) -> Result<TaskList, Refusal> {
        let ways = [self.array.is_some(), !self.items.is_empty(), !self.sweep.is_empty(), !self.tasks.is_empty()];
        if ways.iter().filter(|is_given| **is_given).count() != 1 {
            return Err(invalid("tasks", "Name the tasks in one way: by array, items, sweep or tasks."));
        }
        let list = if let Some(array) = &self.array {
            let indices = parse_array(array)?;
            TaskList { count: length(indices.len()), indices, names: Vec::new(), rows: Vec::new() }
        } else if !self.items.is_empty() {
            table(vec![ITEM.to_owned()], self.items.iter().map(|item| vec![item.clone()]).collect(), "items")?
        } else if self.sweep.is_empty() {
            rows_of(&self.tasks)?
        } else {
            combinations(&self.sweep)?
        };
        if self.indices.is_empty() {
            return Ok(list);
        }
        if self.array.is_some() || !self.sweep.is_empty() {
            return Err(invalid("indices", "Only items and tasks have indices of their own."));
        }
        Ok(TaskList { indices: self.indices.clone(), ..list })
    }
}

fn length(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// Refuses names and rows that are too many or too large, before they are made.
fn check_size(field: &str, names: usize, rows: usize, bytes: usize) -> Result<(), Refusal> {
    if rows > MAX_TASKS as usize {
        return Err(too_many(field));
    }
    if names > MAX_PARAMETERS {
        return Err(invalid(field, format!("A task has at most {MAX_PARAMETERS} parameters.")));
    }
    if bytes as u64 > MAX_LIST {
        let message = format!(
            "The parameters have more than {} KiB. Put them into a file of a dataset, and let each task read the line \
             of its index.",
            MAX_LIST >> 10
        );
        return Err(invalid(field, message));
    }
    Ok(())
}

fn table(names: Vec<String>, rows: Vec<Vec<String>>, field: &str) -> Result<TaskList, Refusal> {
    check_size(field, names.len(), rows.len(), rows.iter().flatten().map(String::len).sum())?;
    Ok(TaskList { count: length(rows.len()), indices: Vec::new(), names, rows })
}

fn rows_of(tasks: &[BTreeMap<String, String>]) -> Result<TaskList, Refusal> {
    let bytes = tasks.iter().flat_map(BTreeMap::values).map(String::len).sum();
    let names: BTreeSet<&String> = tasks.iter().flat_map(BTreeMap::keys).collect();
    check_size("tasks", names.len(), tasks.len(), bytes)?;
    if let Some((number, missing)) = tasks.iter().enumerate().find_map(|(number, task)| {
        names.iter().find(|name| !task.contains_key(**name)).map(|missing| (number, missing))
    }) {
        return Err(invalid("tasks", format!("Task {number} has no parameter {missing}, and another task has it.")));
    }
    let rows = tasks.iter().map(|task| task.values().cloned().collect()).collect();
    table(names.into_iter().cloned().collect(), rows, "tasks")
}

/// One row for each combination of the values. The last parameter changes fastest.
fn combinations(sweep: &BTreeMap<String, Vec<String>>) -> Result<TaskList, Refusal> {
    if let Some((name, _)) = sweep.iter().find(|(_, values)| values.is_empty()) {
        return Err(invalid("sweep", format!("The parameter {name} has no value.")));
    }
    check_size("sweep", sweep.len(), 0, 0)?;
    let count = sweep.values().try_fold(1_usize, |count, values| count.checked_mul(values.len()));
    let count = count.filter(|count| *count <= MAX_TASKS as usize).ok_or_else(|| too_many("sweep"))?;
    // Each value of a parameter occurs in the same number of rows.
    let bytes_of = |values: &Vec<String>| {
        values.iter().map(String::len).sum::<usize>().saturating_mul(count / values.len().max(1))
    };
    check_size("sweep", sweep.len(), count, sweep.values().map(bytes_of).fold(0, usize::saturating_add))?;
    let mut rows: Vec<Vec<String>> = vec![Vec::new()];
    for values in sweep.values() {
        let with_each = |row: &Vec<String>| {
            values.iter().map(|value| row.iter().chain([value]).cloned().collect()).collect::<Vec<Vec<String>>>()
        };
        rows = rows.iter().flat_map(with_each).collect();
    }
    table(sweep.keys().cloned().collect(), rows, "sweep")
}

/// A range of whole numbers with a step, such as `0-100:10`. Both ends count.
fn parse_range(text: &str) -> Option<(u32, u32, NonZeroU32)> {
    let (range, step) = text.split_once(':').unwrap_or((text, "1"));
    let (first, last) = range.split_once('-')?;
    let (first, last, step) = (first.trim().parse().ok()?, last.trim().parse().ok()?, step.trim().parse().ok()?);
    (first <= last).then_some((first, last, step))
}

/// The indices of an array, such as `0-999` or `1,2,5-7`. Each index occurs once.
pub fn parse_array(text: &str) -> Result<Vec<u32>, Refusal> {
    let bad = || invalid("array", format!("Write indices as 0-999, 0-100:10 or 1,2,5-7, not `{text}`."));
    let (mut found, mut named) = (BTreeSet::new(), 0_usize);
    for part in text.split(',').map(str::trim) {
        let before = found.len();
        if let Ok(index) = part.parse::<u32>() {
            found.insert(index);
        } else {
            let (first, last, step) = parse_range(part).ok_or_else(bad)?;
            if (last - first) / step >= MAX_TASKS {
                return Err(too_many("array"));
            }
            found.extend((first..=last).step_by(step.get() as usize));
            named += ((last - first) / step) as usize;
        }
        // An index that is named again costs time, too.
        named += 1.max(found.len() - before);
        if found.len() > MAX_TASKS as usize || named > 4 * MAX_TASKS as usize {
            return Err(too_many("array"));
        }
    }
    Ok(found.into_iter().collect())
}

/// A parameter of a sweep with its values, such as `lr=0.1,0.01` or `seed=1-5`.
pub fn parse_sweep(text: &str) -> Result<(String, Vec<String>), Refusal> {
    let bad = || invalid("sweep", format!("Write a parameter as lr=0.1,0.01 or seed=1-5, not `{text}`."));
    let (name, values) =
        text.split_once('=').filter(|(name, values)| !name.is_empty() && !values.is_empty()).ok_or_else(bad)?;
    let mut found = Vec::new();
    for value in values.split(',').map(str::trim) {
        match parse_range(value) {
            Some((first, last, step)) => {
                if (last - first) / step >= MAX_TASKS {
                    return Err(too_many("sweep"));
                }
                found.extend((first..=last).step_by(step.get() as usize).map(|number| number.to_string()));
            }
            None if value.is_empty() => return Err(bad()),
            None => found.push(value.to_owned()),
        }
        if found.len() > MAX_TASKS as usize {
            return Err(too_many("sweep"));
        }
    }
    Ok((name.trim().to_owned(), found))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(refused: Result<TaskList, Refusal>) -> String {
        refused.unwrap_err().field.unwrap()
    }

    #[test]
    fn an_array_names_indices_and_ranges() {
        assert_eq!(parse_array("1, 2,5-7").unwrap(), [1, 2, 5, 6, 7]);
        assert_eq!(parse_array("0-100:50").unwrap(), [0, 50, 100]);
        assert_eq!(parse_array("3,3-4").unwrap(), [3, 4]);
        let again = ["0-9999"; 9].join(",");
        for bad in [again.as_str(), "", "a", "5-1", "1-", "1-3:0", "-1", "0-4294967295", "0-9999,20000-29999"] {
            assert!(parse_array(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_sweep_has_one_task_for_each_combination() {
        assert_eq!(parse_sweep("lr=1e-3,1e-4").unwrap(), ("lr".to_owned(), vec!["1e-3".to_owned(), "1e-4".to_owned()]));
        assert_eq!(parse_sweep("seed=1-3").unwrap().1, ["1", "2", "3"]);
        for bad in ["", "lr", "=1", "lr=", "lr=0.1,", "seed=0-99999999"] {
            assert!(parse_sweep(bad).is_err(), "{bad}");
        }
        let sweep = ["lr=0.1,0.2", "seed=1-3"].map(|text| parse_sweep(text).unwrap());
        let request = BatchRequest { sweep: sweep.into(), ..BatchRequest::default() };
        let list = request.task_list().unwrap();
        assert_eq!((list.count, &list.names[..]), (6, &["lr".to_owned(), "seed".to_owned()][..]));
        assert_eq!(
            (&list.rows[0][..], &list.rows[5][..]),
            (&["0.1", "1"].map(str::to_owned)[..], &["0.2", "3"].map(str::to_owned)[..])
        );
        let million = ["a=1-1000", "b=1-1000"].map(|text| parse_sweep(text).unwrap());
        assert_eq!(field(BatchRequest { sweep: million.into(), ..BatchRequest::default() }.task_list()), "sweep");
        // Small in the request, and large when it is made.
        let hundred: Vec<String> = (0..100).map(|number| number.to_string()).collect();
        let large = [("a", hundred.clone()), ("b", hundred), ("c", vec!["x".repeat(100_000)])];
        let large = large.map(|(name, values)| (name.to_owned(), values)).into();
        assert_eq!(field(BatchRequest { sweep: large, ..BatchRequest::default() }.task_list()), "sweep");
        let many = (0..10_000).map(|number| (format!("p{number}"), vec!["1".to_owned()])).collect();
        assert_eq!(field(BatchRequest { sweep: many, ..BatchRequest::default() }.task_list()), "sweep");
    }

    #[test]
    fn the_tasks_are_named_in_exactly_one_way_and_all_have_the_same_parameters() {
        assert_eq!(field(BatchRequest::default().task_list()), "tasks");
        let items = vec!["a".to_owned()];
        let both = BatchRequest { array: Some("1".to_owned()), items: items.clone(), ..BatchRequest::default() };
        assert_eq!(field(both.task_list()), "tasks");
        let one = BatchRequest { items, indices: vec![7], ..BatchRequest::default() }.task_list().unwrap();
        assert_eq!((one.index(0), one.parameters(0).get(ITEM).map(String::as_str)), (7, Some("a")));
        let task = |name: &str| BTreeMap::from([(name.to_owned(), "1".to_owned())]);
        let different = BatchRequest { tasks: vec![task("a"), task("b")], ..BatchRequest::default() };
        assert_eq!(field(different.task_list()), "tasks");
        let many = BatchRequest { items: vec!["x".to_owned(); 10_001], ..BatchRequest::default() };
        assert_eq!(field(many.task_list()), "items");
    }
}
