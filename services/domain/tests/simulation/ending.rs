//! The end of a history. From here on nothing goes wrong: workers and process managers do everything that is due. Then
//! every job must get settled, no money may be held, all replicas must have the same state, and a repeated command must
//! change nothing.

use gpubnb_domain::{
    Command, Decision, DomainError, World,
    batch::Batch,
    due,
    job::{Job, Phase},
    machine::Machine,
    recent_submissions::RETENTION,
};
use gpubnb_events::{Actor, Aggregate, Event, JobId, Millis, ledger::LedgerAccount};

use super::{
    checker::{Checker, Verdict, Violation, ensure},
    facts::JobFacts,
    managers,
    market::{GrantedCommand, Market},
    op::Caller,
    tape::Dice,
};

/// Rounds after which every job must be settled. The time between two rounds grows from 5 seconds to about an hour.
const ROUNDS: u32 = 200;
/// A time that is clearly shorter than the hour in which a worker must prepare a job.
const RECENTLY_ASSIGNED: Millis = Millis(1_800_000);

/// Brings a history to its end, and checks the promises about the end.
pub(crate) fn finish(market: &mut Market) -> Verdict {
    market.complete_all()?;
    check_replicas_agree(market)?;
    let to_be_cancelled = jobs_to_be_cancelled(market);
    // A suspended account's batch opens no tasks.
    let open: Vec<_> = market.checker.batches.iter().filter(|(_, batch)| !batch.closed).map(|(id, _)| *id).collect();
    for batch in open {
        if market.checker.is_suspended(market.checker.batches[&batch].submitted.account) {
            market.issue_and_wait(Caller::Client, Actor::Operator(None), Command::CancelBatch(batch))?;
        }
    }
    let mut pause = 5_000;
    for _ in 0..ROUNDS {
        run_workers(market)?;
        run_managers(market)?;
        let are_settled = market.checker.jobs.values().all(|job| job.settled.is_some());
        if are_settled && market.checker.batches.values().all(|batch| batch.closed) {
            break;
        }
        market.now = market.now.plus(Millis(pause));
        pause = (pause * 3 / 2).min(3_700_000);
    }
    check_all_settled(market)?;
    for id in to_be_cancelled {
        let cancelled = market.checker.jobs.get(&id).and_then(|j| j.ended.as_ref()).is_some_and(|e| e.cancelled);
        ensure(cancelled, || format!("job {id} was being cancelled, but did not end as cancelled"))?;
    }
    check_replicas_agree(market)?;
    let mut fresh = World::default();
    market.broker.log().iter().for_each(|recorded| fresh.apply(recorded, &market.settings));
    for replica in &market.replicas {
        compare_worlds(&fresh, &replica.world)?;
    }
    market.granted.iter().try_for_each(|granted| check_repeated(market, &fresh, granted))
}

/// The jobs that must end as cancelled, although their worker reports nothing. Someone asked to cancel such a job
/// before its start, and the lying worker has it.
fn jobs_to_be_cancelled(market: &Market) -> Vec<JobId> {
    let is_affected = |job: &JobFacts| {
        let live = job.live.as_ref().filter(|_| job.cancel.is_some())?;
        let is_recent = market.now.since(live.assigned) < RECENTLY_ASSIGNED && !live.lost;
        (is_recent && live.started.is_none() && !market.checker.honest.contains(&live.machine)).then_some(())
    };
    market.checker.jobs.iter().filter(|(_, job)| is_affected(job).is_some()).map(|(id, _)| *id).collect()
}

/// Honest workers accept, start and report all their jobs.
fn run_workers(market: &mut Market) -> Verdict {
    let mut dice = Dice::new(market.broker.last_seq().0);
    for worker in 0..market.workers.len() {
        if !market.workers[worker].honest {
            continue;
        }
        market.sync(worker, 0);
        while let Some((job, lease)) = market.next_message(worker, &mut dice) {
            let (caller, actor, command) = market.accept_or_decline(worker, job, lease, false);
            market.issue_and_wait(caller, actor, command)?;
        }
        let leases: Vec<_> = market.workers[worker].attempts.keys().copied().collect();
        for lease in leases {
            if let Some((actor, command)) = market.next_command(worker, lease, &mut dice) {
                market.issue_and_wait(Caller::Worker(worker, lease), actor, command)?;
            }
        }
    }
    Ok(())
}

