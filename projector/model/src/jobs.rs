//! The model of jobs: a row for each job, and the lists of jobs by account and by machine.
//!
//! An *attempt* is one assignment of a job to a machine. The *lease* is the attempt's fencing token: the sequence of
//! its event `JobAssigned`. All reports of the attempt name the lease.

use gpubnb_events::{
    AccountId, BatchId, Event, JobId, Lease, MachineId, Recorded, Timestamp,
    event::{BatchSubmitted, Fault, JobAssigned, JobSubmitted, Reason, TasksOpened},
    spec::{Artifact, LeftOut},
};
use gpubnb_query::view::{AttemptOutcome, JobState};
use gpubnb_store::{self, StoreError, Table, WriteBatch};

use super::rows::{AttemptRow, JobRow};
use super::{Projection, job_key, key};

/// Rows: `j<job>` → [`JobRow`]; `b<batch>` → the event [`BatchSubmitted`], until the batch is closed. The lists of jobs
/// are keys without a value: `a<account><job>` (without tasks of batches), `m<machine><job>` and, until the job is
/// settled, `u<job>`.
pub struct Jobs;

const ROW_PREFIX: u8 = b'j';

/// The key of a job's row.
pub fn row_key(job: JobId) -> Vec<u8> {
    job_key(ROW_PREFIX, job)
}

/// The prefix of the list of an account's jobs.
pub fn account_jobs_prefix(account: AccountId) -> Vec<u8> {
    key(b'a', &[account.as_bytes()])
}

/// The prefix of the list of a machine's jobs.
pub fn machine_jobs_prefix(machine: MachineId) -> Vec<u8> {
    key(b'm', &[machine.as_bytes()])
}

/// The prefix of the list of jobs that are not settled.
pub const UNSETTLED_PREFIX: &[u8] = b"u";

/// The last attempts on a machine, newest first: at most `limit`, from the machine's `limit` newest jobs.
pub fn outcomes(table: &Table, machine: MachineId, limit: usize) -> Result<Vec<AttemptOutcome>, StoreError> {
    let prefix = machine_jobs_prefix(machine);
    let mut found = Vec::new();
    for key in table.scan_prefix(&prefix).keys().rev().take(limit) {
        let key = key?;
        let row: Option<JobRow> =
            gpubnb_store::get(table, &[&[ROW_PREFIX], key.get(prefix.len()..).unwrap_or_default()].concat())?;
        let Some(row) = row else { continue };
        let last = row.attempts.last().map(|attempt| attempt.lease);
        for attempt in row.attempts.iter().rev().filter(|attempt| attempt.machine == machine) {
            // The job's row has a reason and a fault for its last attempt only.
            let has_failed = matches!(attempt.ended.as_deref(), Some("Requeued" | "Failed"));
            let (reason, fault) =
                if has_failed && Some(attempt.lease) == last { (row.reason, row.fault) } else { (None, None) };
            let (lease, at, ended) = (attempt.lease, attempt.assigned_at, attempt.ended.clone());
            found.push(AttemptOutcome { lease, at, ended, reason, fault });
        }
    }
    found.sort_by_key(|outcome| std::cmp::Reverse(outcome.lease.0));
    found.truncate(limit);
    Ok(found)
}

fn new_job(e: &JobSubmitted, at: Timestamp) -> JobRow {
    JobRow {
        job: e.job,
        account: e.account,
        spec: e.spec.clone(),
        placement: e.placement.clone(),
        limits: e.limits.clone(),
        hold: e.hold,
        state: JobState::Queued,
        settled: false,
        cancel_requested: false,
        reason: None,
        fault: None,
        detail: String::new(),
        attempts: Vec::new(),
        outputs: Vec::new(),
        left_out: Vec::new(),
        traffic: None,
        signature: None,
        log: None,
        submitted_at: at,
        started_at: None,
        exited_at: None,
        retry_at: None,
        ended_at: None,
        cost: None,
        fee: None,
        earned: None,
        seq: gpubnb_events::Seq::ZERO,
    }
}

