//! The model of batches: a row for each batch, a row for each task that was opened, and the list of batches of each
//! account. A task that was not opened has no row.

use gpubnb_events::{
    AccountId, BatchId, Event, JobId, MachineId, MicroUsd, Millis, Recorded, Seq, Timestamp,
    event::{BatchSubmitted, CloseReason, Reason},
};
use gpubnb_query::view::{BatchView, JobState, TaskCounts, TaskView};
use gpubnb_store::{StoreError, Table, WriteBatch};
use serde::{Deserialize, Serialize};

use super::{Projection, account_key, key};

/// Rows: `b<batch>` → [`BatchRow`]; `s<batch>` → the event [`BatchSubmitted`], which never changes; `t<job>` →
/// [`TaskRow`]. The list of an account's batches are keys without a value: `a<account><batch>`.
pub struct Batches;

/// The state of a batch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BatchRow {
    submission: Seq,
    submitted_at: Timestamp,
    opened: u32,
    counts: TaskCounts,
    settled: u32,
    /// The hold of one task.
    task_hold: MicroUsd,
    held: MicroUsd,
    cost: MicroUsd,
    metered: Millis,
    closed: Option<CloseReason>,
    ended_at: Option<Timestamp>,
    seq: Seq,
}

/// The state of a task that was opened.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct TaskRow {
    state: Option<JobState>,
    settled: bool,
    reason: Option<Reason>,
    machine: Option<MachineId>,
    started_at: Option<Timestamp>,
    ended_at: Option<Timestamp>,
    billed: Option<Millis>,
    cost: Option<MicroUsd>,
}

/// The key of a batch's row.
pub fn row_key(batch: BatchId) -> Vec<u8> {
    key(b'b', &[batch.as_bytes()])
}

fn submission_key(batch: BatchId) -> Vec<u8> {
    key(b's', &[batch.as_bytes()])
}

fn task_key(job: JobId) -> Vec<u8> {
    key(b't', &[job.as_bytes()])
}

/// The prefix of the list of an account's batches.
pub fn account_batches_prefix(account: AccountId) -> Vec<u8> {
    account_key(b'a', account)
}

/// A batch with its submission.
pub struct StoredBatch {
    row: BatchRow,
    /// The submission.
    pub submitted: BatchSubmitted,
}

/// Reads a batch.
pub fn get(table: &Table, batch: BatchId) -> Result<Option<StoredBatch>, StoreError> {
    let row = gpubnb_store::get(table, &row_key(batch))?;
    let submitted = gpubnb_store::get(table, &submission_key(batch))?;
    Ok(row.zip(submitted).map(|(row, submitted)| StoredBatch { row, submitted }))
}

/// True if machines have tasks of the batch.
pub fn is_running(table: &Table, batch: BatchId) -> Result<bool, StoreError> {
    let row: Option<BatchRow> = gpubnb_store::get(table, &row_key(batch))?;
    Ok(row.is_some_and(|row| row.counts.running > 0))
}

impl From<StoredBatch> for BatchView {
    fn from(stored: StoredBatch) -> Self {
        let StoredBatch { row, submitted } = stored;
        let hold = submitted.hold_of(submitted.tasks.count);
        let BatchSubmitted { account, batch, spec, placement, limits, tasks, max_running, max_failures, .. } =
            submitted;
        Self {
            batch,
            account,
            spec,
            placement,
            limits,
            tasks: tasks.count,
            parameters: tasks.names,
            max_running,
            max_failures,
            counts: row.counts,
            opened: row.opened,
            settled: row.settled,
            hold,
            held: row.held,
            cost: row.cost,
            metered: row.metered,
            submitted_at: row.submitted_at,
            closed: row.closed,
            ended_at: row.ended_at,
            seq: row.seq,
        }
    }
}

/// The states of all tasks of a batch, in the order of their numbers.
pub fn states(table: &Table, batch: &StoredBatch) -> Result<Vec<JobState>, StoreError> {
    let rest = batch.state_of_unopened();
    let mut found = vec![rest; batch.submitted.tasks.count as usize];
    let (first, last) = batch.submitted.batch.range().into_inner();
    for row in table.range(task_key(first)..=task_key(last)) {
        let (key, bytes) = row?;
        let row: TaskRow = gpubnb_store::decode(&key, &bytes)?;
        let number = number_of(&key).and_then(|number| found.get_mut(number as usize));
        if let (Some(state), Some(known)) = (number, row.state) {
            *state = known;
        }
    }
    Ok(found)
}

/// The batch id with these bytes.
pub fn parse_id(bytes: &[u8]) -> Option<BatchId> {
    let job = JobId::from_bytes(bytes.try_into().ok()?).ok()?;
    Some(BatchId::beginning_like(job)).filter(|batch| batch.as_job() == job)
}

/// The number of the task in a key.
fn number_of(key: &[u8]) -> Option<u32> {
    let job = JobId::from_bytes(key.get(1..)?.try_into().ok()?).ok()?;
    BatchId::of_task(job).map(|(_, number)| number)
}