/// The process managers of one replica give every command that is due.
fn run_managers(market: &mut Market) -> Verdict {
    for kind in 0..4 {
        market.replicas[0].catch_up(&market.broker, market.broker.last_seq(), &market.settings);
        let (world, now) = (&market.replicas[0].world, market.replicas[0].clock(market.now));
        let due = match kind {
            0 => managers::settle(world),
            1 => managers::schedule(world, now),
            2 => due::due_batches(world, now, &market.settings),
            _ => managers::reconcile(world, now, &market.settings),
        };
        for command in due {
            market.issue_and_wait(Caller::Client, Actor::Platform, command)?;
        }
    }
    Ok(())
}

/// Checks that every job is settled and that no money is held.
fn check_all_settled(market: &Market) -> Verdict {
    for (id, job) in &market.checker.jobs {
        ensure(job.settled.is_some(), || format!("job {id} was never settled: {job:?}"))?;
    }
    for (id, batch) in &market.checker.batches {
        ensure(batch.closed, || format!("batch {id} was never closed: {batch:?}"))?;
    }
    for account in market.checker.accounts() {
        let held = market.checker.balance(LedgerAccount::Held(account));
        // If two accounts submitted one job id at the same time, the later submission made no job. Its hold must be
        // released, too.
        ensure(held == 0, || format!("{held} is held for {account} for ever"))?;
    }
    Ok(())
}

/// Lets all replicas read the whole log. Then checks that their states are the same, and that the checker's facts
/// agree. Every job that is loaded from the log must be the same as in the state, too.
fn check_replicas_agree(market: &mut Market) -> Verdict {
    let Market { replicas, broker, settings, checker, .. } = market;
    for replica in replicas.iter_mut() {
        replica.catch_up(broker, broker.last_seq(), settings);
    }
    for replica in replicas.iter().skip(1) {
        compare_worlds(&replicas[0].world, &replica.world)?;
    }
    let world = &replicas[0].world;
    compare_with_checker(world, checker)?;
    for job in world.jobs() {
        let aggregate = Some(Aggregate::Job(job.id));
        let messages: Vec<_> = broker.log().iter().filter(|r| r.aggregate == aggregate).cloned().collect();
        // A task without an event of its own cannot be loaded: nothing in its messages names the batch.
        if job.spec.task.is_some() && messages.is_empty() {
            continue;
        }
        let loaded =
            broker.get(job.submission).and_then(|s| gpubnb_domain::rebuild_job(job.id, s, &messages, settings));
        ensure(loaded.is_some_and(|loaded| same_job(&loaded, job)), || {
            format!("job {} is different when loaded", job.id)
        })?;
    }
    Ok(())
}