fn new_attempt(e: &JobAssigned, lease: Lease, at: Timestamp) -> AttemptRow {
    AttemptRow {
        lease,
        machine: e.machine,
        terms: e.terms.clone(),
        placement: e.placement.clone(),
        assigned_at: at,
        image_digest: None,
        ended: None,
    }
}

impl JobRow {
    /// Ends the last attempt. `event` is the name of the event that ended it.
    fn end_attempt(&mut self, event: &str) {
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.ended = Some(event.to_owned());
        }
    }

    /// Ends the job, and the attempt if the event names its lease.
    fn end(&mut self, state: JobState, lease: Option<Lease>, at: Timestamp) {
        self.state = state;
        self.ended_at = Some(at);
        self.retry_at = None;
        if self.attempts.last().is_some_and(|attempt| Some(attempt.lease) == lease) {
            self.end_attempt(state.name());
        }
    }

    /// Keeps the list of files that the job left.
    fn keep_files(&mut self, outputs: &[Artifact], left_out: &[LeftOut], signature: Option<&String>) {
        outputs.clone_into(&mut self.outputs);
        left_out.clone_into(&mut self.left_out);
        self.signature = signature.cloned();
    }

    fn set_failure(&mut self, reason: Reason, fault: Fault, detail: &str) {
        self.reason = Some(reason);
        self.fault = Some(fault);
        detail.clone_into(&mut self.detail);
    }

    fn apply(&mut self, recorded: &Recorded, event: &Event) {
        self.seq = recorded.seq;
        match event {
            Event::JobAssigned(e) => {
                self.attempts.push(new_attempt(e, Lease(recorded.seq), recorded.at));
                self.state = JobState::Assigned;
                self.retry_at = None;
            }
            Event::Declined(_) => {
                self.end_attempt("Declined");
                self.state = JobState::Queued;
            }
            Event::Accepted(_) => self.state = JobState::Accepted,
            Event::Started(e) => {
                self.state = JobState::Running;
                self.started_at = Some(recorded.at);
                if let Some(attempt) = self.attempts.last_mut() {
                    attempt.image_digest = Some(e.image_digest.clone());
                }
            }
            Event::Requeued(e) => {
                self.end_attempt("Requeued");
                self.set_failure(e.reason, e.fault, &e.detail);
                self.state = JobState::Queued;
                self.started_at = None;
                self.exited_at = None;
                self.retry_at = e.until;
            }
            Event::Exited(_) => {
                self.state = JobState::Collecting;
                self.exited_at = Some(recorded.at);
            }
            Event::CancelRequested(_) => self.cancel_requested = true,
            Event::Completed(e) => {
                self.end(JobState::Completed, Some(e.lease), recorded.at);
                self.reason = None;
                self.fault = None;
                self.detail.clear();
                self.keep_files(&e.outputs, &e.left_out, e.signature.as_ref());
                self.traffic.clone_from(&e.traffic);
                self.log.clone_from(&e.log);
            }
            Event::Failed(e) => {
                self.end(JobState::Failed, e.lease, recorded.at);
                self.set_failure(e.reason, e.fault, &e.detail);
                self.keep_files(&e.outputs, &e.left_out, e.signature.as_ref());
                self.traffic.clone_from(&e.traffic);
                self.log.clone_from(&e.log);
            }
            Event::Cancelled(e) => {
                self.end(JobState::Cancelled, e.lease, recorded.at);
                self.keep_files(&e.outputs, &e.left_out, e.signature.as_ref());
                self.traffic.clone_from(&e.traffic);
                self.log.clone_from(&e.log);
            }
            Event::Settled(e) => {
                self.settled = true;
                self.cost = Some(e.cost);
                self.fee = Some(e.fee);
                self.earned = Some(e.earned);
            }
            _ => {}
        }
    }
}

fn batch_key(batch: BatchId) -> Vec<u8> {
    key(b'b', &[batch.as_bytes()])
}

fn add_job(rows: &mut WriteBatch<'_>, recorded: &Recorded, e: &JobSubmitted) {
    let mut row = new_job(e, recorded.at);
    row.seq = recorded.seq;
    rows.put(&row_key(e.job), row);
    rows.put_key(job_key(b'u', e.job));
}