/// One task of a batch; `None` if the batch has no such task.
pub fn task(table: &Table, batch: &StoredBatch, number: u32) -> Result<Option<TaskView>, StoreError> {
    let tasks = &batch.submitted.tasks;
    let Some(job) = batch.submitted.batch.task(number).filter(|_| number < tasks.count) else { return Ok(None) };
    let row: TaskRow = gpubnb_store::get(table, &task_key(job))?.unwrap_or_default();
    let TaskRow { state, settled, reason, machine, started_at, ended_at, billed, cost } = row;
    Ok(Some(TaskView {
        number,
        index: tasks.index(number),
        job,
        parameters: tasks.parameters(number),
        state: state.unwrap_or(batch.state_of_unopened()),
        settled,
        reason,
        machine,
        started_at,
        ended_at,
        billed,
        cost,
    }))
}

impl StoredBatch {
    fn state_of_unopened(&self) -> JobState {
        if self.row.closed.is_some() { JobState::Cancelled } else { JobState::Queued }
    }
}

impl TaskRow {
    /// Applies an event of the task's job.
    fn apply(&mut self, at: Timestamp, event: &Event) {
        match event {
            Event::JobAssigned(e) => {
                self.state = Some(JobState::Assigned);
                self.machine = Some(e.machine);
            }
            Event::Declined(_) => self.state = Some(JobState::Queued),
            Event::Accepted(_) => self.state = Some(JobState::Accepted),
            Event::Started(_) => {
                self.state = Some(JobState::Running);
                self.started_at = Some(at);
            }
            Event::Exited(_) => self.state = Some(JobState::Collecting),
            Event::Requeued(e) => {
                self.state = Some(JobState::Queued);
                self.reason = Some(e.reason);
                self.started_at = None;
            }
            Event::Completed(_) => {
                self.reason = None;
                self.end(JobState::Completed, at);
            }
            Event::Failed(e) => {
                self.reason = Some(e.reason);
                self.end(JobState::Failed, at);
            }
            Event::Cancelled(_) => self.end(JobState::Cancelled, at),
            Event::Settled(e) => {
                self.settled = true;
                self.cost = Some(e.cost);
                self.billed = e.metering.as_ref().map(|metering| metering.billed);
            }
            _ => {}
        }
    }

    fn end(&mut self, state: JobState, at: Timestamp) {
        self.state = Some(state);
        self.ended_at = Some(at);
    }
}

/// The count of the tasks in a state.
fn count_of(counts: &mut TaskCounts, state: JobState) -> &mut u32 {
    match state {
        JobState::Queued => &mut counts.waiting,
        JobState::Assigned | JobState::Accepted | JobState::Running | JobState::Collecting => &mut counts.running,
        JobState::Completed => &mut counts.completed,
        JobState::Failed => &mut counts.failed,
        JobState::Cancelled => &mut counts.cancelled,
    }
}

impl BatchRow {
    fn new(recorded: &Recorded, e: &BatchSubmitted) -> Self {
        Self {
            submission: recorded.seq,
            submitted_at: recorded.at,
            opened: 0,
            counts: TaskCounts { waiting: e.tasks.count, ..TaskCounts::default() },
            settled: 0,
            task_hold: e.hold,
            held: e.hold_of(e.tasks.count),
            cost: MicroUsd::ZERO,
            metered: Millis(0),
            closed: None,
            ended_at: None,
            seq: recorded.seq,
        }
    }

    /// Applies an event of the batch, or of a task. `change` has the task's state before and after the event.
    fn apply(&mut self, recorded: &Recorded, event: &Event, change: Option<(JobState, JobState)>) {
        self.seq = recorded.seq;
        if let Some((before, after)) = change {
            let count = count_of(&mut self.counts, before);
            *count = count.saturating_sub(1);
            *count_of(&mut self.counts, after) += 1;
        }
        match event {
            Event::TasksOpened(e) => self.opened = e.up_to,
            Event::BatchClosed(e) => {
                let unopened = self.counts.waiting.min(self.total().saturating_sub(e.opened));
                self.counts.waiting -= unopened;
                self.counts.cancelled += unopened;
                self.held = self.held - e.released;
                self.closed = Some(e.reason);
            }
            Event::Settled(e) => {
                self.settled += 1;
                self.held = self.held - self.task_hold;
                self.cost += e.cost;
                let billed = e.metering.as_ref().map_or(0, |metering| metering.billed.0);
                self.metered = Millis(self.metered.0.saturating_add(billed));
            }
            _ => {}
        }
        if self.closed.is_some() && self.settled >= self.opened && self.ended_at.is_none() {
            self.ended_at = Some(recorded.at);
        }
    }

    fn total(&self) -> u32 {
        let TaskCounts { waiting, running, completed, failed, cancelled } = self.counts;
        waiting + running + completed + failed + cancelled
    }
}

