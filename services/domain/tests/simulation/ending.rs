//! The end of a history. Nothing goes wrong any more, and everybody does what they should. Then every job must get
//! settled, no money may be held, every replica must know the same, and repeating commands must change nothing.

use gpubnb_domain::{
    Command, Decision, Refusal, World,
    job::{Job, Phase},
    machine::Machine,
    submissions::MEMORY,
};
use gpubnb_events::{Actor, Aggregate, Event, JobId, Millis, ledger::LedgerAccount};

use super::{
    checker::{Checker, Held, Violation, holds},
    facts::JobFacts,
    managers,
    market::{Market, Said},
    op::Caller,
    tape::Dice,
};

/// Rounds until everything must be over. The rounds get longer and longer; the last ones take hours.
const ROUNDS: u32 = 60;
/// A time well within the hour that preparing may take.
const PREPARED_SOON: Millis = Millis(1_800_000);

/// Brings a history to its end, and checks everything that must be true there.
pub(crate) fn rest(m: &mut Market) -> Held {
    m.settle_down()?;
    alike(m)?;
    let cancelling = cancelling(m);
    let mut pause = 5_000;
    for _ in 0..ROUNDS {
        work(m)?;
        manage(m)?;
        if m.checker.jobs.values().all(|job| job.settled.is_some()) {
            break;
        }
        m.now = m.now.plus(Millis(pause));
        pause = (pause * 3 / 2).min(3_700_000);
    }
    nothing_is_left(m)?;
    for id in cancelling {
        let cancelled = m.checker.jobs.get(&id).and_then(|j| j.ended.as_ref()).is_some_and(|e| e.cancelled);
        holds(cancelled, || format!("job {id} was being cancelled, and its silence was not taken for a yes"))?;
    }
    alike(m)?;
    let mut fresh = World::default();
    m.broker.log().iter().for_each(|recorded| fresh.apply(recorded, &m.settings));
    for replica in &m.replicas {
        same(&fresh, &replica.world)?;
    }
    m.said.iter().try_for_each(|said| said_again(m, &fresh, said))
}

/// Jobs that are being cancelled before they started, on a machine that will not report any more.
fn cancelling(m: &Market) -> Vec<JobId> {
    let silent = |job: &JobFacts| {
        let live = job.live.as_ref().filter(|_| job.cancel.is_some())?;
        let fresh = m.now.since(live.assigned) < PREPARED_SOON && !live.lost;
        (fresh && live.started.is_none() && !m.checker.honest.contains(&live.machine)).then_some(())
    };
    m.checker.jobs.iter().filter(|(_, job)| silent(job).is_some()).map(|(id, _)| *id).collect()
}

/// Honest workers accept, start and report all their jobs.
fn work(m: &mut Market) -> Held {
    let mut dice = Dice::new(m.broker.last_seq().0);
    for worker in 0..m.workers.len() {
        if !m.workers[worker].honest {
            continue;
        }
        m.sync(worker, 0);
        while let Some((job, lease)) = m.next_message(worker, &mut dice) {
            let (caller, actor, command) = m.take(worker, job, lease, false);
            m.say_at_once(caller, actor, command)?;
        }
        let leases: Vec<_> = m.workers[worker].runs.keys().copied().collect();
        for lease in leases {
            if let Some((actor, command)) = m.get_on(worker, lease, &mut dice) {
                m.say_at_once(Caller::Worker(worker, lease), actor, command)?;
            }
        }
    }
    Ok(())
}

/// The process managers of one replica give every command that is due.
fn manage(m: &mut Market) -> Held {
    for kind in 0..3 {
        m.replicas[0].catch_up(&m.broker, m.broker.last_seq(), &m.settings);
        let (world, now) = (&m.replicas[0].world, m.replicas[0].clock(m.now));
        let due = match kind {
            0 => managers::settle(world),
            1 => managers::schedule(world, now),
            _ => managers::reconcile(world, now, &m.settings),
        };
        for command in due {
            m.say_at_once(Caller::Anyone, Actor::Platform, command)?;
        }
    }
    Ok(())
}

fn nothing_is_left(m: &Market) -> Held {
    for (id, job) in &m.checker.jobs {
        holds(job.settled.is_some(), || format!("job {id} was never settled: {job:?}"))?;
    }
    for account in m.checker.accounts() {
        let held = m.checker.balance(LedgerAccount::Held(account));
        // A known flaw: if two accounts submit one id at once, the later one gets no job, and its hold is never
        // released.
        let stranded = m.checker.stranded.get(&account).copied().unwrap_or_default();
        holds(held == stranded, || format!("{held} is held for {account} for ever"))?;
    }
    Ok(())
}

/// Checks that every replica that caught up knows the same as the judge, and so does a job that is loaded from the log.
fn alike(m: &mut Market) -> Held {
    let Market { replicas, broker, settings, checker, .. } = m;
    for replica in replicas.iter_mut() {
        replica.catch_up(broker, broker.last_seq(), settings);
    }
    for replica in replicas.iter().skip(1) {
        same(&replicas[0].world, &replica.world)?;
    }
    let world = &replicas[0].world;
    known(world, checker)?;
    for job in world.jobs() {
        let aggregate = Some(Aggregate::Job(job.id));
        let own: Vec<_> = broker.log().iter().filter(|r| r.aggregate == aggregate).cloned().collect();
        let alone = broker.get(job.submission).and_then(|s| gpubnb_domain::rebuild(s, &own, settings));
        holds(alone.is_some_and(|alone| same_job(&alone, job)), || format!("job {} loads as another", job.id))?;
    }
    Ok(())
}

