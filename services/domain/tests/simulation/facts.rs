//! The checker's facts about a job: the live attempt, the past attempts, the end and the settlement. The checker
//! compares every event of a job with these facts.

use std::collections::BTreeMap;

use gpubnb_events::{
    AccountId, Actor, Event, HourlyRate, Lease, MachineId, MicroUsd, Millis, Seq, Timestamp,
    event::{Cancelled, Failed, Fault, JobAssigned, JobSubmitted, Reason, Requeued},
    spec::{Limits, Placement, Requirements},
};

use super::{
    bill,
    checker::{Entry, MachineFacts, Rules, Verdict, Violation, ensure, is_platform_reason},
};

/// Time in which a worker must prepare a job.
const PREPARATION_LIMIT: Millis = Millis(3_600_000);
/// Time after a job's limit in which its machine must report.
const REPORT_LIMIT: Millis = Millis(300_000);
/// Time in which a job's files must be uploaded.
const UPLOAD_LIMIT: Millis = Millis(3_600_000);

/// The checker's facts about an attempt.
#[derive(Debug, Clone)]
pub(crate) struct LeaseFacts {
    pub(crate) lease: Lease,
    pub(crate) assigned: Timestamp,
    pub(crate) machine: MachineId,
    pub(crate) price: HourlyRate,
    pub(crate) provider: AccountId,
    pub(crate) accepted: Option<Timestamp>,
    pub(crate) started: Option<(Seq, Timestamp)>,
    /// The sequence and the time of `Exited`, and the run time in this event.
    pub(crate) exited: Option<(Seq, Timestamp, Millis)>,
    /// True if the machine was lost at any time since the assignment.
    pub(crate) lost: bool,
}

/// The checker's facts about the end of a job.
#[derive(Debug, Clone)]
pub(crate) struct EndFacts {
    pub(crate) seq: Seq,
    pub(crate) at: Timestamp,
    pub(crate) billed: bool,
    pub(crate) cancelled: bool,
    /// The run time that the worker reported.
    pub(crate) run: Option<Millis>,
    /// The attempt that ended with the job; `None` if the job waited.
    pub(crate) attempt: Option<LeaseFacts>,
}

/// The checker's facts about a job.
#[derive(Debug)]
pub(crate) struct JobFacts {
    pub(crate) account: AccountId,
    pub(crate) submission: Seq,
    submitted: Timestamp,
    pub(crate) placement: Placement,
    pub(crate) limits: Limits,
    pub(crate) hold: MicroUsd,
    /// The live attempt.
    pub(crate) live: Option<LeaseFacts>,
    /// The past leases, each with its machine and the sequence of the event that ended the attempt.
    pub(crate) past: BTreeMap<Lease, (MachineId, Seq)>,
    /// The sequence of `Started` of each lease.
    pub(crate) started: BTreeMap<Lease, Seq>,
    /// The sequence and the time of the request to cancel.
    pub(crate) cancel: Option<(Seq, Timestamp)>,
    pub(crate) ended: Option<EndFacts>,
    pub(crate) settled: Option<Seq>,
    /// True for a task of a batch that is closed: the platform may cancel the task.
    pub(crate) batch_is_closed: bool,
    attempts_used: u32,
    /// After a fault of a machine: the time until which this machine may not get the job.
    avoid: BTreeMap<MachineId, Timestamp>,
    /// After an ending by nobody's fault: the time until which no machine may get the job.
    not_before: Option<Timestamp>,
}

impl JobFacts {
    pub(crate) fn new(seq: Seq, at: Timestamp, e: &JobSubmitted) -> Self {
        Self {
            account: e.account,
            submission: seq,
            submitted: at,
            placement: e.placement.clone(),
            limits: e.limits.clone(),
            hold: e.hold,
            live: None,
            past: BTreeMap::new(),
            started: BTreeMap::new(),
            cancel: None,
            ended: None,
            settled: None,
            batch_is_closed: false,
            attempts_used: 0,
            avoid: BTreeMap::new(),
            not_before: None,
        }
    }