/// Compares a replica's state with the checker's facts.
fn compare_with_checker(world: &World, checker: &Checker) -> Verdict {
    for id in checker.accounts() {
        let account = world.account(id).ok_or_else(|| Violation(format!("{id} is forgotten")))?;
        let in_state = (i128::from(account.available.0), i128::from(account.held.0));
        let expected = (checker.balance(LedgerAccount::Available(id)), checker.balance(LedgerAccount::Held(id)));
        ensure(in_state == expected, || format!("{id} has {in_state:?} instead of {expected:?}"))?;
    }
    for (id, facts) in &checker.jobs {
        let Some(job) = world.job(*id) else {
            ensure(facts.settled.is_some(), || format!("job {id} left before it was settled"))?;
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
        ensure(facts.settled.is_none() && job.phase == phase, || format!("job {id} is {:?} in the state", job.phase))?;
        ensure(world.queued().any(|q| q == *id) == (phase == Phase::Queued), || format!("job {id} in the queue"))?;
        ensure(world.ended().any(|q| q == *id) == (phase == Phase::Ended), || format!("job {id} among the ended"))?;
        let has_job = |(_, m): &(&_, &Machine)| m.leases.contains_key(id);
        let holder =
            world.machines().find(has_job).map(|(id, m)| (*id, m.leases.values().copied().collect::<Vec<_>>()));
        let is_right = match (&facts.live, holder) {
            (Some(live), Some((machine, leases))) => machine == live.machine && leases.contains(&live.lease),
            (None, None) => true,
            _ => false,
        };
        ensure(is_right, || format!("job {id} is on the wrong machine"))?;
    }
    let live = checker.jobs.values().filter(|j| j.live.is_some()).count();
    let held: usize = world.machines().map(|(_, m)| m.leases.len()).sum();
    ensure(live == held, || format!("{held} leases on machines, {live} are live"))
}

/// Checks that two replicas have the same state.
fn compare_worlds(a: &World, b: &World) -> Verdict {
    let differ = |what: &str| Violation(format!("two replicas disagree about {what}"));
    if a.applied() != b.applied() || !a.queued().eq(b.queued()) || !a.ended().eq(b.ended()) {
        return Err(differ("the position or the queues"));
    }
    let counts = |b: &Batch| (b.opened, b.waiting, b.running, b.failed, b.settled, b.closed, b.last);
    if !a.batches().map(|(id, batch)| (id, counts(batch))).eq(b.batches().map(|(id, batch)| (id, counts(batch)))) {
        return Err(differ("batches"));
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

/// True if both replicas have the same state of a job.
fn same_job(a: &Job, b: &Job) -> bool {
    // A task that is loaded from the log has the time at which its batch was submitted.
    let submitted_at = |j: &Job| j.spec.task.is_none().then_some(j.submitted_at);
    let fixed = |j: &Job| (j.id, j.account, j.submission, j.hold, j.last, j.phase, j.since, submitted_at(j));
    fixed(a) == fixed(b)
        && (&a.attempt, a.attempts_used, &a.avoid, a.not_before, a.cancel, &a.ending, a.settled)
            == (&b.attempt, b.attempts_used, &b.avoid, b.not_before, b.cancel, &b.ending, b.settled)
        && (&a.spec, &a.placement, &a.limits) == (&b.spec, &b.placement, &b.limits)
}

/// Repeats a command that was granted, when every job is settled. `fresh` is the final state, folded from the whole
/// log. The repetition must give the sequence of the first event, and must not write another event.
fn check_repeated(market: &Market, fresh: &World, granted: &GrantedCommand) -> Verdict {
    let job = granted.command.job().filter(|id| fresh.job(*id).is_none());
    let absent = job.and_then(|id| market.broker.load_job(id, &market.settings));
    let decision = fresh.decide(granted.actor, &granted.command, absent.as_ref(), market.now, &market.settings);
    let is_right = match (&granted.command, &decision) {
        // These commands have no id, so a repetition is a new command.
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
        // The market remembers a job id for a day, and refuses it afterwards.
        (Command::Submit(_, c), Err(DomainError::IdOutOfTime)) => market.now.since(c.job.made_at()) > RETENTION,
        // If two accounts submitted one job id at the same time, the later submission made no job. The executor refuses
        // that command at once (`services/src/execute.rs`); the simulation refuses only its repetition.
        (Command::Submit(id, c), Err(DomainError::IdReused(_))) => {
            market.checker.jobs.get(&c.job).is_some_and(|j| j.account != *id) || market.checker.is_in_batch(c.job)
        }
        (Command::SubmitBatch(_, c), Err(DomainError::IdOutOfTime)) => market.now.since(c.batch.made_at()) > RETENTION,
        (Command::SubmitBatch(id, c), Err(DomainError::IdReused(_))) => {
            market.checker.batches.get(&c.batch).is_none_or(|batch| batch.submitted.account != *id)
        }
        (
            Command::OpenAccount(_)
            | Command::Deposit(..)
            | Command::RequestPayout(..)
            | Command::ClosePayout(_)
            | Command::Submit(..)
            | Command::SubmitBatch(..)
            | Command::Decline(..)
            | Command::Report(..)
            | Command::Settle(_),
            decision,
        ) => *decision == Ok(Decision::AlreadyDone(granted.seq)),
        (_, decision) => !matches!(decision, Ok(Decision::Append(_))),
    };
    ensure(is_right, || {
        let event = market.broker.get(granted.seq).and_then(|r| r.event()).map(Event::name);
        format!("{:?} wrote {} ({event:?}), and its repetition gives {decision:?}", granted.command, granted.seq)
    })
}