/// Adds the tasks that were opened.
fn open_tasks(rows: &mut WriteBatch<'_>, recorded: &Recorded, opened: &TasksOpened) -> Result<(), StoreError> {
    let Some(batch) = rows.get::<BatchSubmitted>(&batch_key(opened.batch))? else { return Ok(()) };
    for (number, job) in opened.tasks() {
        let Some(spec) = batch.task_spec(number) else { continue };
        let (placement, limits) = (batch.placement.clone(), batch.limits.clone());
        let task = JobSubmitted { account: batch.account, job, spec, placement, limits, hold: batch.hold };
        add_job(rows, recorded, &task);
    }
    Ok(())
}

impl Projection for Jobs {
    fn name(&self) -> &'static str {
        "jobs"
    }

    fn version(&self) -> u32 {
        8
    }

    fn apply(&self, rows: &mut WriteBatch<'_>, recorded: &Recorded, event: &Event) -> Result<(), StoreError> {
        match event {
            // Only the first submission with a batch's id counts.
            Event::BatchSubmitted(e) if rows.get::<BatchSubmitted>(&batch_key(e.batch))?.is_none() => {
                rows.put(&batch_key(e.batch), e.clone());
            }
            Event::TasksOpened(e) => open_tasks(rows, recorded, e)?,
            Event::BatchClosed(e) => rows.remove(&batch_key(e.batch)),
            _ => {}
        }
        let Some(job) = event.job() else { return Ok(()) };
        let key_of_row = row_key(job);
        if let Event::JobSubmitted(e) = event {
            // Only the first submission with a job's id counts (docs/adr/0003).
            let batch = BatchId::of_task(job).map(|(batch, _)| batch_key(batch));
            let is_taken = match batch {
                Some(batch) => rows.get::<BatchSubmitted>(&batch)?.is_some(),
                None => false,
            };
            if !is_taken && rows.get::<JobRow>(&key_of_row)?.is_none() {
                add_job(rows, recorded, e);
                rows.put_key(key(b'a', &[e.account.as_bytes(), job.as_bytes()]));
            }
            return Ok(());
        }
        if let Event::JobAssigned(e) = event {
            rows.put_key(key(b'm', &[e.machine.as_bytes(), job.as_bytes()]));
        }
        if matches!(event, Event::Settled(_)) {
            rows.remove(&job_key(b'u', job));
        }
        rows.update::<JobRow>(&key_of_row, |row| row.apply(recorded, event))
    }
}

#[cfg(test)]
mod tests {
    use gpubnb_events::{Seq, event::CancelRequested};

    use super::*;
    use crate::testing::{COST, EARNED, FEE, HOLD, History, account, batch, job, machine};

    fn row(table: &Table) -> JobRow {
        gpubnb_store::get(table, &row_key(job(1))).unwrap().unwrap()
    }

    fn fold(history: &History) -> JobRow {
        row(&history.fold(&Jobs))
    }

    fn listed(table: &Table, prefix: impl AsRef<[u8]>) -> usize {
        table.scan_prefix(prefix).count()
    }

    #[test]
    fn a_submitted_job_is_queued_and_listed_for_its_account() {
        let mut history = History::default();
        let seq = history.submitted(account(1), job(1));
        let table = history.fold(&Jobs);
        let job = row(&table);
        assert_eq!((job.state, job.account, job.hold, job.seq), (JobState::Queued, account(1), HOLD, seq));
        assert_eq!(job.submitted_at, history.last().at);
        assert_eq!((listed(&table, account_jobs_prefix(account(1))), listed(&table, UNSETTLED_PREFIX)), (1, 1));
        assert_eq!(
            (listed(&table, account_jobs_prefix(account(2))), listed(&table, machine_jobs_prefix(machine(1)))),
            (0, 0)
        );
    }