    /// Checks the job's next event, and adds it to the facts.
    pub(crate) fn check(
        &mut self,
        entry: &Entry<'_>,
        machines: &BTreeMap<MachineId, MachineFacts>,
        rules: &Rules,
    ) -> Verdict {
        ensure(self.settled.is_none(), || "the job was settled before".to_owned())?;
        if let Event::Settled(e) = entry.event {
            ensure(entry.envelope.actor == Actor::Platform, || "only the platform may settle".to_owned())?;
            bill::check(self, e, rules.fee)?;
            self.settled = Some(entry.seq);
            return Ok(());
        }
        ensure(self.ended.is_none(), || "the job had ended before".to_owned())?;
        self.check_not_early(entry, rules)?;
        let actor = entry.envelope.actor;
        match entry.event {
            Event::JobAssigned(e) => self.check_assigned(entry, e, machines, rules),
            Event::Declined(e) => {
                let live = self.live_lease(e.lease, actor)?;
                ensure(live.accepted.is_none(), || "the job was accepted before".to_owned())?;
                self.end_lease(entry.seq);
                Ok(())
            }
            Event::Accepted(e) => {
                let live = self.live_lease(e.lease, actor)?;
                ensure(live.accepted.is_none(), || "accepted twice".to_owned())?;
                live.accepted = Some(entry.at);
                Ok(())
            }
            Event::Started(e) => {
                ensure(self.cancel.is_none(), || "the job was being cancelled".to_owned())?;
                let live = self.live_lease(e.lease, actor)?;
                ensure(live.accepted.is_some(), || "the job was never accepted".to_owned())?;
                ensure(live.started.is_none(), || "started twice".to_owned())?;
                live.started = Some((entry.seq, entry.at));
                self.started.insert(e.lease, entry.seq);
                let (runs, most) = (self.started.len(), self.limits.max_attempts);
                ensure(runs <= most as usize, || format!("run {runs} of {most}"))
            }
            Event::Exited(e) => {
                let live = self.live_lease(e.lease, actor)?;
                ensure(live.started.is_some() && live.exited.is_none(), || "the program did not run".to_owned())?;
                live.exited = Some((entry.seq, entry.at, e.usage.run));
                Ok(())
            }
            Event::Requeued(e) => self.check_requeued(entry, e),
            Event::CancelRequested(_) => {
                self.check_may_cancel(actor)?;
                ensure(self.cancel.is_none(), || "requested twice".to_owned())?;
                ensure(self.live.as_ref().is_some_and(|l| l.accepted.is_some()), || {
                    "no worker had the job".to_owned()
                })?;
                let has_exited = self.live.as_ref().is_some_and(|l| l.exited.is_some());
                ensure(!has_exited, || "the program had exited".to_owned())?;
                self.cancel = Some((entry.seq, entry.at));
                Ok(())
            }
            Event::Completed(e) => {
                let live = self.live_lease(e.lease, actor)?;
                ensure(live.started.is_some(), || "the job never started".to_owned())?;
                self.end(entry, true, false, Some(e.usage.run));
                Ok(())
            }
            Event::Failed(e) => self.check_failed(entry, e),
            Event::Cancelled(e) => self.check_cancelled(entry, e),
            _ => Err(Violation("not an event of a job".to_owned())),
        }
    }

    /// The live attempt, for an event of a machine. The event must name the live lease, and its actor must be the
    /// machine that has the lease.
    fn live_lease(&mut self, lease: Lease, actor: Actor) -> Verdict<&mut LeaseFacts> {
        let live = self.live.as_mut().filter(|live| live.lease == lease);
        let live = live.ok_or_else(|| Violation(format!("lease {lease} was not live")))?;
        ensure(actor == Actor::Machine(live.machine), || format!("{actor} does not hold lease {lease}"))?;
        Ok(live)
    }

    /// The live attempt, for an event by which the machine or the platform ends it. The machine can end only an attempt
    /// that it accepted.
    fn live_lease_or_platform(&mut self, lease: Lease, actor: Actor) -> Verdict<&mut LeaseFacts> {
        if actor != Actor::Platform {
            let live = self.live_lease(lease, actor)?;
            ensure(live.accepted.is_some(), || "the job was never accepted".to_owned())?;
            return Ok(live);
        }
        let live = self.live.as_mut().filter(|live| live.lease == lease);
        live.ok_or_else(|| Violation(format!("lease {lease} was not live")))
    }

