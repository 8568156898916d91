//! Jobs as people see them, and by account and machine.

use gpubnb_events::{
    AccountId, Event, JobId, Lease, MachineId, Recorded, Timestamp,
    event::{Fault, JobAssigned, JobSubmitted, Reason},
};
use gpubnb_query::view::{JobState, Outcome};
use gpubnb_store::{self, StoreError, Table, WriteBatch};

use super::rows::{AttemptRow, JobRow};
use super::{Projection, job_key, key};

/// `j<job>` → row; `a<account><job>`, `m<machine><job>` and, until it is settled, `u<job>` → nothing, for lists.
pub struct Jobs;

const ROW: u8 = b'j';

/// Key of a job's row.
pub fn row_key(job: JobId) -> Vec<u8> {
    job_key(ROW, job)
}

/// Prefix of an account's jobs.
pub fn of_account(account: AccountId) -> Vec<u8> {
    key(b'a', &[account.as_bytes()])
}

/// Prefix of a machine's jobs.
pub fn of_machine(machine: MachineId) -> Vec<u8> {
    key(b'm', &[machine.as_bytes()])
}

/// Prefix of the jobs that are not settled.
pub const UNSETTLED: &[u8] = b"u";

/// The attempts at a machine, those of its newest jobs first.
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
            // The row's reason is of the attempt that ended last, if that ended badly.
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

    fn ends(&mut self, state: JobState, at: Timestamp) {
        self.state = state;
        self.ended_at = Some(at);
        self.ends_attempt(state.name());
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
            }
            Event::CancelRequested(_) => self.cancel_requested = true,
            Event::Completed(e) => {
                self.ends(JobState::Completed, recorded.at);
                self.reason = None;
                self.fault = None;
                self.outputs.clone_from(&e.outputs);
                self.signature.clone_from(&e.signature);
            }
            Event::Failed(e) => {
                self.ends(JobState::Failed, recorded.at);
                self.because(e.reason, e.fault, &e.detail);
                self.outputs.clone_from(&e.outputs);
                self.signature.clone_from(&e.signature);
            }
            Event::Cancelled(_) => self.ends(JobState::Cancelled, recorded.at),
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
        4
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