    #[test]
    fn a_task_is_a_job_when_it_is_opened_and_is_not_in_the_list_of_its_account() {
        let mut history = History::default();
        history.batch_submitted(account(1), batch(1), 3);
        let seq = history.tasks_opened(batch(1), 0, 2);
        let table = history.fold(&Jobs);
        assert_eq!((listed(&table, [ROW_PREFIX]), listed(&table, UNSETTLED_PREFIX)), (2, 2));
        assert_eq!(listed(&table, account_jobs_prefix(account(1))), 0);
        let task: JobRow = gpubnb_store::get(&table, &row_key(batch(1).task(1).unwrap())).unwrap().unwrap();
        let of = task.spec.task.unwrap();
        assert_eq!((task.seq, task.hold, of.batch, of.index, of.tasks), (seq, HOLD, batch(1), 1, 3));
    }

    #[test]
    fn a_second_submission_with_the_same_id_is_ignored() {
        let mut history = History::default();
        let first = history.submitted(account(1), job(1));
        history.submitted_with(account(2), job(1), |e| e.spec.name = "another".to_owned());
        let table = history.fold(&Jobs);
        let job = row(&table);
        assert_eq!((job.account, job.spec.name.as_str(), job.seq), (account(1), "train", first));
        assert_eq!(listed(&table, account_jobs_prefix(account(2))), 0);
    }

    #[test]
    fn an_event_of_an_unknown_job_adds_no_row() {
        let mut history = History::default();
        history.accepted(job(1), Lease(Seq(1)));
        let table = history.fold(&Jobs);
        assert_eq!(listed(&table, [ROW_PREFIX]), 0);
    }

    #[test]
    fn an_attempt_is_assigned_then_accepted_then_started() {
        let mut history = History::default();
        history.submitted(account(1), job(1));
        let lease = history.assigned(job(1), machine(1));
        assert_eq!(fold(&history).state, JobState::Assigned);
        history.accepted(job(1), lease);
        assert_eq!(fold(&history).state, JobState::Accepted);
        history.started(job(1), lease);
        let table = history.fold(&Jobs);
        let job = row(&table);
        assert_eq!((job.state, job.started_at), (JobState::Running, Some(history.last().at)));
        let [attempt] = &job.attempts[..] else { panic!("{:?}", job.attempts) };
        assert_eq!((attempt.lease, attempt.machine, &attempt.ended), (lease, machine(1), &None));
        assert!(attempt.image_digest.is_some());
        assert_eq!(listed(&table, machine_jobs_prefix(machine(1))), 1);
    }

    #[test]
    fn a_declined_job_is_queued_again_without_a_fault() {
        let mut history = History::default();
        history.submitted(account(1), job(1));
        let lease = history.assigned(job(1), machine(1));
        history.declined(job(1), lease, machine(1));
        let job = fold(&history);
        assert_eq!((job.state, job.reason, job.fault), (JobState::Queued, None, None));
        assert_eq!(job.attempts[0].ended.as_deref(), Some("Declined"));
    }

    #[test]
    fn a_requeued_job_is_queued_again_with_the_reason() {
        let mut history = History::default();
        history.submitted(account(1), job(1));
        let lease = history.assigned(job(1), machine(1));
        history.started(job(1), lease);
        history.requeued(job(1), lease, machine(1), Reason::GpuLost);
        let job = fold(&history);
        assert_eq!((job.state, job.started_at, job.ended_at), (JobState::Queued, None, None));
        assert_eq!((job.reason, job.fault), (Some(Reason::GpuLost), Some(Fault::Provider)));
        assert_eq!((job.detail.as_str(), job.attempts[0].ended.as_deref()), ("requeued", Some("Requeued")));
    }

    #[test]
    fn a_completed_second_attempt_clears_the_reason_of_the_first() {
        let mut history = History::default();
        history.submitted(account(1), job(1));
        let first = history.assigned(job(1), machine(1));
        history.requeued(job(1), first, machine(1), Reason::ProviderLost);
        let second = history.assigned(job(1), machine(2));
        history.started(job(1), second);
        history.completed(job(1), second);
        let table = history.fold(&Jobs);
        let job = row(&table);
        assert_eq!((job.state, job.reason, job.fault), (JobState::Completed, None, None));
        assert_eq!((job.ended_at, job.outputs.len()), (Some(history.last().at), 1));
        let ended: Vec<_> = job.attempts.iter().map(|a| (a.machine, a.ended.as_deref())).collect();
        assert_eq!(ended, [(machine(1), Some("Requeued")), (machine(2), Some("Completed"))]);
        assert_eq!(
            (listed(&table, machine_jobs_prefix(machine(1))), listed(&table, machine_jobs_prefix(machine(2)))),
            (1, 1)
        );
    }