    /// Checks that the actor is the job's consumer or an operator.
    fn check_may_cancel(&self, actor: Actor) -> Verdict {
        let is_rest_of_batch = self.batch_is_closed && actor == Actor::Platform;
        let allowed = is_rest_of_batch || matches!(actor, Actor::Operator(_)) || actor == Actor::Account(self.account);
        ensure(allowed, || format!("{actor} was not allowed"))
    }

    fn check_assigned(
        &mut self,
        entry: &Entry<'_>,
        e: &JobAssigned,
        machines: &BTreeMap<MachineId, MachineFacts>,
        rules: &Rules,
    ) -> Verdict {
        ensure(entry.envelope.actor == Actor::Platform, || "only the platform may assign".to_owned())?;
        ensure(self.live.is_none(), || "a second live lease".to_owned())?;
        ensure(e.submission == self.submission, || "the event names another submission".to_owned())?;
        let used = self.attempts_used;
        ensure(e.attempt == used + 1, || format!("attempt {} after {used}", e.attempt))?;
        ensure(e.attempt <= self.limits.max_attempts, || "no attempt was left".to_owned())?;
        let pauses = [self.avoid.get(&e.machine).copied(), self.not_before];
        let is_early = |until: &Timestamp| entry.at.plus(rules.skew) < *until;
        ensure(!pauses.iter().flatten().any(is_early), || "the pause was not over".to_owned())?;
        let machine = machines.get(&e.machine).ok_or_else(|| Violation("there is no such machine".to_owned()))?;
        let terms = &e.terms;
        let is_valid = terms.provider == machine.owner && terms.fee_basis_points == rules.fee;
        ensure(is_valid && machine.prices.contains(&terms.price), || format!("wrong terms {terms:?}"))?;
        let Requirements { machine: named, price_cap, .. } = &self.placement.requirements;
        ensure(named.is_none_or(|named| named == e.machine), || "the consumer named another machine".to_owned())?;
        ensure(price_cap.is_none_or(|cap| terms.price <= cap), || "the price is above the cap".to_owned())?;
        self.live = Some(LeaseFacts {
            lease: Lease(entry.seq),
            assigned: entry.at,
            machine: e.machine,
            price: terms.price,
            provider: terms.provider,
            accepted: None,
            started: None,
            exited: None,
            lost: machine.lost,
        });
        Ok(())
    }

    /// Checks the reason of a failure. A machine may not report a reason of the platform. The platform's reason must be
    /// true.
    fn check_reason(live: &LeaseFacts, reason: Reason, actor: Actor) -> Verdict {
        ensure(actor == Actor::Platform || !is_platform_reason(reason), || format!("{actor} claims {reason:?}"))?;
        match reason {
            Reason::ProviderLost => ensure(live.lost, || "the machine was never lost".to_owned()),
            Reason::AssignTimeout => ensure(live.accepted.is_none(), || "the job was accepted".to_owned()),
            Reason::NoMachine => Err(Violation("the job had a machine".to_owned())),
            _ => Ok(()),
        }
    }

    fn check_requeued(&mut self, entry: &Entry<'_>, e: &Requeued) -> Verdict {
        let actor = entry.envelope.actor;
        let live = self.live_lease_or_platform(e.lease, actor)?;
        Self::check_reason(live, e.reason, actor)?;
        ensure(e.excluded == live.machine, || "the event excludes another machine".to_owned())?;
        let has_run = live.started.is_some();
        let may_help = matches!(e.fault, Fault::Provider | Fault::Nobody) && e.reason.fault() == e.fault;
        ensure(may_help, || "another attempt cannot help".to_owned())?;
        let until = e.until.ok_or_else(|| Violation("the event has no pause".to_owned()))?;
        self.attempts_used += u32::from(e.fault == Fault::Provider || has_run);
        ensure(self.attempts_used < self.limits.max_attempts, || "no attempt was left".to_owned())?;
        ensure(self.cancel.is_none(), || "the job was being cancelled".to_owned())?;
        if e.fault == Fault::Nobody {
            self.not_before = Some(until);
        } else {
            self.avoid.insert(e.excluded, until);
        }
        self.end_lease(entry.seq);
        Ok(())
    }

