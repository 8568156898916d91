//! A job: `Queued → Assigned → Accepted → Running → Collecting → Ended → Settled`. Every step of a machine must name the live lease.

use std::collections::BTreeMap;

use gpubnb_events::{
    AccountId, Event, JobId, Lease, MachineId, MicroUsd, Millis, Seq, Timestamp,
    command::{Accept, Decline, DesiredLease, Exit, Grant, Outcome, Report, Start},
    event::{
        Accepted, CancelRequested, Cancelled, Completed, Declined, Exited, Failed, Fault, JobAssigned, JobSubmitted,
        Reason, Requeued, Started,
    },
    message::{EventId, Proposal},
    spec::{JobSpec, Limits, Placement, PlacementExplanation, Terms, Usage},
};
use serde::{Deserialize, Serialize};

use super::{Decision, Refusal, Settings};

/// How often the pause after a decline doubles. The pauses keep a job from being declined so often that its messages
/// are too many to load.
const LONGEST_DOUBLING: u32 = 10;
/// How long a machine may prepare a job: pull the image and fetch the inputs.
const PREPARE_WITHIN: Millis = Millis(3_600_000);
/// How long after a job's limit its machine may be silent about the job although the machine itself is online.
const REPORT_WITHIN: Millis = Millis(300_000);
/// How long the files of a job whose program has ended may take to reach the market.
const UPLOAD_WITHIN: Millis = Millis(3_600_000);

/// The phase that a job is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// The job waits for a machine.
    Queued,
    /// The job was given to a machine, which has not accepted yet.
    Assigned,
    /// The machine accepted the job and prepares it.
    Accepted,
    /// The program runs.
    Running,
    /// The program has ended. The machine still carries away the files and the log.
    Collecting,
    /// The job ended, and is not settled yet.
    Ended,
    /// The job is billed.
    Settled,
}

/// An attempt: the lease, the machine and the price.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The fencing token.
    pub lease: Lease,
    /// The machine.
    pub machine: MachineId,
    /// The price and the fee, which no longer change.
    pub terms: Terms,
    /// The sequence and the broker's time of `Started`.
    pub started: Option<(Seq, Timestamp)>,
    /// The sequence and the broker's time of `Exited`, and the use that the machine measured.
    pub exited: Option<(Seq, Timestamp, Usage)>,
}

impl Attempt {
    /// The time that the job may run, and the reason that is given at its end: the time limit, or what the hold pays for
    /// if that is less.
    fn run_limit(&self, hold: MicroUsd, limits: &Limits) -> (Millis, Reason) {
        let time = limits.time.millis();
        match self.terms.price.time_for(hold) {
            Some(budget) if budget < time => (budget, Reason::BudgetExhausted),
            _ => (time, Reason::TimeLimit),
        }
    }
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// The sequence of the event that ended the job.
    pub seq: Seq,
    /// The broker's time of that event.
    pub at: Timestamp,
    /// True if the metered time is billed.
    pub billed: bool,
    /// True if the job was cancelled. The metered time then ends at the request.
    pub cancelled: bool,
    /// The use that the worker measured.
    pub usage: Option<Usage>,
}

/// State of one job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// The job.
    pub id: JobId,
    /// The consumer.
    pub account: AccountId,
    /// The sequence of `JobSubmitted`.
    pub submission: Seq,
    /// The specification: what to run.
    pub spec: JobSpec,
    /// The rule by which a machine is chosen.
    pub placement: Placement,
    /// The limits.
    pub limits: Limits,
    /// The money that is held.
    pub hold: MicroUsd,
    /// Last sequence of the job's own events. Zero before the first.
    pub last: Seq,
    /// Last message on the job's subjects, quarantined ones included, which is the guard.
    pub(crate) guard: Seq,
    /// The phase.
    pub phase: Phase,
    /// The broker's time of the last change of phase.
    pub since: Timestamp,
    /// The broker's time of the submission.
    pub submitted_at: Timestamp,
    /// The live attempt; after the end, the last one.
    pub attempt: Option<Attempt>,
    /// Attempts that were used up.
    pub attempts_used: u32,
    /// Machines that declined or lost the job, and until when the job is not given to them; `None`, by events of billing
    /// rule 1 only: never again.
    pub avoid: BTreeMap<MachineId, Option<Timestamp>>,
    /// The time before which no machine is given the job, after an attempt that ended by nobody's fault.
    pub not_before: Option<Timestamp>,
    /// How often the job came back without an end. Each time doubles the pause.
    returns: u32,
    /// The sequence and the broker's time of the request to cancel.
    pub cancel: Option<(Seq, Timestamp)>,
    /// The ending.
    pub ending: Option<Ending>,
    /// The sequence of `Settled`.
    pub settled: Option<Seq>,
    /// Past leases, each with the event that ended it.
    past: BTreeMap<Lease, Seq>,
}

