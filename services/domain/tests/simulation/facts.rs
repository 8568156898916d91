//! The judge's knowledge of a job: the live lease, the ending, the settlement. Every event of a job is checked against
//! it.

use std::collections::BTreeMap;

use gpubnb_events::{
    AccountId, Actor, Event, HourlyRate, Lease, MachineId, MicroUsd, Millis, Seq, Timestamp,
    event::{Cancelled, Failed, Fault, JobAssigned, JobSubmitted, Reason, Requeued},
    spec::{Limits, Placement, Requirements},
};

use super::{
    bill,
    checker::{Entry, Held, MachineFacts, Rules, Violation, holds, platforms_own},
};

/// How long a worker may prepare a job.
const PREPARING: Millis = Millis(3_600_000);
/// How long a machine that is online may be silent about a job after the job's limit.
const REPORTING: Millis = Millis(300_000);
/// How long a job's files may take to reach the market.
const UPLOADING: Millis = Millis(3_600_000);

/// One attempt.
#[derive(Debug, Clone)]
pub(crate) struct LeaseFacts {
    pub(crate) lease: Lease,
    pub(crate) assigned: Timestamp,
    pub(crate) machine: MachineId,
    pub(crate) price: HourlyRate,
    pub(crate) provider: AccountId,
    pub(crate) accepted: Option<Timestamp>,
    pub(crate) started: Option<(Seq, Timestamp)>,
    /// `Exited`, and the run time that it reports.
    pub(crate) exited: Option<(Seq, Timestamp, Millis)>,
    /// True if the machine was lost at any time since the assignment.
    pub(crate) lost: bool,
}

/// How a job ended.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) seq: Seq,
    pub(crate) at: Timestamp,
    pub(crate) billed: bool,
    pub(crate) cancelled: bool,
    pub(crate) run: Option<Millis>,
    pub(crate) attempt: Option<LeaseFacts>,
}

