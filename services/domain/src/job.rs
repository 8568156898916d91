//! A job: `Queued → Assigned → Accepted → Running → Collecting → Ended → Settled`. A job may go back to `Queued` when a
//! machine declines it, or when an attempt ends by a fault of the machine or by nobody's fault.
//!
//! Every command of a machine must name the live lease. A command with another lease comes from an attempt that is
//! over, and is refused.

mod attempt_steps;
pub(crate) mod ending;

use std::collections::BTreeMap;

use gpubnb_events::{
    AccountId, Event, JobId, Lease, MachineId, MicroUsd, Seq, Timestamp,
    command::DesiredLeaseState,
    event::{BatchSubmitted, CancelRequested, Cancelled, Fault, JobAssigned, JobSubmitted, Requeued},
    message::{EventId, Proposal},
    spec::{JobSpec, Limits, Placement, PlacementExplanation, Terms, Usage},
};
use serde::{Deserialize, Serialize};

use super::{Decision, DomainError, Settings, daily_bytes};

use ending::uses_attempt;

/// The phase that a job is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// The job waits for a machine.
    Queued,
    /// The job was given to a machine, which has not accepted yet.
    Assigned,
    /// The machine accepted the job and prepares it.
    Accepted,
    /// The job's program runs.
    Running,
    /// The program has exited. The machine still uploads the files and the log.
    Collecting,
    /// The job ended, and is not settled yet.
    Ended,
    /// The job is billed.
    Settled,
}

impl Phase {
    /// True if a machine has the job.
    pub fn is_live(self) -> bool {
        matches!(self, Self::Assigned | Self::Accepted | Self::Running | Self::Collecting)
    }
}

/// One attempt to run the job on one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The sequence of `JobAssigned`, which the machine must name in every command.
    pub lease: Lease,
    /// The machine that has the job.
    pub machine: MachineId,
    /// The price and the fee. They are fixed at the assignment.
    pub terms: Terms,
    /// The sequence and the broker's time of `Started`; `None` before the program starts.
    pub started: Option<(Seq, Timestamp)>,
    /// The sequence and the broker's time of `Exited`, and the use that the machine measured.
    pub exited: Option<(Seq, Timestamp, Usage)>,
}

/// The end of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// The sequence of the event that ended the job.
    pub seq: Seq,
    /// The broker's time of that event.
    pub at: Timestamp,
    /// True if the consumer pays for the time of the last attempt.
    pub billed: bool,
    /// True if the job was cancelled. The consumer then pays for the time until the request to cancel.
    pub cancelled: bool,
    /// The run time that the worker measured; `None` if the worker did not report it.
    pub usage: Option<Usage>,
}

/// The state of one job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// The job's id.
    pub id: JobId,
    /// The account of the consumer who submitted the job.
    pub account: AccountId,
    /// The sequence of `JobSubmitted`; for a task, of `BatchSubmitted`.
    pub submission: Seq,
    /// The sequence of the event that made the job, which is its place in the queue: `JobSubmitted`, or `TasksOpened`.
    pub opened: Seq,
    /// The specification: the image, the command and the resources.
    pub spec: JobSpec,
    /// The conditions that a machine must meet, and the strategy that chooses among the machines.
    pub placement: Placement,
    /// The limits of time, budget and attempts.
    pub limits: Limits,
    /// The consumer's money that is held until the job is settled.
    pub hold: MicroUsd,
    /// The bytes of the submission's event. They count for the account until the job is paid for (`daily_bytes.rs`).
    pub(crate) unpaid_bytes: u64,
    /// The sequence of the job's last event. Zero before the first event. `JobSubmitted` does not count: it is an event
    /// of the account.
    pub last: Seq,
    /// The sequence of the last message on the job's subjects, which is the guard. Strays, the messages that are not
    /// valid events, count as well.
    pub(crate) guard: Seq,
    /// The phase that the job is in.
    pub phase: Phase,
    /// The broker's time of the last change of phase.
    pub since: Timestamp,
    /// The broker's time of the submission. For a task, the time at which it was opened, or, if the task was loaded
    /// from the log, the time at which its batch was submitted.
    pub submitted_at: Timestamp,
    /// The time from which the job's wait for a machine counts: the time of the submission, or of the end of the last
    /// attempt that was used up.
    pub waiting_since: Timestamp,
    /// The live attempt. After the end of the job, the last attempt.
    pub attempt: Option<Attempt>,
    /// Number of attempts after which the job was queued again. A decline does not count.
    pub attempts_used: u32,
    /// Machines that declined the job or failed at it. The job is not given to such a machine before this time. `None`
    /// means never, and comes only from old `Requeued` events without `until` (billing rule 1 in docs/events.md).
    pub avoid: BTreeMap<MachineId, Option<Timestamp>>,
    /// The job is given to no machine before this time, because an attempt ended by nobody's fault.
    pub not_before: Option<Timestamp>,
    /// Number of times that the job was queued again. Each time doubles the next pause.
    returns: u32,
    /// The sequence and the broker's time of the request to cancel; `None` without a request.
    pub cancel: Option<(Seq, Timestamp)>,
    /// The end of the job; `None` before.
    pub ending: Option<Ending>,
    /// The sequence of `Settled`; `None` before.
    pub settled: Option<Seq>,
    /// The leases of past attempts, each with the sequence of the event that ended the attempt.
    past: BTreeMap<Lease, Seq>,
}

