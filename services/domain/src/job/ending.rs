//! The ways in which an attempt ends without success, and what follows: another attempt after a pause, or the end of
//! the job. The table in docs/events.md lists the evidence for each ending.

use gpubnb_events::{
    MicroUsd, Millis, Timestamp,
    command::Report,
    event::{Cancelled, Failed, Fault, Reason, Requeued},
    spec::Limits,
};

use super::{Attempt, Job, Phase};
use crate::{Decision, DomainError, Settings};

/// The pause after a job came back doubles at most this many times. The pauses limit the number of attempts, and so the
/// number of messages to read when a job is loaded from the log.
const MAX_PAUSE_DOUBLINGS: u32 = 10;
/// Longest time in which a machine prepares a job: pulls the image and downloads the input files.
const PREPARATION_LIMIT: Millis = Millis(3_600_000);
/// Longest silence about a job after the end of its time limit, while the job's machine is online.
const REPORT_LIMIT: Millis = Millis(300_000);
/// Longest time in which the files of an exited job are uploaded.
pub(crate) const UPLOAD_LIMIT: Millis = Millis(3_600_000);

impl Attempt {
    /// The time that the program may run: the time limit, or the time that the hold pays for if that is shorter.
    fn run_limit(&self, hold: MicroUsd, limits: &Limits) -> Millis {
        let time = limits.time.millis();
        self.terms.price.time_for(hold).map_or(time, |budget| budget.min(time))
    }
}

impl Job {
    /// Ends the attempt with one event: `Requeued` if another attempt may help and the job may have one, otherwise
    /// `Failed`.
    pub(super) fn end_attempt(
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
        let may_help = matches!(fault, Fault::Provider | Fault::Nobody);
        let id = format!("{lease}.ended");
        if may_help && used < self.limits.max_attempts && self.cancel.is_none() {
            let until = Some(now.plus(self.pause(settings)));
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
            left_out: report.map(|r| r.left_out.clone()).unwrap_or_default(),
            usage: report.and_then(|r| r.usage),
            traffic: report.and_then(|r| r.traffic.clone()),
            signature: report.and_then(|r| r.signature.clone()),
            log: report.and_then(|r| r.log.clone()),
        };
        self.propose(event, id, self.last)
    }

    /// The next pause. Example: with a first pause of 5 s, the pauses are 5 s, 10 s, 20 s, and so on.
    pub(super) fn pause(&self, settings: &Settings) -> Millis {
        Millis(settings.decline_pause.0.saturating_mul(1 << self.returns.min(MAX_PAUSE_DOUBLINGS)))
    }

    /// Ends a job, or its attempt, that exceeded a limit of time; `None` if no limit is exceeded. The worker itself
    /// stops a program at its limit. `steady_since` is the time since which machines could report: no silence before
    /// that time counts.
    pub fn expire(&self, now: Timestamp, steady_since: Timestamp, settings: &Settings) -> Option<Decision> {
        let in_phase = now.since(self.since.max(steady_since));
        let end = |a: &Attempt, reason| Some(self.end_attempt(a, reason, String::new(), None, now, settings));
        match (self.phase, &self.attempt) {
            (Phase::Queued, _) if now.since(self.waiting_since) > self.limits.queue.millis() => Some(self.no_machine()),
            (Phase::Assigned, Some(a)) if in_phase > settings.accept_within => end(a, Reason::AssignTimeout),
            (Phase::Accepted | Phase::Running, Some(a))
                if self.cancel.is_some_and(|(_, at)| now.since(at.max(steady_since)) > settings.grace) =>
            {
                let event = Cancelled::unreported(self.id, Some(a.lease));
                Some(self.propose(event, format!("{}.ended", a.lease), self.last))
            }
            (Phase::Accepted, Some(a)) if in_phase > PREPARATION_LIMIT => end(a, Reason::PrepareTimeout),
            (Phase::Running, Some(a)) => {
                let limit = self.since.plus(a.run_limit(self.hold, &self.limits));
                if now > limit.max(steady_since).plus(REPORT_LIMIT) { end(a, Reason::NotReported) } else { None }
            }
            (Phase::Collecting, Some(a)) if now > self.since.max(steady_since).plus(UPLOAD_LIMIT) => {
                end(a, Reason::UploadTimeout)
            }
            _ => None,
        }
    }

    /// Ends a job that waited for a machine too long.
    fn no_machine(&self) -> Decision {
        let event = Failed {
            job: self.id,
            lease: None,
            reason: Reason::NoMachine,
            fault: Reason::NoMachine.fault(),
            detail: String::new(),
            outputs: Vec::new(),
            left_out: Vec::new(),
            usage: None,
            traffic: None,
            signature: None,
            log: None,
        };
        self.propose(event, format!("{}.nomachine", self.id), self.last_event())
    }

    /// Ends the live attempt, because its machine is lost.
    pub(crate) fn abandon(&self, now: Timestamp, settings: &Settings) -> Result<Decision, DomainError> {
        match &self.attempt {
            Some(attempt) if self.phase.is_live() => {
                Ok(self.end_attempt(attempt, Reason::ProviderLost, String::new(), None, now, settings))
            }
            _ => Err(DomainError::WrongState("The job is on no machine.")),
        }
    }
}