/// The judge's knowledge of a job.
#[derive(Debug)]
pub(crate) struct JobFacts {
    pub(crate) account: AccountId,
    pub(crate) submission: Seq,
    submitted: Timestamp,
    pub(crate) placement: Placement,
    pub(crate) limits: Limits,
    pub(crate) hold: MicroUsd,
    pub(crate) live: Option<LeaseFacts>,
    /// Each past lease, its machine, and the event that ended it.
    pub(crate) past: BTreeMap<Lease, (MachineId, Seq)>,
    pub(crate) started: BTreeMap<Lease, Seq>,
    pub(crate) cancel: Option<(Seq, Timestamp)>,
    pub(crate) ended: Option<Ended>,
    pub(crate) settled: Option<Seq>,
    attempts_used: u32,
    /// The pauses after faults of machines, and after an ending by nobody's fault.
    avoid: BTreeMap<MachineId, Timestamp>,
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
            attempts_used: 0,
            avoid: BTreeMap::new(),
            not_before: None,
        }
    }

    /// Checks the job's next event, and folds it.
    pub(crate) fn judge(
        &mut self,
        entry: &Entry<'_>,
        machines: &BTreeMap<MachineId, MachineFacts>,
        rules: &Rules,
    ) -> Held {
        holds(self.settled.is_none(), || "it was settled before".to_owned())?;
        if let Event::Settled(e) = entry.event {
            holds(entry.envelope.actor == Actor::Platform, || "not for anyone else to settle".to_owned())?;
            bill::check(self, e, rules.fee)?;
            self.settled = Some(entry.seq);
            return Ok(());
        }
        holds(self.ended.is_none(), || "it had ended before".to_owned())?;
        self.patience(entry, rules)?;
        let actor = entry.envelope.actor;
        match entry.event {
            Event::JobAssigned(e) => self.assigned(entry, e, machines, rules),
            Event::Declined(e) => {
                let live = self.fenced(e.lease, actor)?;
                holds(live.accepted.is_none(), || "it was accepted before".to_owned())?;
                self.end_lease(entry.seq);
                Ok(())
            }
            Event::Accepted(e) => {
                let live = self.fenced(e.lease, actor)?;
                holds(live.accepted.is_none(), || "accepted twice".to_owned())?;
                live.accepted = Some(entry.at);
                Ok(())
            }
            Event::Started(e) => {
                holds(self.cancel.is_none(), || "it was being cancelled".to_owned())?;
                let live = self.fenced(e.lease, actor)?;
                holds(live.accepted.is_some(), || "it was never accepted".to_owned())?;
                holds(live.started.is_none(), || "started twice".to_owned())?;
                live.started = Some((entry.seq, entry.at));
                self.started.insert(e.lease, entry.seq);
                let (runs, most) = (self.started.len(), self.limits.max_attempts);
                holds(runs <= most as usize, || format!("run {runs} of {most}"))
            }
            Event::Exited(e) => {
                let live = self.fenced(e.lease, actor)?;
                holds(live.started.is_some() && live.exited.is_none(), || "not running".to_owned())?;
                live.exited = Some((entry.seq, entry.at, e.usage.run));
                Ok(())
            }
            Event::Requeued(e) => self.requeued(entry, e),
            Event::CancelRequested(_) => {
                self.by_its_people(actor)?;
                holds(self.cancel.is_none(), || "asked for twice".to_owned())?;
                holds(self.live.as_ref().is_some_and(|l| l.accepted.is_some()), || "no worker to ask".to_owned())?;
                holds(self.live.as_ref().is_some_and(|l| l.exited.is_none()), || "the program had ended".to_owned())?;
                self.cancel = Some((entry.seq, entry.at));
                Ok(())
            }
            Event::Completed(e) => {
                let live = self.fenced(e.lease, actor)?;
                holds(live.started.is_some(), || "it never started".to_owned())?;
                self.end(entry, true, false, Some(e.usage.run));
                Ok(())
            }
            Event::Failed(e) => self.failed(entry, e),
            Event::Cancelled(e) => self.cancelled(entry, e),
            _ => Err(Violation("not an event of a job".to_owned())),
        }
    }

    /// The live attempt. The event must name the live lease, and its actor must be the machine.
    fn fenced(&mut self, lease: Lease, actor: Actor) -> Held<&mut LeaseFacts> {
        let live = self.live.as_mut().filter(|live| live.lease == lease);
        let live = live.ok_or_else(|| Violation(format!("lease {lease} was not live")))?;
        holds(actor == Actor::Machine(live.machine), || format!("{actor} does not hold lease {lease}"))?;
        Ok(live)
    }

    /// The live attempt, for an event by which the platform may end it as well. A worker ends an attempt only after it
    /// accepted the job.
    fn fenced_or_platform(&mut self, lease: Lease, actor: Actor) -> Held<&mut LeaseFacts> {
        if actor != Actor::Platform {
            let live = self.fenced(lease, actor)?;
            holds(live.accepted.is_some(), || "it was never accepted".to_owned())?;
            return Ok(live);
        }
        let live = self.live.as_mut().filter(|live| live.lease == lease);
        live.ok_or_else(|| Violation(format!("lease {lease} was not live")))
    }

    fn by_its_people(&self, actor: Actor) -> Held {
        let allowed = matches!(actor, Actor::Operator(_)) || actor == Actor::Account(self.account);
        holds(allowed, || format!("{actor} had no right to"))
    }

    fn assigned(
        &mut self,
        entry: &Entry<'_>,
        e: &JobAssigned,
        machines: &BTreeMap<MachineId, MachineFacts>,
        rules: &Rules,
    ) -> Held {
        holds(entry.envelope.actor == Actor::Platform, || "not for anyone else to assign".to_owned())?;
        holds(self.live.is_none(), || "a second live lease".to_owned())?;
        holds(e.submission == self.submission, || "it cites another submission".to_owned())?;
        let used = self.attempts_used;
        holds(e.attempt == used + 1, || format!("attempt {} after {used}", e.attempt))?;
        holds(e.attempt <= self.limits.max_attempts, || "no attempt was left".to_owned())?;
        let pauses = [self.avoid.get(&e.machine).copied(), self.not_before];
        let early = |until: &Timestamp| entry.at.plus(rules.skew) < *until;
        holds(!pauses.iter().flatten().any(early), || "before the pause was over".to_owned())?;
        let machine = machines.get(&e.machine).ok_or_else(|| Violation("to no machine".to_owned()))?;
        let terms = &e.terms;
        let sound = terms.provider == machine.owner && terms.fee_basis_points == rules.fee;
        holds(sound && machine.prices.contains(&terms.price), || format!("made-up terms {terms:?}"))?;
        let Requirements { machine: named, price_cap, .. } = &self.placement.requirements;
        holds(named.is_none_or(|named| named == e.machine), || "another was named".to_owned())?;
        holds(price_cap.is_none_or(|cap| terms.price <= cap), || "dearer than the cap".to_owned())?;
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

    /// Checks a reason: one of the platform's must be true, and a worker gives only reasons that it can know.
    fn reason(live: &LeaseFacts, reason: Reason, actor: Actor) -> Held {
        holds(actor == Actor::Platform || !platforms_own(reason), || format!("{actor} claims {reason:?}"))?;
        match reason {
            Reason::ProviderLost => holds(live.lost, || "its machine was never lost".to_owned()),
            Reason::AssignTimeout => holds(live.accepted.is_none(), || "it was accepted".to_owned()),
            Reason::NoMachine => Err(Violation("it had a machine".to_owned())),
            _ => Ok(()),
        }
    }

    fn requeued(&mut self, entry: &Entry<'_>, e: &Requeued) -> Held {
        let actor = entry.envelope.actor;
        let live = self.fenced_or_platform(e.lease, actor)?;
        Self::reason(live, e.reason, actor)?;
        holds(e.excluded == live.machine, || "another machine is blamed".to_owned())?;
        let has_run = live.started.is_some();
        let another = matches!(e.fault, Fault::Provider | Fault::Nobody) && e.reason.fault() == e.fault;
        holds(another, || "another attempt does not help".to_owned())?;
        let until = e.until.ok_or_else(|| Violation("no pause".to_owned()))?;
        self.attempts_used += u32::from(e.fault == Fault::Provider || has_run);
        holds(self.attempts_used < self.limits.max_attempts, || "no attempt was left".to_owned())?;
        holds(self.cancel.is_none(), || "it was being cancelled".to_owned())?;
        if e.fault == Fault::Nobody {
            self.not_before = Some(until);
        } else {
            self.avoid.insert(e.excluded, until);
        }
        self.end_lease(entry.seq);
        Ok(())
    }

    fn failed(&mut self, entry: &Entry<'_>, e: &Failed) -> Held {
        let actor = entry.envelope.actor;
        holds(e.fault == e.reason.fault(), || "the fault is not the reason's".to_owned())?;
        if let Some(lease) = e.lease {
            let live = self.fenced_or_platform(lease, actor)?;
            Self::reason(live, e.reason, actor)?;
            let uses = e.fault == Fault::Provider || live.started.is_some();
            let last = self.attempts_used + u32::from(uses) >= self.limits.max_attempts || self.cancel.is_some();
            let another_helps = matches!(e.fault, Fault::Provider | Fault::Nobody);
            holds(!another_helps || last, || "an attempt was left".to_owned())?;
        } else {
            holds(actor == Actor::Platform, || "not for anyone else to say".to_owned())?;
            holds(e.reason == Reason::NoMachine && self.live.is_none(), || "a lease was live".to_owned())?;
        }
        self.end(entry, e.fault == Fault::Consumer, false, e.usage.map(|u| u.run));
        Ok(())
    }

    fn cancelled(&mut self, entry: &Entry<'_>, e: &Cancelled) -> Held {
        let actor = entry.envelope.actor;
        holds(e.lease == self.live.as_ref().map(|l| l.lease), || "not of the live lease".to_owned())?;
        match (e.lease, self.cancel) {
            (Some(lease), Some(_)) => {
                self.fenced_or_platform(lease, actor)?;
            }
            (_, None) => {
                self.by_its_people(actor)?;
                let idle = self.live.as_ref().is_none_or(|l| l.accepted.is_none());
                holds(idle, || "its worker was not asked to stop".to_owned())?;
            }
            (None, Some(_)) => return Err(Violation("the request outlived its lease".to_owned())),
        }
        self.end(entry, true, true, e.usage.map(|u| u.run));
        Ok(())
    }

    /// Checks that the platform ends no attempt before its time, as far as the clocks can tell.
    fn patience(&self, entry: &Entry<'_>, rules: &Rules) -> Held {
        let waited = |since: Timestamp| entry.at.since(since).0 + rules.skew.0;
        let reason = match entry.event {
            _ if entry.envelope.actor != Actor::Platform => return Ok(()),
            Event::Requeued(e) => Some(e.reason),
            Event::Failed(e) => Some(e.reason),
            Event::Cancelled(_) => None,
            _ => return Ok(()),
        };
        let (since, least) = match (reason, &self.live) {
            (Some(Reason::NoMachine), _) => (Some(self.submitted), self.limits.queue.millis().0),
            (Some(Reason::ProviderLost), _) | (_, None) => return Ok(()),
            (Some(Reason::AssignTimeout), Some(live)) => (Some(live.assigned), rules.accept_within.0),
            (Some(Reason::PrepareTimeout), Some(live)) => (live.accepted, PREPARING.0),
            (Some(Reason::UploadTimeout), Some(live)) => (live.exited.map(|(_, at, _)| at), UPLOADING.0),
            (None, _) => (self.cancel.map(|(_, at)| at), rules.grace.0),
            (Some(Reason::NotReported), Some(live)) => {
                let budget = live.price.time_for(self.hold).unwrap_or(Millis(u64::MAX));
                let limit = self.limits.time.millis().min(budget);
                (live.started.map(|(_, at)| at), limit.0.saturating_add(REPORTING.0))
            }
            (Some(reason), Some(_)) => return Err(Violation(format!("the platform claims {reason:?}"))),
        };
        holds(since.is_some_and(|since| waited(since) >= least), || format!("cut off: {reason:?} before {least} ms"))
    }

    fn end_lease(&mut self, seq: Seq) -> Option<LeaseFacts> {
        let live = self.live.take()?;
        self.past.insert(live.lease, (live.machine, seq));
        Some(live)
    }

    fn end(&mut self, entry: &Entry<'_>, billed: bool, cancelled: bool, run: Option<Millis>) {
        let attempt = self.end_lease(entry.seq);
        self.ended = Some(Ended { seq: entry.seq, at: entry.at, billed, cancelled, run, attempt });
    }
}
