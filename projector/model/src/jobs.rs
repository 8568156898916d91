//! Jobs as people see them, with lists by account and by machine.

use gpubnb_events::{
    AccountId, Event, JobId, Lease, MachineId, Recorded, Timestamp,
    event::{Fault, JobAssigned, JobSubmitted, Reason},
};
use gpubnb_query::view::{JobState, Outcome};
use gpubnb_store::{self, StoreError, Table, WriteBatch};

use super::rows::{AttemptRow, JobRow};
use super::{Projection, job_key, key};

/// `j<job>` → row. For the lists of jobs, keys without a value: `a<account><job>`, `m<machine><job>` and, until the job
/// is settled, `u<job>`.
pub struct Jobs;

const ROW: u8 = b'j';

/// The key of a job's row.
pub fn row_key(job: JobId) -> Vec<u8> {
    job_key(ROW, job)
}

/// The prefix of the list of an account's jobs.
pub fn of_account(account: AccountId) -> Vec<u8> {
    key(b'a', &[account.as_bytes()])
}

/// The prefix of the list of a machine's jobs.
pub fn of_machine(machine: MachineId) -> Vec<u8> {
    key(b'm', &[machine.as_bytes()])
}

/// The prefix of the list of jobs that are not settled.
pub const UNSETTLED: &[u8] = b"u";

/// The newest attempts at a machine, the newest first. Looks at the machine's newest `most` jobs only.
pub fn outcomes(table: &Table, machine: MachineId, most: usize) -> Result<Vec<Outcome>, StoreError> {
    let prefix = of_machine(machine);
    let mut found = Vec::new();
    for key in table.scan_prefix(&prefix).keys().rev().take(most) {
        let key = key?;
        let row: Option<JobRow> =
            gpubnb_store::get(table, &[&[ROW], key.get(prefix.len()..).unwrap_or_default()].concat())?;
        let Some(row) = row else { continue };
        let last = row.attempts.last().map(|attempt| attempt.lease);
        for attempt in row.attempts.iter().rev().filter(|attempt| attempt.machine == machine) {
            // A row has the reason of the job's last attempt only.
            let badly = matches!(attempt.ended.as_deref(), Some("Requeued" | "Failed"));
            let (reason, fault) =
                if badly && Some(attempt.lease) == last { (row.reason, row.fault) } else { (None, None) };
            let (lease, at, ended) = (attempt.lease, attempt.assigned_at, attempt.ended.clone());
            found.push(Outcome { lease, at, ended, reason, fault });
        }
    }
    found.sort_by_key(|outcome| std::cmp::Reverse(outcome.lease.0));
    found.truncate(most);
    Ok(found)
}