/// True if an ending uses up one of the job's attempts. An ending by nobody's fault before the program ran uses up
/// none. Such endings cannot go on for ever: they do not extend the time that the job may wait for a machine.
pub(super) fn uses_attempt(attempt: &Attempt, fault: Fault) -> bool {
    fault != Fault::Nobody || attempt.started.is_some()
}

/// True if a machine may report this reason. Only the platform can know the other reasons.
pub(super) fn is_worker_reason(reason: Reason) -> bool {
    !matches!(
        reason,
        Reason::ProviderLost
            | Reason::AssignTimeout
            | Reason::NotReported
            | Reason::PrepareTimeout
            | Reason::UploadTimeout
            | Reason::NoMachine
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Command,
        placement::{self, Request},
        testing::*,
    };
    use gpubnb_events::{
        Actor, Event,
        command::{ChangeMachine, Exit, MachineChange, Outcome},
        spec::Usage,
    };

    fn last_requeued(market: &TestMarket) -> Requeued {
        match market.last_event() {
            Event::Requeued(e) => e.clone(),
            other => panic!("expected Requeued, got {other:?}"),
        }
    }

    #[test]
    fn a_machine_that_is_silent_about_a_job_is_at_fault_long_after_the_limit() {
        let mut market = given();
        let (job, _) = market.start_default();
        market.advance_time(Millis(3_600_000 + 299_000));
        market.when(Actor::Platform, Command::Expire(job)).expect_refused();
        market.advance_time(Millis(2_000));
        // If the services were away until now, the machine first has `REPORT_LIMIT` once more to report.
        assert!(market.job(job).expire(market.now, market.now, &market.settings).is_none());
        market.when(Actor::Platform, Command::Expire(job)).expect_appended();
        let requeued = last_requeued(&market);
        assert_eq!((requeued.reason, requeued.fault), (Reason::NotReported, Fault::Provider));
    }

    #[test]
    fn files_that_are_not_uploaded_in_an_hour_are_nobodys_fault() {
        let mut market = given();
        let (job, lease) = market.start_default();
        let seq = market.exit(job, lease, Millis(5));
        let exit = Command::Exit(market.machine, Exit { job, lease, usage: Usage { run: Millis(7) } });
        assert_eq!(market.when(market.as_machine(), exit).expect_already_done(), seq);
        let cancelled = market.when(market.as_consumer(), Command::Cancel(job)).expect_refused();
        assert!(matches!(cancelled, DomainError::WrongState(_)));
        market.advance_time(Millis(3_599_000));
        market.when(Actor::Platform, Command::Expire(job)).expect_refused();
        market.advance_time(Millis(2_000));
        market.when(Actor::Platform, Command::Expire(job)).expect_appended();
        let requeued = last_requeued(&market);
        assert_eq!((requeued.reason, requeued.fault), (Reason::UploadTimeout, Fault::Nobody));
        assert_eq!(market.job(job).attempts_used, 1, "the program ran");
        assert_eq!(market.machine_state().record.attempts(), 0);
    }

    #[test]
    fn an_ending_by_nobodys_fault_before_the_start_uses_no_attempt_and_pauses_longer_each_time() {
        let mut market = given();
        let job = market.submit_default();
        let mut last = 0;
        for _ in 0..4 {
            let lease = market.assign(job);
            market.accept(job, lease);
            let away = Outcome::Failed { reason: Reason::RegistryUnavailable, detail: String::new() };
            market.when(market.as_machine(), market.report(job, lease, away)).expect_appended();
            let pause = last_requeued(&market).until.expect("a pause").since(market.now).0 + 1;
            assert!(pause >= 2 * last, "{pause} after {last}");
            last = pause;
            let too_early = market.when(Actor::Platform, Command::Assign(job)).expect_refused();
            assert_eq!(too_early, DomainError::NoMachineNow);
            market.advance_time(Millis(pause));
        }
        assert_eq!((market.job(job).attempts_used, market.machine_state().record.attempts()), (0, 0));
    }

    #[test]
    fn a_machine_at_fault_gets_the_job_after_a_pause_and_another_machine_gets_it_before() {
        let mut market = given();
        let (job, lease) = market.start_default();
        let first = market.machine;
        let lost = Outcome::Failed { reason: Reason::GpuLost, detail: String::new() };
        market.when(market.as_machine(), market.report(job, lease, lost)).expect_appended();
        assert_eq!(market.when(Actor::Platform, Command::Assign(job)).expect_refused(), DomainError::NoMachineNow);
        let other = market.list_machine(market.offer());
        let chosen =
            |market: &TestMarket| placement::choose(&market.world, &Request::of(market.job(job)), market.now).machine;
        assert_eq!(chosen(&market), Some(other));
        let pause = Command::ChangeMachine(ChangeMachine { machine: other, change: MachineChange::Pause });
        market.when(Actor::Machine(other), pause).expect_appended();
        market.advance_time(Millis(5_001));
        assert_eq!(chosen(&market), Some(first));
    }
}