impl Job {
    /// The state of a job right after its submission.
    pub fn from_submission(seq: Seq, at: Timestamp, e: &JobSubmitted) -> Self {
        Self {
            id: e.job,
            account: e.account,
            submission: seq,
            opened: seq,
            spec: e.spec.clone(),
            placement: e.placement.clone(),
            limits: e.limits.clone(),
            hold: e.hold,
            unpaid_bytes: daily_bytes::size_of(e),
            last: Seq::ZERO,
            guard: Seq::ZERO,
            phase: Phase::Queued,
            since: at,
            submitted_at: at,
            waiting_since: at,
            attempt: None,
            attempts_used: 0,
            avoid: BTreeMap::new(),
            not_before: None,
            returns: 0,
            cancel: None,
            ending: None,
            settled: None,
            past: BTreeMap::new(),
        }
    }

    /// The state of a task right after it was opened. `opened` is the sequence and the broker's time of `TasksOpened`,
    /// `submission` is the sequence of `BatchSubmitted`. `None` if the batch has no such task.
    pub fn of_task(opened: (Seq, Timestamp), submission: Seq, e: &BatchSubmitted, number: u32) -> Option<Self> {
        let submitted = JobSubmitted {
            account: e.account,
            job: e.batch.task(number)?,
            spec: e.task_spec(number)?,
            placement: e.placement.clone(),
            limits: e.limits.clone(),
            hold: e.hold,
        };
        let (seq, at) = opened;
        let unpaid_bytes = daily_bytes::OF_TASK;
        Some(Self { opened: seq, unpaid_bytes, ..Self::from_submission(submission, at, &submitted) })
    }

    /// The price per hour of the machine that has the job.
    pub(crate) fn running_price(&self) -> Option<MicroUsd> {
        self.attempt.as_ref().filter(|_| self.phase.is_live()).map(|attempt| attempt.terms.price.0)
    }

    /// The id under which the values of the job's environment are stored: tasks share those of their batch.
    pub fn environment_id(&self) -> JobId {
        self.spec.task.as_ref().map_or(self.id, |task| task.batch.as_job())
    }

    /// Proposes an event of this job. `cause` is the sequence of the event that led to it.
    pub(crate) fn propose(&self, event: impl Into<Event>, id: String, cause: Seq) -> Decision {
        Decision::Append(Proposal { event: event.into(), id: EventId(id), expected: self.guard, cause: Some(cause) })
    }

    /// Gives the waiting job to a machine.
    pub(crate) fn assign(
        &self,
        machine: MachineId,
        terms: Terms,
        placement: PlacementExplanation,
    ) -> Result<Decision, DomainError> {
        if self.phase != Phase::Queued {
            return Err(DomainError::WrongState("The job does not wait for a machine."));
        }
        let attempt = self.attempts_used + 1;
        let event = JobAssigned { job: self.id, submission: self.submission, machine, terms, placement, attempt };
        let cause = if self.last == Seq::ZERO { self.submission } else { self.last };
        Ok(self.propose(event, format!("{}.assigned.{}.{machine}", self.id, self.last), cause))
    }