    #[test]
    fn a_failed_job_keeps_its_reason_and_its_files() {
        let mut history = History::default();
        history.submitted(account(1), job(1));
        let lease = history.assigned(job(1), machine(1));
        history.failed(job(1), Some(lease), Reason::NonZeroExit { code: 3 });
        let job = fold(&history);
        assert_eq!((job.state, job.reason), (JobState::Failed, Some(Reason::NonZeroExit { code: 3 })));
        assert_eq!((job.fault, job.outputs.len()), (Some(Fault::Consumer), 1));
        assert_eq!(job.attempts[0].ended.as_deref(), Some("Failed"));
    }

    #[test]
    fn a_job_that_found_no_machine_has_no_attempt() {
        let mut history = History::default();
        history.submitted(account(1), job(1));
        history.failed(job(1), None, Reason::NoMachine);
        let job = fold(&history);
        assert_eq!((job.state, job.attempts.len()), (JobState::Failed, 0));
        assert_eq!((job.reason, job.fault), (Some(Reason::NoMachine), Some(Fault::Platform)));
    }

    #[test]
    fn a_requested_cancellation_is_shown_before_the_job_is_cancelled() {
        let mut history = History::default();
        history.submitted(account(1), job(1));
        let lease = history.assigned(job(1), machine(1));
        history.record(CancelRequested { job: job(1) });
        let asked = fold(&history);
        assert_eq!((asked.state, asked.cancel_requested), (JobState::Assigned, true));
        history.cancelled(job(1), Some(lease));
        let job = fold(&history);
        assert_eq!((job.state, job.ended_at), (JobState::Cancelled, Some(history.last().at)));
    }

    #[test]
    fn a_settled_job_has_its_cost_and_leaves_the_unsettled_list() {
        let mut history = History::default();
        history.whole_job(job(1), account(1), (account(2), machine(1)));
        let table = history.fold(&Jobs);
        let job = row(&table);
        assert_eq!((job.settled, job.state), (true, JobState::Completed));
        assert_eq!((job.cost, job.fee, job.earned), (Some(COST), Some(FEE), Some(EARNED)));
        assert_eq!((listed(&table, UNSETTLED_PREFIX), listed(&table, account_jobs_prefix(account(1)))), (0, 1));
    }

    #[test]
    fn outcomes_are_the_newest_attempts_on_a_machine() {
        let mut history = History::default();
        history.submitted(account(1), job(1));
        history.submitted(account(1), job(2));
        let lost = history.assigned(job(1), machine(1));
        history.requeued(job(1), lost, machine(1), Reason::ProviderLost);
        let elsewhere = history.assigned(job(1), machine(2));
        history.completed(job(1), elsewhere);
        let failed = history.assigned(job(2), machine(1));
        history.failed(job(2), Some(failed), Reason::GpuLost);
        let table = history.fold(&Jobs);
        let newest_outcomes = |limit| {
            let found = outcomes(&table, machine(1), limit).unwrap();
            found.into_iter().map(|o| (o.lease, o.ended.unwrap_or_default(), o.reason)).collect::<Vec<_>>()
        };
        let newest = (failed, "Failed".to_owned(), Some(Reason::GpuLost));
        // The row of job 1 has the reason of its last attempt only, and that attempt was on machine 2.
        assert_eq!(newest_outcomes(20), [newest.clone(), (lost, "Requeued".to_owned(), None)]);
        assert_eq!(newest_outcomes(1), [newest]);
        assert!(outcomes(&table, machine(3), 20).unwrap().is_empty());
    }
}