impl Projection for Batches {
    fn name(&self) -> &'static str {
        "batches"
    }

    fn version(&self) -> u32 {
        1
    }

    fn apply(&self, rows: &mut WriteBatch<'_>, recorded: &Recorded, event: &Event) -> Result<(), StoreError> {
        match event {
            Event::BatchSubmitted(e) => {
                // Only the first submission with an id counts (docs/adr/0003).
                if rows.get::<BatchRow>(&row_key(e.batch))?.is_none() {
                    rows.put(&row_key(e.batch), BatchRow::new(recorded, e));
                    rows.put(&submission_key(e.batch), e.clone());
                    rows.put_key(key(b'a', &[e.account.as_bytes(), e.batch.as_bytes()]));
                }
                Ok(())
            }
            Event::HoldReleased(e) => {
                // The submission made no batch, because an id was taken by a job.
                let batch = BatchId::beginning_like(e.job);
                let row = rows.get::<BatchRow>(&row_key(batch))?;
                if row.is_some_and(|row| row.submission == e.submission) {
                    rows.remove(&row_key(batch));
                    rows.remove(&submission_key(batch));
                    rows.remove(&key(b'a', &[e.account.as_bytes(), batch.as_bytes()]));
                }
                Ok(())
            }
            Event::TasksOpened(e) => {
                for (_, job) in e.tasks() {
                    rows.put(&task_key(job), TaskRow { state: Some(JobState::Queued), ..TaskRow::default() });
                }
                rows.update::<BatchRow>(&row_key(e.batch), |row| row.apply(recorded, event, None))
            }
            Event::BatchClosed(e) => rows.update::<BatchRow>(&row_key(e.batch), |row| row.apply(recorded, event, None)),
            _ => apply_to_task(rows, recorded, event),
        }
    }
}

/// Applies an event of a job, if the job is a task.
fn apply_to_task(rows: &mut WriteBatch<'_>, recorded: &Recorded, event: &Event) -> Result<(), StoreError> {
    let Some((batch, _)) = event.job().and_then(BatchId::of_task) else { return Ok(()) };
    let Some(job) = event.job() else { return Ok(()) };
    let mut change = None;
    rows.update::<TaskRow>(&task_key(job), |task| {
        let before = task.state;
        task.apply(recorded.at, event);
        change = before.zip(task.state);
    })?;
    if change.is_none() {
        return Ok(());
    }
    rows.update::<BatchRow>(&row_key(batch), |row| row.apply(recorded, event, change))
}

#[cfg(test)]
mod tests {
    use gpubnb_events::event::{BatchClosed, CloseReason};

    use super::*;
    use crate::testing::{COST, HOLD, History, account, batch, machine};

    fn view(history: &History) -> BatchView {
        get(&history.fold(&Batches), batch(1)).unwrap().unwrap().into()
    }

    fn task_id(number: u32) -> JobId {
        batch(1).task(number).unwrap()
    }

    #[test]
    fn a_batch_counts_its_tasks_and_what_they_cost() {
        let mut history = History::default();
        history.batch_submitted(account(1), batch(1), 3);
        assert_eq!((view(&history).counts.waiting, view(&history).held), (3, MicroUsd(HOLD.0 * 3)));
        history.tasks_opened(batch(1), 0, 2);
        let lease = history.assigned(task_id(0), machine(1));
        assert_eq!((view(&history).counts.waiting, view(&history).counts.running), (2, 1));
        history.completed(task_id(0), lease);
        history.settled(task_id(0), account(1), Some((account(2), lease)));
        let settled = view(&history);
        assert_eq!((settled.counts.completed, settled.cost, settled.settled), (1, COST, 1));
        assert_eq!((settled.held, settled.state_name()), (MicroUsd(HOLD.0 * 2), "Running"));
        let (reason, account) = (CloseReason::Cancelled, account(1));
        let closed = BatchClosed { batch: batch(1), submission: Seq(1), reason, opened: 2, account, released: HOLD };
        history.record(closed);
        let closed = view(&history);
        assert_eq!((closed.counts.waiting, closed.counts.cancelled, closed.state_name()), (1, 1, "Stopping"));
        history.cancelled(task_id(1), None);
        history.settled(task_id(1), account, None);
        let over = view(&history);
        assert_eq!((over.counts.cancelled, over.held, over.state_name()), (2, MicroUsd::ZERO, "Cancelled"));
        let table = history.fold(&Batches);
        let stored = get(&table, batch(1)).unwrap().unwrap();
        let states = states(&table, &stored).unwrap();
        assert_eq!(states, [JobState::Completed, JobState::Cancelled, JobState::Cancelled]);
        let first = task(&table, &stored, 0).unwrap().unwrap();
        assert_eq!((first.cost, first.machine, first.settled), (Some(COST), Some(machine(1)), true));
        assert!(task(&table, &stored, 3).unwrap().is_none());
    }

    #[test]
    fn a_job_that_is_no_task_changes_no_batch() {
        let mut history = History::default();
        history.whole_job(crate::testing::job(1), account(1), (account(2), machine(1)));
        assert_eq!(history.fold(&Batches).scan_prefix(b"").count(), 0);
    }
}