    /// Cancels the job. A job that no machine has accepted ends at once. Otherwise the machine is asked to stop the
    /// job.
    pub(crate) fn cancel(&self) -> Result<Decision, DomainError> {
        let ended = self.ending.as_ref().map(|e| (e.cancelled, e.seq));
        match (self.phase, self.cancel, ended) {
            (_, _, Some((true, seq))) | (_, Some((seq, _)), None) => Ok(Decision::AlreadyDone(seq)),
            (_, _, Some(_)) => Err(DomainError::WrongState("The job has already ended.")),
            (Phase::Queued | Phase::Assigned, _, None) => {
                let lease = self.attempt.as_ref().map(|a| a.lease);
                let event = Cancelled::unreported(self.id, lease);
                Ok(self.propose(event, format!("{}.cancelled", self.id), self.last_event()))
            }
            (Phase::Collecting, _, None) => {
                Err(DomainError::WrongState("The job's program has ended. Only its files are still being uploaded."))
            }
            _ => Ok(self.propose(CancelRequested { job: self.id }, format!("{}.cancel", self.id), self.last_event())),
        }
    }

    /// The sequence of the last event about the job, including its submission.
    fn last_event(&self) -> Seq {
        self.last.max(self.submission)
    }

    /// The state that the platform wants of the attempt with this lease on this machine: keep it, cancel it, or abandon
    /// it.
    pub fn desired_lease_state(&self, machine: MachineId, lease: Lease) -> DesiredLeaseState {
        match self.live_attempt(machine, lease) {
            Err(_) => DesiredLeaseState::Abandon,
            Ok(_) if self.cancel.is_some() => DesiredLeaseState::Cancel,
            Ok(_) => DesiredLeaseState::Keep,
        }
    }

    /// Folds one of the job's own events.
    pub(crate) fn apply(&mut self, seq: Seq, at: Timestamp, event: &Event, settings: &Settings) {
        self.last = seq;
        self.guard = seq;
        match event {
            Event::JobAssigned(e) => {
                self.attempt = Some(Attempt {
                    lease: Lease(seq),
                    machine: e.machine,
                    terms: e.terms.clone(),
                    started: None,
                    exited: None,
                });
                self.enter(Phase::Assigned, at);
            }
            Event::Declined(e) => {
                self.past.insert(e.lease, seq);
                self.avoid.insert(e.machine, Some(at.plus(self.pause(settings))));
                self.returns = self.returns.saturating_add(1);
                self.attempt = None;
                self.enter(Phase::Queued, at);
            }
            Event::Accepted(_) => self.enter(Phase::Accepted, at),
            Event::Started(_) => {
                if let Some(attempt) = &mut self.attempt {
                    attempt.started = Some((seq, at));
                }
                self.enter(Phase::Running, at);
            }
            Event::Exited(e) => {
                if let Some(attempt) = &mut self.attempt {
                    attempt.exited = Some((seq, at, e.usage));
                }
                self.enter(Phase::Collecting, at);
            }
            Event::Requeued(e) => self.requeue(seq, at, e, settings),
            Event::CancelRequested(_) => self.cancel = Some((seq, at)),
            Event::Completed(e) => self.end(seq, at, true, Some(e.usage)),
            Event::Failed(e) => self.end(seq, at, e.fault == Fault::Consumer, e.usage),
            Event::Cancelled(e) => {
                self.end(seq, at, true, e.usage);
                if let Some(ending) = &mut self.ending {
                    ending.cancelled = true;
                }
            }
            Event::Settled(_) => {
                self.settled = Some(seq);
                self.enter(Phase::Settled, at);
            }
            _ => {}
        }
    }