impl Phase {
    /// True if a machine has the job.
    pub fn is_live(self) -> bool {
        matches!(self, Self::Assigned | Self::Accepted | Self::Running | Self::Collecting)
    }
}

impl Job {
    /// The job after its submission.
    pub fn submitted(seq: Seq, at: Timestamp, e: &JobSubmitted) -> Self {
        Self {
            id: e.job,
            account: e.account,
            submission: seq,
            spec: e.spec.clone(),
            placement: e.placement.clone(),
            limits: e.limits.clone(),
            hold: e.hold,
            last: Seq::ZERO,
            guard: Seq::ZERO,
            phase: Phase::Queued,
            since: at,
            submitted_at: at,
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

    /// A proposal on this job.
    pub(crate) fn propose(&self, event: impl Into<Event>, id: String, cause: Seq) -> Decision {
        Decision::Append(Proposal { event: event.into(), id: EventId(id), expected: self.guard, cause: Some(cause) })
    }

    /// The live attempt, if it is on this machine and has this lease.
    fn live(&self, machine: MachineId, lease: Lease) -> Result<&Attempt, Refusal> {
        let live = self.phase.is_live();
        self.attempt.as_ref().filter(|a| live && a.lease == lease && a.machine == machine).ok_or(Refusal::StaleLease)
    }

    /// Gives the job to a machine.
    pub(crate) fn assign(
        &self,
        machine: MachineId,
        terms: Terms,
        placement: PlacementExplanation,
    ) -> Result<Decision, Refusal> {
        if self.phase != Phase::Queued {
            return Err(Refusal::WrongState("The job does not wait for a machine."));
        }
        let attempt = self.attempts_used + 1;
        let event = JobAssigned { job: self.id, submission: self.submission, machine, terms, placement, attempt };
        let cause = if self.last == Seq::ZERO { self.submission } else { self.last };
        Ok(self.propose(event, format!("{}.assigned.{}.{machine}", self.id, self.last), cause))
    }

    /// The machine accepts the job.
    pub(crate) fn accept(&self, machine: MachineId, c: Accept) -> Result<Decision, Refusal> {
        self.live(machine, c.lease)?;
        if self.phase != Phase::Assigned {
            return Ok(Decision::Already(self.last));
        }
        Ok(self.propose(Accepted { job: self.id, lease: c.lease }, format!("{}.accepted", c.lease), c.lease.0))
    }

    /// The answer to a machine that accepts the job. The endpoint adds the permits and the secrets.
    pub fn grant(&self) -> Grant {
        Grant {
            spec: self.spec.clone(),
            time: self.limits.time.millis(),
            budget: self.attempt.as_ref().and_then(|a| a.terms.price.time_for(self.hold)),
            started: matches!(self.phase, Phase::Running | Phase::Collecting),
            upload: None,
            inputs: Vec::new(),
            env: None,
        }
    }

    /// The machine sends the job back.
    pub(crate) fn decline(&self, machine: MachineId, c: &Decline) -> Result<Decision, Refusal> {
        if let Some(seq) = self.past.get(&c.lease) {
            return Ok(Decision::Already(*seq));
        }
        self.live(machine, c.lease)?;
        if self.phase != Phase::Assigned {
            return Err(Refusal::WrongState("The job was accepted: report how it ended instead."));
        }
        let event = Declined { job: self.id, lease: c.lease, machine, reason: c.reason };
        Ok(self.propose(event, format!("{}.ended", c.lease), c.lease.0))
    }

    /// The container is about to start.
    pub(crate) fn start(&self, machine: MachineId, c: &Start) -> Result<Decision, Refusal> {
        let attempt = self.live(machine, c.lease)?;
        if self.cancel.is_some() {
            return Err(Refusal::WrongState("The job is being cancelled: do not start it."));
        }
        match (self.phase, attempt.started) {
            (_, Some((seq, _))) => Ok(Decision::Already(seq)),
            (Phase::Accepted, None) => {
                let event = Started { job: self.id, lease: c.lease, image_digest: c.image_digest.clone() };
                Ok(self.propose(event, format!("{}.started", c.lease), self.last))
            }
            _ => Err(Refusal::WrongState("The job was not accepted yet.")),
        }
    }

    /// The program has ended, and its files are on their way.
    pub(crate) fn exit(&self, machine: MachineId, c: &Exit) -> Result<Decision, Refusal> {
        if let Some(seq) = self.past.get(&c.lease) {
            return Ok(Decision::Already(*seq));
        }
        let attempt = self.live(machine, c.lease)?;
        match (self.phase, attempt.exited) {
            (_, Some((seq, _, _))) => Ok(Decision::Already(seq)),
            (Phase::Running, None) => {
                let event = Exited { job: self.id, lease: c.lease, usage: c.usage };
                Ok(self.propose(event, format!("{}.exited", c.lease), self.last))
            }
            _ => Err(Refusal::WrongState("The job did not start yet.")),
        }
    }

    /// The machine reports how the attempt ended.
    pub(crate) fn report(
        &self,
        machine: MachineId,
        c: &Report,
        now: Timestamp,
        settings: &Settings,
    ) -> Result<Decision, Refusal> {
        if let Some(seq) = self.past.get(&c.lease) {
            return Ok(Decision::Already(*seq));
        }
        let attempt = self.live(machine, c.lease)?;
        if self.phase == Phase::Assigned {
            return Err(Refusal::WrongState("The job was not accepted yet: decline it instead."));
        }
        let id = format!("{}.ended", c.lease);
        match &c.outcome {
            Outcome::Completed if attempt.started.is_none() => {
                Err(Refusal::WrongState("The job never started: it cannot have completed."))
            }
            Outcome::Completed => {
                crate::rules::check_outputs(&c.outputs)?;
                let event = Completed {
                    signature: c.signature.clone(),
                    job: self.id,
                    lease: c.lease,
                    outputs: c.outputs.clone(),
                    usage: c.usage.unwrap_or_default(),
                    occurred_at: c.occurred_at,
                };
                Ok(self.propose(event, id, self.last))
            }
            Outcome::Cancelled if self.cancel.is_none() => Err(Refusal::WrongState("Nobody asked to cancel this job.")),
            Outcome::Cancelled => {
                let event = Cancelled { job: self.id, lease: Some(c.lease), usage: c.usage };
                Ok(self.propose(event, id, self.last))
            }
            Outcome::Failed { reason, detail } => {
                if !reason_of_a_worker(*reason) {
                    return Err(Refusal::field("reason", "This reason is not for a machine to give."));
                }
                crate::rules::check_outputs(&c.outputs)?;
                let detail: String = detail.chars().filter(|c| !c.is_control()).take(500).collect();
                Ok(self.end_attempt(attempt, *reason, detail, Some(c), now, settings))
            }
        }
    }

    /// Ends the attempt with one event: `Requeued` where another attempt may help, otherwise `Failed`.
    fn end_attempt(
        &self,
        attempt: &Attempt,
        reason: Reason,
        detail: String,
        report: Option<&Report>,
        now: Timestamp,
        settings: &Settings,
    ) -> Decision {
        let (job, lease, fault) = (self.id, attempt.lease, reason.fault());
        let used = self.attempts_used + u32::from(uses_attempt(attempt, fault));
        let another_may_help = matches!(fault, Fault::Provider | Fault::Nobody);
        let id = format!("{lease}.ended");
        if another_may_help && used < self.limits.max_attempts && self.cancel.is_none() {
            let until = Some(now.plus(self.pause(settings.decline_pause)));
            let event = Requeued { job, lease, reason, fault, excluded: attempt.machine, until, detail };
            return self.propose(event, id, self.last);
        }
        let event = Failed {
            job,
            lease: Some(lease),
            reason,
            fault,
            detail,
            outputs: report.map(|r| r.outputs.clone()).unwrap_or_default(),
            usage: report.and_then(|r| r.usage),
            signature: report.and_then(|r| r.signature.clone()),
        };
        self.propose(event, id, self.last)
    }

    /// The pause before the job is given back to a machine that returned it: it doubles with each return.
    fn pause(&self, first: Millis) -> Millis {
        Millis(first.0.saturating_mul(1 << self.returns.min(LONGEST_DOUBLING)))
    }

    /// The consumer cancels the job. A job that no machine has accepted ends at once.
    pub(crate) fn cancel(&self) -> Result<Decision, Refusal> {
        let ended = self.ending.as_ref().map(|e| (e.cancelled, e.seq));
        match (self.phase, self.cancel, ended) {
            (_, _, Some((true, seq))) | (_, Some((seq, _)), None) => Ok(Decision::Already(seq)),
            (_, _, Some(_)) => Err(Refusal::WrongState("The job has already ended.")),
            (Phase::Queued | Phase::Assigned, _, None) => {
                let lease = self.attempt.as_ref().map(|a| a.lease);
                let event = Cancelled { job: self.id, lease, usage: None };
                Ok(self.propose(event, format!("{}.cancelled", self.id), self.cause()))
            }
            (Phase::Collecting, _, None) => {
                Err(Refusal::WrongState("The job's program has ended. Only its files are still on their way."))
            }
            _ => Ok(self.propose(CancelRequested { job: self.id }, format!("{}.cancel", self.id), self.cause())),
        }
    }

    fn cause(&self) -> Seq {
        self.last.max(self.submission)
    }

    /// Ends a job that took too long; `None` if it did not. `steady_since` is the time since which machines could
    /// report: silence before then means nothing.
    pub fn expire(&self, now: Timestamp, steady_since: Timestamp, settings: &Settings) -> Option<Decision> {
        let waited = now.since(self.since);
        let end = |a: &Attempt, reason| self.end_attempt(a, reason, String::new(), None, now, settings);
        match (self.phase, &self.attempt) {
            (Phase::Queued, _) if now.since(self.submitted_at) > self.limits.queue.millis() => Some(self.no_machine()),
            (Phase::Assigned, Some(a)) if waited > settings.accept_within => Some(end(a, Reason::AssignTimeout)),
            (Phase::Accepted | Phase::Running, Some(a))
                if self.cancel.is_some_and(|(_, at)| now.since(at) > settings.grace) =>
            {
                let event = Cancelled { job: self.id, lease: Some(a.lease), usage: None };
                Some(self.propose(event, format!("{}.ended", a.lease), self.last))
            }
            (Phase::Accepted, Some(a)) if waited > PREPARE_WITHIN => Some(end(a, Reason::PrepareTimeout)),
            (Phase::Running, Some(a)) => {
                let (limit, _) = a.run_limit(self.hold, &self.limits);
                let due = self.since.plus(limit).max(steady_since).plus(REPORT_WITHIN);
                (now > due).then(|| end(a, Reason::NotReported))
            }
            (Phase::Collecting, Some(a)) => {
                let due = self.since.max(steady_since).plus(UPLOAD_WITHIN);
                (now > due).then(|| end(a, Reason::UploadTimeout))
            }
            _ => None,
        }
    }

    fn no_machine(&self) -> Decision {
        let event = Failed {
            job: self.id,
            lease: None,
            reason: Reason::NoMachine,
            fault: Reason::NoMachine.fault(),
            detail: String::new(),
            outputs: Vec::new(),
            usage: None,
            signature: None,
        };
        self.propose(event, format!("{}.nomachine", self.id), self.cause())
    }

    /// Takes the job from a lost machine.
    pub(crate) fn abandon(&self, now: Timestamp, settings: &Settings) -> Result<Decision, Refusal> {
        match &self.attempt {
            Some(attempt) if self.phase.is_live() => {
                Ok(self.end_attempt(attempt, Reason::ProviderLost, String::new(), None, now, settings))
            }
            _ => Err(Refusal::WrongState("The job is on no machine.")),
        }
    }

    /// The desired state of an attempt: go on, cancel, or abandon.
    pub fn wish(&self, machine: MachineId, lease: Lease) -> DesiredLease {
        match self.live(machine, lease) {
            Err(_) => DesiredLease::Abandon,
            Ok(_) if self.cancel.is_some() => DesiredLease::Cancel,
            Ok(_) => DesiredLease::Keep,
        }
    }

    /// Folds one of the job's own events.
    pub(crate) fn apply(&mut self, seq: Seq, at: Timestamp, event: &Event, settings: &Settings) {
        self.last = seq;
        self.guard = seq;
        match event {
            Event::JobAssigned(e) => {
                let attempt = Attempt { lease: Lease(seq), machine: e.machine, terms: e.terms.clone(), started: None, exited: None };
                self.attempt = Some(attempt);
                self.enter(Phase::Assigned, at);
            }
            Event::Declined(e) => {
                self.past.insert(e.lease, seq);
                self.avoid.insert(e.machine, Some(at.plus(self.pause(settings.decline_pause))));
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
            Event::Requeued(e) => self.requeued(seq, at, e, settings),
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

    fn requeued(&mut self, seq: Seq, at: Timestamp, e: &Requeued, settings: &Settings) {
        self.past.insert(e.lease, seq);
        if e.fault == Fault::Nobody {
            self.not_before = e.until;
        } else {
            // By billing rule 1, only a machine that the consumer named was tried again.
            let named = self.placement.requirements.machine.is_some();
            self.avoid.insert(e.excluded, e.until.or_else(|| named.then(|| at.plus(settings.decline_pause))));
        }
        let uses = self.attempt.as_ref().is_none_or(|attempt| uses_attempt(attempt, e.fault));
        self.attempts_used += u32::from(uses);
        self.returns = self.returns.saturating_add(1);
        self.attempt = None;
        self.enter(Phase::Queued, at);
    }

    fn enter(&mut self, phase: Phase, at: Timestamp) {
        self.phase = phase;
        self.since = at;
    }

    fn end(&mut self, seq: Seq, at: Timestamp, billed: bool, usage: Option<Usage>) {
        if let Some(attempt) = &self.attempt {
            self.past.insert(attempt.lease, seq);
        }
        self.ending = Some(Ending { seq, at, billed, cancelled: false, usage });
        self.enter(Phase::Ended, at);
    }
}

/// True if an ending uses up one of the job's attempts. An ending by nobody's fault before any code ran does not: the
/// time that the job may wait bounds those.
fn uses_attempt(attempt: &Attempt, fault: Fault) -> bool {
    fault != Fault::Nobody || attempt.started.is_some()
}

/// True if a machine may give this reason. The others are for the platform to find out.
fn reason_of_a_worker(reason: Reason) -> bool {
    let of_platform = [
        Reason::ProviderLost,
        Reason::AssignTimeout,
        Reason::NotReported,
        Reason::PrepareTimeout,
        Reason::UploadTimeout,
        Reason::NoMachine,
        Reason::Internal,
    ];
    !of_platform.contains(&reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Command,
        placement::{self, Request},
        testing::*,
    };
    use gpubnb_events::command::{ChangeMachine, MachineChange};

    #[test]
    fn the_whole_life_in_order() {
        let mut w = given();
        let job = w.submitted();
        let lease = w.assigned(job);
        w.accepted(job, lease);
        w.started(job, lease);
        w.completed(job, lease, Millis(1_000));
        assert_eq!(w.job(job).phase, Phase::Ended);
        w.when(Actor::Platform, Command::Settle(job)).appended();
        assert!(w.world.job(job).is_none(), "a settled job leaves memory");
    }

    #[test]
    fn no_code_runs_before_it_was_accepted_nor_completes_before_it_started() {
        let mut w = given();
        let job = w.submitted();
        let lease = w.assigned(job);
        let start = Command::Start(w.machine, Start { job, lease, image_digest: String::new() });
        assert!(matches!(w.when(w.as_machine(), start).refused(), Refusal::WrongState(_)));
        w.accepted(job, lease);
        let report = w.report(job, lease, Outcome::Completed);
        assert!(matches!(w.when(w.as_machine(), report).refused(), Refusal::WrongState(_)));
    }

    #[test]
    fn a_stale_lease_is_refused_and_the_same_ending_said_twice_is_one() {
        let mut w = given();
        let job = w.submitted();
        let first = w.assigned(job);
        w.accepted(job, first);
        let preempted = Outcome::Failed { reason: Reason::Preempted, detail: String::new() };
        let report = w.report(job, first, preempted);
        let seq = w.when(w.as_machine(), report.clone()).appended();
        assert_eq!(w.when(w.as_machine(), report).already(), seq);
        w.time_passes(Millis(10_000));
        let second = w.assigned(job);
        assert!(second > first);
        let start = Command::Start(w.machine, Start { job, lease: first, image_digest: String::new() });
        assert_eq!(w.when(w.as_machine(), start).refused(), Refusal::StaleLease);
    }

    #[test]
    fn a_fault_of_the_provider_is_tried_again_until_the_attempts_are_used_up() {
        let mut w = given();
        let job = w.submitted();
        for attempt in 1..=2 {
            let lease = w.assigned(job);
            w.accepted(job, lease);
            w.started(job, lease);
            let lost = w.report(job, lease, Outcome::Failed { reason: Reason::GpuLost, detail: String::new() });
            w.when(w.as_machine(), lost).appended();
            let expected = if attempt == 2 { Phase::Ended } else { Phase::Queued };
            assert_eq!(w.job(job).phase, expected);
            w.time_passes(Millis(10_000));
        }
        assert!(!w.job(job).ending.clone().is_some_and(|e| e.billed));
    }

    /// A job that runs on the machine, with a time limit of an hour.
    fn running(w: &mut Given) -> (JobId, Lease) {
        let job = w.submitted();
        let lease = w.assigned(job);
        w.accepted(job, lease);
        w.started(job, lease);
        (job, lease)
    }

    fn last_requeue(w: &Given) -> Requeued {
        match w.last_event() {
            Event::Requeued(e) => e.clone(),
            other => panic!("expected Requeued, got {other:?}"),
        }
    }

    #[test]
    fn a_machine_that_is_silent_about_a_job_is_at_fault_and_only_long_after_the_limit() {
        let mut w = given();
        let (job, _) = running(&mut w);
        w.time_passes(Millis(3_600_000 + 299_000));
        w.when(Actor::Platform, Command::Expire(job)).refused();
        w.time_passes(Millis(2_000));
        // A control plane that was away first listens for as long.
        let steady_since = w.now;
        assert!(w.job(job).expire(w.now, steady_since, &w.settings).is_none());
        w.when(Actor::Platform, Command::Expire(job)).appended();
        let requeued = last_requeue(&w);
        assert_eq!((requeued.reason, requeued.fault), (Reason::NotReported, Fault::Provider));
    }

    #[test]
    fn files_that_do_not_arrive_in_an_hour_are_nobodys_fault() {
        let mut w = given();
        let (job, lease) = running(&mut w);
        let seq = w.exited(job, lease, Millis(5));
        let exit = Command::Exit(w.machine, Exit { job, lease, usage: Usage { run: Millis(7) } });
        assert_eq!(w.when(w.as_machine(), exit).already(), seq);
        assert!(matches!(w.when(w.as_consumer(), Command::Cancel(job)).refused(), Refusal::WrongState(_)));
        w.time_passes(Millis(3_599_000));
        w.when(Actor::Platform, Command::Expire(job)).refused();
        w.time_passes(Millis(2_000));
        w.when(Actor::Platform, Command::Expire(job)).appended();
        let requeued = last_requeue(&w);
        assert_eq!((requeued.reason, requeued.fault), (Reason::UploadTimeout, Fault::Nobody));
        assert_eq!(w.job(job).attempts_used, 1, "its code ran");
        assert_eq!(w.machine_state().record.attempts(), 0);
    }

    #[test]
    fn an_ending_by_nobodys_fault_before_the_start_uses_no_attempt_and_pauses_longer_each_time() {
        let mut w = given();
        let job = w.submitted();
        let mut last = 0;
        for _ in 0..4 {
            let lease = w.assigned(job);
            w.accepted(job, lease);
            let away = Outcome::Failed { reason: Reason::RegistryUnavailable, detail: String::new() };
            w.when(w.as_machine(), w.report(job, lease, away)).appended();
            let pause = last_requeue(&w).until.expect("a pause").since(w.now).0 + 1;
            assert!(pause >= 2 * last, "{pause} after {last}");
            last = pause;
            assert_eq!(w.when(Actor::Platform, Command::Assign(job)).refused(), Refusal::NoMachineNow);
            w.time_passes(Millis(pause));
        }
        assert_eq!((w.job(job).attempts_used, w.machine_state().record.attempts()), (0, 0));
    }

    #[test]
    fn a_machine_at_fault_gets_the_job_again_after_a_pause_and_another_machine_gets_it_before() {
        let mut w = given();
        let (job, lease) = running(&mut w);
        let first = w.machine;
        let lost = Outcome::Failed { reason: Reason::GpuLost, detail: String::new() };
        w.when(w.as_machine(), w.report(job, lease, lost)).appended();
        assert_eq!(w.when(Actor::Platform, Command::Assign(job)).refused(), Refusal::NoMachineNow);
        let other = w.listed(w.offer());
        assert_eq!(placement::choose(&w.world, &Request::of(w.job(job)), w.now).machine, Some(other));
        w.when(Actor::Machine(other), Command::ChangeMachine(ChangeMachine { machine: other, wish: MachineChange::Pause }));
        w.time_passes(Millis(5_001));
        assert_eq!(placement::choose(&w.world, &Request::of(w.job(job)), w.now).machine, Some(first));
    }

    #[test]
    fn a_decline_uses_no_attempt() {
        let mut w = given();
        let job = w.submitted();
        let lease = w.assigned(job);
        let decline = Decline { job, lease, reason: gpubnb_events::event::DeclineReason::NoFreeSlot };
        w.when(w.as_machine(), Command::Decline(w.machine, decline)).appended();
        assert_eq!(w.when(Actor::Platform, Command::Assign(job)).refused(), Refusal::NoMachineNow);
        w.time_passes(Millis(6_000));
        w.assigned(job);
        assert_eq!(w.job(job).attempts_used, 0);
    }

    #[test]
    fn cancelling_ends_a_waiting_job_at_once_and_asks_a_running_one() {
        let mut w = given();
        let waiting = w.submitted();
        w.when(w.as_consumer(), Command::Cancel(waiting)).appended();
        assert_eq!(w.job(waiting).phase, Phase::Ended);

        let running = w.submitted();
        let lease = w.assigned(running);
        w.accepted(running, lease);
        w.started(running, lease);
        let asked = w.when(w.as_consumer(), Command::Cancel(running)).appended();
        assert_eq!(w.when(w.as_consumer(), Command::Cancel(running)).already(), asked);
        assert_eq!(w.job(running).wish(w.machine, lease), DesiredLease::Cancel);
        w.time_passes(Millis(60_000));
        w.when(Actor::Platform, Command::Expire(running)).appended();
        assert!(w.job(running).ending.clone().is_some_and(|e| e.cancelled));
        let late = w.report(running, lease, Outcome::Completed);
        w.when(w.as_machine(), late).already();
    }

    #[test]
    fn a_foreign_job_looks_like_none() {
        let mut w = given();
        let job = w.submitted();
        assert_eq!(w.when(w.as_provider(), Command::Cancel(job)).refused(), Refusal::UnknownJob);
    }

    #[test]
    fn a_machine_may_not_speak_for_another_nor_claim_what_only_the_platform_sees() {
        let mut w = given();
        let job = w.submitted();
        let lease = w.assigned(job);
        w.accepted(job, lease);
        let other = Actor::Machine(MachineId::generate());
        let report = w.report(job, lease, Outcome::Completed);
        assert!(matches!(w.when(other, report).refused(), Refusal::NotAllowed(_)));
        let claim = w.report(job, lease, Outcome::Failed { reason: Reason::NoMachine, detail: String::new() });
        assert!(matches!(w.when(w.as_machine(), claim).refused(), Refusal::InvalidField { .. }));
    }

    use gpubnb_events::Actor;
}
