//! The check of an answer: the sequence that a caller is given must be that of the event that the caller asked for.

use gpubnb_domain::Command;
use gpubnb_events::{Actor, Aggregate, Event, JobId, Lease, MachineId, Seq};

use super::{
    broker::Broker,
    checker::{Checker, Held, holds},
};

/// Checks the answer "done, at this sequence".
pub(crate) fn confirm(checker: &Checker, broker: &Broker, actor: Actor, command: &Command, seq: Seq) -> Held {
    let event = broker.get(seq).and_then(|r| r.event());
    let sound = match (command, event) {
        (Command::OpenAccount(id), Some(Event::AccountOpened(e))) => e.account == *id,
        (Command::Deposit(id, c), Some(Event::FundsDeposited(e))) => (e.account, e.deposit) == (*id, c.deposit),
        (Command::RequestPayout(id, c), Some(Event::PayoutRequested(e))) => (e.account, e.payout) == (*id, c.payout),
        (Command::ClosePayout(c), Some(Event::PayoutPaid(e))) => (e.account, e.payout) == (c.account, c.payout),
        (Command::ClosePayout(c), Some(Event::PayoutFailed(e))) => (e.account, e.payout) == (c.account, c.payout),
        (Command::Submit(id, c), Some(Event::JobSubmitted(e))) => {
            (e.account, e.job, &e.spec, &e.placement) == (*id, c.job, &c.spec, &c.placement)
        }
        (Command::Cancel(job), Some(Event::CancelRequested(e))) => e.job == *job,
        (Command::Cancel(job), Some(Event::Cancelled(e))) => e.job == *job,
        (Command::Assign(job), Some(Event::JobAssigned(e))) => e.job == *job,
        (Command::Settle(job), Some(Event::Settled(e))) => e.job == *job,
        // If two callers end one attempt at the same time, both are given the ending that was written.
        (Command::Expire(job) | Command::Abandon(job), Some(event)) => ending_of_any(checker, *job, event, seq),
        (Command::Accept(_, c), Some(event)) => event.job() == Some(c.job) && accepted(checker, c.job, c.lease),
        (Command::Start(machine, c), Some(Event::Started(e))) => {
            // The program runs from here on. The judge has seen that the lease was live when the event was written.
            (e.job, e.lease, Actor::Machine(*machine)) == (c.job, c.lease, actor)
        }
        (Command::Decline(_, c), Some(_)) => ended_at(checker, c.job, c.lease, seq),
        (Command::Exit(machine, c), Some(Event::Exited(e))) => {
            (e.job, e.lease, Actor::Machine(*machine)) == (c.job, c.lease, actor)
        }
        (Command::Exit(_, c), Some(_)) => ended_at(checker, c.job, c.lease, seq),
        (Command::Report(_, c), Some(_)) => ended_at(checker, c.job, c.lease, seq),
        (Command::ChangeMachine(c), Some(event)) => is_of(event, c.machine),
        (Command::ListMachine(id, _) | Command::RecordTest(id, _), Some(event)) => is_of(event, *id),
        (Command::Suspect(id) | Command::Lose(id) | Command::Recover(id), Some(event)) => is_of(event, *id),
        (Command::SetSuspension(_), Some(_)) => true,
        _ => false,
    };
    holds(sound, || {
        let found = event.map(Event::name);
        format!("{actor} was told that {command:?} stands at {seq}, where {found:?} is")
    })
}

fn is_of(event: &Event, id: MachineId) -> bool {
    event.aggregate() == Aggregate::Machine(id)
}

fn accepted(checker: &Checker, job: JobId, lease: Lease) -> bool {
    let Some(job) = checker.jobs.get(&job) else { return false };
    job.live.as_ref().is_some_and(|l| l.lease == lease && l.accepted.is_some()) || job.past.contains_key(&lease)
}

fn ended_at(checker: &Checker, job: JobId, lease: Lease, seq: Seq) -> bool {
    checker.jobs.get(&job).and_then(|j| j.past.get(&lease)).is_some_and(|(_, at)| *at == seq)
}

fn ending_of_any(checker: &Checker, id: JobId, event: &Event, seq: Seq) -> bool {
    let Some(job) = checker.jobs.get(&id).filter(|_| event.job() == Some(id)) else { return false };
    job.past.values().any(|(_, at)| *at == seq) || job.ended.as_ref().is_some_and(|e| e.seq == seq)
}