    fn check_failed(&mut self, entry: &Entry<'_>, e: &Failed) -> Verdict {
        let actor = entry.envelope.actor;
        ensure(e.fault == e.reason.fault(), || "the fault does not fit the reason".to_owned())?;
        if let Some(lease) = e.lease {
            let live = self.live_lease_or_platform(lease, actor)?;
            Self::check_reason(live, e.reason, actor)?;
            let is_used = e.fault == Fault::Provider || live.started.is_some();
            let is_last = self.attempts_used + u32::from(is_used) >= self.limits.max_attempts || self.cancel.is_some();
            let may_help = matches!(e.fault, Fault::Provider | Fault::Nobody);
            ensure(!may_help || is_last, || "an attempt was left".to_owned())?;
        } else {
            ensure(actor == Actor::Platform, || "only the platform may report this".to_owned())?;
            ensure(e.reason == Reason::NoMachine && self.live.is_none(), || "a lease was live".to_owned())?;
        }
        self.end(entry, e.fault == Fault::Consumer, false, e.usage.map(|u| u.run));
        Ok(())
    }

    fn check_cancelled(&mut self, entry: &Entry<'_>, e: &Cancelled) -> Verdict {
        let actor = entry.envelope.actor;
        ensure(e.lease == self.live.as_ref().map(|l| l.lease), || "the event does not name the live lease".to_owned())?;
        match (e.lease, self.cancel) {
            (Some(lease), Some(_)) => {
                self.live_lease_or_platform(lease, actor)?;
            }
            (_, None) => {
                self.check_may_cancel(actor)?;
                let is_unaccepted = self.live.as_ref().is_none_or(|l| l.accepted.is_none());
                ensure(is_unaccepted, || "the worker was not asked to stop".to_owned())?;
            }
            (None, Some(_)) => return Err(Violation("the request to cancel belongs to no live lease".to_owned())),
        }
        self.end(entry, true, true, e.usage.map(|u| u.run));
        Ok(())
    }

    /// Checks that the platform ends no attempt before its limit. The check allows for clocks that differ.
    fn check_not_early(&self, entry: &Entry<'_>, rules: &Rules) -> Verdict {
        let waited = |since: Timestamp| entry.at.since(since).0 + rules.skew.0;
        let reason = match entry.event {
            _ if entry.envelope.actor != Actor::Platform => return Ok(()),
            Event::Requeued(e) => Some(e.reason),
            Event::Failed(e) => Some(e.reason),
            // `check_cancelled` checks who may cancel a job that no worker has.
            Event::Cancelled(_) if self.cancel.is_none() => return Ok(()),
            Event::Cancelled(_) => None,
            _ => return Ok(()),
        };
        let (since, least) = match (reason, &self.live) {
            (Some(Reason::NoMachine), _) => (Some(self.submitted), self.limits.queue.millis().0),
            (Some(Reason::ProviderLost), _) | (_, None) => return Ok(()),
            (Some(Reason::AssignTimeout), Some(live)) => (Some(live.assigned), rules.accept_within.0),
            (Some(Reason::PrepareTimeout), Some(live)) => (live.accepted, PREPARATION_LIMIT.0),
            (Some(Reason::UploadTimeout), Some(live)) => (live.exited.map(|(_, at, _)| at), UPLOAD_LIMIT.0),
            (None, _) => (self.cancel.map(|(_, at)| at), rules.grace.0),
            (Some(Reason::NotReported), Some(live)) => {
                let budget = live.price.time_for(self.hold).unwrap_or(Millis(u64::MAX));
                let limit = self.limits.time.millis().min(budget);
                (live.started.map(|(_, at)| at), limit.0.saturating_add(REPORT_LIMIT.0))
            }
            (Some(reason), Some(_)) => return Err(Violation(format!("the platform claims {reason:?}"))),
        };
        ensure(since.is_some_and(|since| waited(since) >= least), || {
            format!("ended too early: {reason:?} before {least} ms")
        })
    }

    /// Ends the live attempt.
    fn end_lease(&mut self, seq: Seq) -> Option<LeaseFacts> {
        let live = self.live.take()?;
        self.past.insert(live.lease, (live.machine, seq));
        Some(live)
    }

    /// Ends the job.
    fn end(&mut self, entry: &Entry<'_>, billed: bool, cancelled: bool, run: Option<Millis>) {
        let attempt = self.end_lease(entry.seq);
        self.ended = Some(EndFacts { seq: entry.seq, at: entry.at, billed, cancelled, run, attempt });
    }
}