fn submitted(e: &JobSubmitted, at: Timestamp) -> JobRow {
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
        signature: None,
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

fn attempt(e: &JobAssigned, lease: Lease, at: Timestamp) -> AttemptRow {
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
    fn ends_attempt(&mut self, how: &str) {
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.ended = Some(how.to_owned());
        }
    }

    /// Ends the job, and the attempt if the ending names its lease.
    fn ends(&mut self, state: JobState, lease: Option<Lease>, at: Timestamp) {
        self.state = state;
        self.ended_at = Some(at);
        self.retry_at = None;
        if self.attempts.last().is_some_and(|attempt| Some(attempt.lease) == lease) {
            self.ends_attempt(state.name());
        }
    }

    fn because(&mut self, reason: Reason, fault: Fault, detail: &str) {
        self.reason = Some(reason);
        self.fault = Some(fault);
        detail.clone_into(&mut self.detail);
    }

    fn take_in(&mut self, recorded: &Recorded, event: &Event) {
        self.seq = recorded.seq;
        match event {
            Event::JobAssigned(e) => {
                self.attempts.push(attempt(e, Lease(recorded.seq), recorded.at));
                self.state = JobState::Assigned;
                self.retry_at = None;
            }
            Event::Declined(_) => {
                self.ends_attempt("Declined");
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
                self.ends_attempt("Requeued");
                self.because(e.reason, e.fault, &e.detail);
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
                self.ends(JobState::Completed, Some(e.lease), recorded.at);
                self.reason = None;
                self.fault = None;
                self.outputs.clone_from(&e.outputs);
                self.signature.clone_from(&e.signature);
            }
            Event::Failed(e) => {
                self.ends(JobState::Failed, e.lease, recorded.at);
                self.because(e.reason, e.fault, &e.detail);
                self.outputs.clone_from(&e.outputs);
                self.signature.clone_from(&e.signature);
            }
            Event::Cancelled(e) => self.ends(JobState::Cancelled, e.lease, recorded.at),
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

impl Projection for Jobs {
    fn name(&self) -> &'static str {
        "jobs"
    }

    fn version(&self) -> u32 {
        5
    }

    fn apply(&self, rows: &mut WriteBatch<'_>, recorded: &Recorded, event: &Event) -> Result<(), StoreError> {
        let Some(job) = event.job() else { return Ok(()) };
        let key_of_row = row_key(job);
        if let Event::JobSubmitted(e) = event {
            // The first submission of an id is the job (docs/adr/0003).
            if rows.get::<JobRow>(&key_of_row)?.is_none() {
                let mut row = submitted(e, recorded.at);
                row.seq = recorded.seq;
                rows.put(&key_of_row, row);
                rows.put_key(key(b'a', &[e.account.as_bytes(), job.as_bytes()]));
                rows.put_key(job_key(b'u', job));
            }
            return Ok(());
        }
        if let Event::JobAssigned(e) = event {
            rows.put_key(key(b'm', &[e.machine.as_bytes(), job.as_bytes()]));
        }
        if matches!(event, Event::Settled(_)) {
            rows.remove(&job_key(b'u', job));
        }
        rows.update::<JobRow>(&key_of_row, |row| row.take_in(recorded, event))
    }
}

#[cfg(test)]
mod tests {
    use gpubnb_events::{Seq, event::CancelRequested};

    use super::*;
    use crate::testing::{COST, EARNED, FEE, HOLD, History, account, job, machine};

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
    fn a_submitted_job_waits_and_is_in_its_accounts_list() {
        let mut history = History::default();
        let seq = history.submitted(account(1), job(1));
        let table = history.fold(&Jobs);
        let job = row(&table);
        assert_eq!((job.state, job.account, job.hold, job.seq), (JobState::Queued, account(1), HOLD, seq));
        assert_eq!(job.submitted_at, history.last().at);
        assert_eq!((listed(&table, of_account(account(1))), listed(&table, UNSETTLED)), (1, 1));
        assert_eq!((listed(&table, of_account(account(2))), listed(&table, of_machine(machine(1)))), (0, 0));
    }

    #[test]
    fn the_first_submission_of_an_id_is_the_job() {
        let mut history = History::default();
        let first = history.submitted(account(1), job(1));
        history.submitted_with(account(2), job(1), |e| e.spec.name = "another".to_owned());
        let table = history.fold(&Jobs);
        let job = row(&table);
        assert_eq!((job.account, job.spec.name.as_str(), job.seq), (account(1), "train", first));
        assert_eq!(listed(&table, of_account(account(2))), 0);
    }

    #[test]
    fn an_event_of_a_job_that_was_never_submitted_makes_no_row() {
        let mut history = History::default();
        history.accepted(job(1), Lease(Seq(1)));
        let table = history.fold(&Jobs);
        assert_eq!(listed(&table, [ROW]), 0);
    }

    #[test]
    fn an_attempt_goes_from_its_assignment_to_its_start() {
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
        assert_eq!(listed(&table, of_machine(machine(1))), 1);
    }

    #[test]
    fn a_declined_job_waits_again_and_nobody_is_at_fault() {
        let mut history = History::default();
        history.submitted(account(1), job(1));
        let lease = history.assigned(job(1), machine(1));
        history.declined(job(1), lease, machine(1));
        let job = fold(&history);
        assert_eq!((job.state, job.reason, job.fault), (JobState::Queued, None, None));
        assert_eq!(job.attempts[0].ended.as_deref(), Some("Declined"));
    }

    #[test]
    fn a_requeued_job_waits_again_and_says_why() {
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
    fn a_second_attempt_that_completes_clears_the_reason_of_the_first() {
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
        assert_eq!((listed(&table, of_machine(machine(1))), listed(&table, of_machine(machine(2)))), (1, 1));
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
    fn a_job_that_waited_in_vain_has_no_attempt() {
        let mut history = History::default();
        history.submitted(account(1), job(1));
        history.failed(job(1), None, Reason::NoMachine);
        let job = fold(&history);
        assert_eq!((job.state, job.attempts.len()), (JobState::Failed, 0));
        assert_eq!((job.reason, job.fault), (Some(Reason::NoMachine), Some(Fault::Platform)));
    }

    #[test]
    fn a_job_is_cancelled_after_that_was_asked_for() {
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
    fn a_settled_job_has_its_bill_and_leaves_the_unsettled_list() {
        let mut history = History::default();
        history.whole_job(job(1), account(1), (account(2), machine(1)));
        let table = history.fold(&Jobs);
        let job = row(&table);
        assert_eq!((job.settled, job.state), (true, JobState::Completed));
        assert_eq!((job.cost, job.fee, job.earned), (Some(COST), Some(FEE), Some(EARNED)));
        assert_eq!((listed(&table, UNSETTLED), listed(&table, of_account(account(1)))), (0, 1));
    }

    #[test]
    fn outcomes_are_the_newest_attempts_at_a_machine() {
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
        let of = |most| {
            let found = outcomes(&table, machine(1), most).unwrap();
            found.into_iter().map(|o| (o.lease, o.ended.unwrap_or_default(), o.reason)).collect::<Vec<_>>()
        };
        let newest = (failed, "Failed".to_owned(), Some(Reason::GpuLost));
        // The row of job 1 tells the reason of its last attempt only, which was elsewhere.
        assert_eq!(of(20), [newest.clone(), (lost, "Requeued".to_owned(), None)]);
        assert_eq!(of(1), [newest]);
        assert!(outcomes(&table, machine(3), 20).unwrap().is_empty());
    }
}