/// Compares a replica's state with the judge's facts.
fn known(world: &World, checker: &Checker) -> Held {
    for id in checker.accounts() {
        let account = world.account(id).ok_or_else(|| Violation(format!("{id} is forgotten")))?;
        let said = (i128::from(account.available.0), i128::from(account.held.0));
        let is = (checker.balance(LedgerAccount::Available(id)), checker.balance(LedgerAccount::Held(id)));
        holds(said == is, || format!("{id} has {is:?} and is thought to have {said:?}"))?;
    }
    for (id, facts) in &checker.jobs {
        let Some(job) = world.job(*id) else {
            holds(facts.settled.is_some(), || format!("job {id} left before it was settled"))?;
            continue;
        };
        let phase = match (&facts.ended, &facts.live) {
            (Some(_), _) => Phase::Ended,
            (None, None) => Phase::Queued,
            (None, Some(live)) if live.exited.is_some() => Phase::Collecting,
            (None, Some(live)) if live.started.is_some() => Phase::Running,
            (None, Some(live)) if live.accepted.is_some() => Phase::Accepted,
            (None, Some(_)) => Phase::Assigned,
        };
        holds(facts.settled.is_none() && job.phase == phase, || format!("job {id} is thought to be {:?}", job.phase))?;
        holds(world.queued().any(|q| q == *id) == (phase == Phase::Queued), || format!("job {id} in the queue"))?;
        holds(world.ended().any(|q| q == *id) == (phase == Phase::Ended), || format!("job {id} among the ended"))?;
        let on = |(_, m): &(&_, &Machine)| m.leases.contains_key(id);
        let holder = world.machines().find(on).map(|(id, m)| (*id, m.leases.values().copied().collect::<Vec<_>>()));
        let right = match (&facts.live, holder) {
            (Some(live), Some((machine, leases))) => machine == live.machine && leases.contains(&live.lease),
            (None, None) => true,
            _ => false,
        };
        holds(right, || format!("job {id} stands on the wrong machine"))?;
    }
    let live = checker.jobs.values().filter(|j| j.live.is_some()).count();
    let held: usize = world.machines().map(|(_, m)| m.leases.len()).sum();
    holds(live == held, || format!("{held} leases on machines, {live} are live"))
}

fn same(a: &World, b: &World) -> Held {
    let differ = |what: &str| Violation(format!("two replicas disagree about {what}"));
    if a.applied() != b.applied() || !a.queued().eq(b.queued()) || !a.ended().eq(b.ended()) {
        return Err(differ("where they are"));
    }
    if a.jobs().count() != b.jobs().count() || !a.jobs().zip(b.jobs()).all(|(a, b)| same_job(a, b)) {
        return Err(differ("jobs"));
    }
    let same_machine = |a: &Machine, b: &Machine| {
        (a.last, a.owner, &a.offer, a.availability, a.presence, &a.leases)
            == (b.last, b.owner, &b.offer, b.availability, b.presence, &b.leases)
    };
    let machines = a.machines().zip(b.machines()).all(|((_, a), (_, b))| same_machine(a, b));
    if !machines || a.machines().count() != b.machines().count() {
        return Err(differ("machines"));
    }
    Ok(())
}

fn same_job(a: &Job, b: &Job) -> bool {
    let fixed = |j: &Job| (j.id, j.account, j.submission, j.hold, j.last, j.phase, j.since, j.submitted_at);
    fixed(a) == fixed(b)
        && (&a.attempt, a.attempts_used, &a.avoid, a.not_before, a.cancel, &a.ending, a.settled)
            == (&b.attempt, b.attempts_used, &b.avoid, b.not_before, b.cancel, &b.ending, b.settled)
        && (&a.spec, &a.placement, &a.limits) == (&b.spec, &b.placement, &b.limits)
}

/// Repeats a command that was granted, when everything is over.
fn said_again(m: &Market, fresh: &World, said: &Said) -> Held {
    let job = said.command.job().filter(|id| fresh.job(*id).is_none());
    let absent = job.and_then(|id| m.broker.load(id, &m.settings));
    let decision = fresh.decide(said.actor, &said.command, absent.as_ref(), m.now, &m.settings);
    let sound = match (&said.command, &decision) {
        // These commands have no id of their own: repeating one is a new wish.
        (
            Command::ChangeMachine(_)
            | Command::ListMachine(..)
            | Command::RecordTest(..)
            | Command::SetSuspension(_)
            | Command::Suspect(_)
            | Command::Lose(_)
            | Command::Recover(_),
            _,
        ) => true,
        // An id is remembered for a day, and refused afterwards.
        (Command::Submit(_, c), Err(Refusal::IdOutOfTime)) => m.now.since(c.job.made_at()) > MEMORY,
        // A known flaw: if two accounts submit one id at once, the later one learns of it only when it asks again.
        (Command::Submit(id, c), Err(Refusal::IdReused(_))) => {
            m.checker.jobs.get(&c.job).is_some_and(|j| j.account != *id)
        }
        (
            Command::OpenAccount(_)
            | Command::Deposit(..)
            | Command::RequestPayout(..)
            | Command::ClosePayout(_)
            | Command::Submit(..)
            | Command::Decline(..)
            | Command::Report(..)
            | Command::Settle(_),
            decision,
        ) => *decision == Ok(Decision::Already(said.seq)),
        (_, decision) => !matches!(decision, Ok(Decision::Append(_))),
    };
    holds(sound, || {
        let event = m.broker.get(said.seq).and_then(|r| r.event()).map(Event::name);
        format!("{:?} stands at {} ({event:?}), and said again it is {decision:?}", said.command, said.seq)
    })
}