    /// Queues the job again, with a pause.
    fn requeue(&mut self, seq: Seq, at: Timestamp, e: &Requeued, settings: &Settings) {
        self.past.insert(e.lease, seq);
        if e.fault == Fault::Nobody {
            self.not_before = e.until;
        } else {
            // After an old event without `until` (billing rule 1), the machine got the job again only if the consumer
            // had named the machine.
            let is_named = self.placement.requirements.machine.is_some();
            self.avoid.insert(e.excluded, e.until.or_else(|| is_named.then(|| at.plus(settings.decline_pause))));
        }
        let is_used = self.attempt.as_ref().is_none_or(|attempt| uses_attempt(attempt, e.fault));
        self.attempts_used += u32::from(is_used);
        if is_used && e.until.is_some() {
            self.waiting_since = at;
        }
        // An old event without `until` (billing rule 1) did not double the next pause.
        self.returns = self.returns.saturating_add(u32::from(e.until.is_some()));
        self.attempt = None;
        self.enter(Phase::Queued, at);
    }

    /// Changes the phase.
    fn enter(&mut self, phase: Phase, at: Timestamp) {
        self.phase = phase;
        self.since = at;
    }

    /// Ends the job, and the attempt if there is one.
    fn end(&mut self, seq: Seq, at: Timestamp, billed: bool, usage: Option<Usage>) {
        if let Some(attempt) = &self.attempt {
            self.past.insert(attempt.lease, seq);
        }
        self.ending = Some(Ending { seq, at, billed, cancelled: false, usage });
        self.enter(Phase::Ended, at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Command, testing::*};
    use gpubnb_events::{
        Actor, Millis,
        command::{Decline, Outcome, Report, Start},
        event::Reason,
        spec::{Artifact, LeftOut, LeftOutReason},
    };

    #[test]
    fn a_job_passes_through_its_phases_and_leaves_memory_when_settled() {
        let mut market = given();
        let (job, lease) = market.start_default();
        market.complete(job, lease, Millis(1_000));
        assert_eq!(market.job(job).phase, Phase::Ended);
        market.when(Actor::Platform, Command::Settle(job)).expect_appended();
        assert!(market.world.job(job).is_none(), "a settled job leaves memory");
    }

    #[test]
    fn a_job_must_be_accepted_before_it_starts_and_started_before_it_completes() {
        let mut market = given();
        let job = market.submit_default();
        let lease = market.assign(job);
        let start = Command::Start(market.machine, Start { job, lease, image_digest: String::new() });
        assert!(matches!(market.when(market.as_machine(), start).expect_refused(), DomainError::WrongState(_)));
        market.accept(job, lease);
        let report = market.report(job, lease, Outcome::Completed);
        assert!(matches!(market.when(market.as_machine(), report).expect_refused(), DomainError::WrongState(_)));
    }

    #[test]
    fn a_stale_lease_is_refused_and_a_repeated_report_returns_the_first_event() {
        let mut market = given();
        let job = market.submit_default();
        let first = market.assign(job);
        market.accept(job, first);
        let preempted = Outcome::Failed { reason: Reason::Preempted, detail: String::new() };
        let report = market.report(job, first, preempted);
        let seq = market.when(market.as_machine(), report.clone()).expect_appended();
        assert_eq!(market.when(market.as_machine(), report).expect_already_done(), seq);
        market.advance_time(Millis(10_000));
        let second = market.assign(job);
        assert!(second > first);
        let start = Command::Start(market.machine, Start { job, lease: first, image_digest: String::new() });
        assert_eq!(market.when(market.as_machine(), start).expect_refused(), DomainError::StaleLease);
    }

    #[test]
    fn a_provider_fault_requeues_the_job_until_no_attempt_is_left() {
        let mut market = given();
        let job = market.submit_default();
        for attempt in 1..=2 {
            let lease = market.assign(job);
            market.accept(job, lease);
            market.start(job, lease);
            let lost = market.report(job, lease, Outcome::Failed { reason: Reason::GpuLost, detail: String::new() });
            market.when(market.as_machine(), lost).expect_appended();
            let expected = if attempt == 2 { Phase::Ended } else { Phase::Queued };
            assert_eq!(market.job(job).phase, expected);
            market.advance_time(Millis(10_000));
        }
        assert!(!market.job(job).ending.clone().is_some_and(|e| e.billed));
    }

    #[test]
    fn a_decline_does_not_count_as_an_attempt() {
        let mut market = given();
        let job = market.submit_default();
        let lease = market.assign(job);
        let decline = Decline { job, lease, reason: gpubnb_events::event::DeclineReason::NoFreeSlot };
        market.when(market.as_machine(), Command::Decline(market.machine, decline)).expect_appended();
        assert_eq!(market.when(Actor::Platform, Command::Assign(job)).expect_refused(), DomainError::NoMachineNow);
        market.advance_time(Millis(6_000));
        market.assign(job);
        assert_eq!(market.job(job).attempts_used, 0);
    }

    #[test]
    fn cancel_ends_a_waiting_job_at_once_and_asks_the_machine_of_a_running_job() {
        let mut market = given();
        let waiting = market.submit_default();
        market.when(market.as_consumer(), Command::Cancel(waiting)).expect_appended();
        assert_eq!(market.job(waiting).phase, Phase::Ended);

        let running = market.submit_default();
        let lease = market.assign(running);
        market.accept(running, lease);
        market.start(running, lease);
        let asked = market.when(market.as_consumer(), Command::Cancel(running)).expect_appended();
        assert_eq!(market.when(market.as_consumer(), Command::Cancel(running)).expect_already_done(), asked);
        assert_eq!(market.job(running).desired_lease_state(market.machine, lease), DesiredLeaseState::Cancel);
        market.advance_time(Millis(60_000));
        market.when(Actor::Platform, Command::Expire(running)).expect_appended();
        assert!(market.job(running).ending.clone().is_some_and(|e| e.cancelled));
        let late = market.report(running, lease, Outcome::Completed);
        market.when(market.as_machine(), late).expect_already_done();
    }

    #[test]
    fn a_cancelled_job_keeps_the_files_that_it_had_written() {
        let mut market = given();
        let (job, lease) = market.start_default();
        market.when(market.as_consumer(), Command::Cancel(job)).expect_appended();
        let Command::Report(machine, report) = market.report(job, lease, Outcome::Cancelled) else { unreachable!() };
        let file = Artifact { path: "checkpoint.pt".to_owned(), bytes: 3, sha256: "0".repeat(64) };
        let twice = Report { outputs: vec![file.clone(), file.clone()], ..report.clone() };
        let refused = market.when(market.as_machine(), Command::Report(machine, twice)).expect_refused();
        assert!(matches!(refused, DomainError::InvalidField { field: "outputs", .. }));
        let left_out = LeftOut { reason: LeftOutReason::NotAFile, entries: 2, example: "link".to_owned() };
        let report = Report { outputs: vec![file.clone()], left_out: vec![left_out.clone()], ..report };
        market.when(market.as_machine(), Command::Report(machine, report)).expect_appended();
        let Event::Cancelled(event) = market.last_event() else { panic!("{:?}", market.last_event()) };
        assert_eq!((&event.outputs[..], &event.left_out[..]), (&[file][..], &[left_out][..]));
    }

    #[test]
    fn cancelling_the_job_of_another_account_answers_unknown_job() {
        let mut market = given();
        let job = market.submit_default();
        assert_eq!(market.when(market.as_provider(), Command::Cancel(job)).expect_refused(), DomainError::UnknownJob);
    }

    #[test]
    fn a_machine_may_not_report_for_another_machine_or_give_a_reason_of_the_platform() {
        let mut market = given();
        let job = market.submit_default();
        let lease = market.assign(job);
        market.accept(job, lease);
        let other = Actor::Machine(MachineId::generate());
        let report = market.report(job, lease, Outcome::Completed);
        assert!(matches!(market.when(other, report).expect_refused(), DomainError::NotAllowed(_)));
        let claim = market.report(job, lease, Outcome::Failed { reason: Reason::NoMachine, detail: String::new() });
        assert!(matches!(market.when(market.as_machine(), claim).expect_refused(), DomainError::InvalidField { .. }));
    }
}
