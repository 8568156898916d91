//! The check of an answer. A caller whose command is done gets the sequence of an event. That event must be the one
//! that the command asked for.

use gpubnb_domain::Command;
use gpubnb_events::{Actor, Aggregate, Event, JobId, Lease, MachineId, Seq};

use super::{
    broker::Broker,
    checker::{Checker, Verdict, ensure},
};

/// Checks the answer `Done(seq)`: the event at this sequence must be the one that the command asked for.
pub(crate) fn check_done(checker: &Checker, broker: &Broker, actor: Actor, command: &Command, seq: Seq) -> Verdict {
    let event = broker.get(seq).and_then(|r| r.event());
    let is_right = match (command, event) {
        (Command::OpenAccount(id), Some(Event::AccountOpened(e))) => e.account == *id,
        (Command::Deposit(id, c), Some(Event::FundsDeposited(e))) => (e.account, e.deposit) == (*id, c.deposit),
        (Command::RequestPayout(id, c), Some(Event::PayoutRequested(e))) => (e.account, e.payout) == (*id, c.payout),
        (Command::ClosePayout(c), Some(Event::PayoutPaid(e))) => (e.account, e.payout) == (c.account, c.payout),
        (Command::ClosePayout(c), Some(Event::PayoutFailed(e))) => (e.account, e.payout) == (c.account, c.payout),
        (Command::Submit(id, c), Some(Event::JobSubmitted(e))) => {
            (e.account, e.job, &e.spec, &e.placement) == (*id, c.job, &c.spec, &c.placement)
        }
        (Command::SubmitBatch(id, c), Some(Event::BatchSubmitted(e))) => {
            (e.account, e.batch, &e.spec, &e.tasks) == (*id, c.batch, &c.job.spec, &c.tasks)
        }
        (Command::CancelBatch(batch) | Command::EndBatch(batch), Some(Event::BatchClosed(e))) => e.batch == *batch,
        (Command::OpenTasks(batch), Some(Event::TasksOpened(e))) => e.batch == *batch,
        (Command::Cancel(job), Some(Event::CancelRequested(e))) => e.job == *job,
        (Command::Cancel(job), Some(Event::Cancelled(e))) => e.job == *job,
        (Command::Assign(job), Some(Event::JobAssigned(e))) => e.job == *job,
        (Command::Settle(job), Some(Event::Settled(e))) => e.job == *job,
        // If two callers end one attempt at the same time, both get the sequence of the event that was written.
        (Command::Expire(job) | Command::Abandon(job), Some(event)) => ended_by(checker, *job, event, seq),
        (Command::Accept(_, c), Some(event)) => event.job() == Some(c.job) && was_accepted(checker, c.job, c.lease),
        (Command::Start(machine, c), Some(Event::Started(e))) => {
            // The checker has checked the lease when it read this event.
            (e.job, e.lease, Actor::Machine(*machine)) == (c.job, c.lease, actor)
        }
        (Command::Decline(_, c), Some(_)) => lease_ended_at(checker, c.job, c.lease, seq),
        (Command::Exit(machine, c), Some(Event::Exited(e))) => {
            (e.job, e.lease, Actor::Machine(*machine)) == (c.job, c.lease, actor)
        }
        (Command::Exit(_, c), Some(_)) => lease_ended_at(checker, c.job, c.lease, seq),
        (Command::Report(_, c), Some(_)) => lease_ended_at(checker, c.job, c.lease, seq),
        (Command::ChangeMachine(c), Some(event)) => is_machine_event(event, c.machine),
        (Command::ListMachine(id, _) | Command::RecordTest(id, _), Some(event)) => is_machine_event(event, *id),
        (Command::Suspect(id) | Command::Lose(id) | Command::Recover(id), Some(event)) => is_machine_event(event, *id),
        (Command::ReleaseHold(id, submission), Some(Event::HoldReleased(e))) => {
            (e.account, e.submission) == (*id, *submission)
        }
        (Command::SetSuspension(_), Some(_)) => true,
        (Command::CloseAccount(id, _), Some(Event::AccountClosed(e))) => e.account == *id,
        _ => false,
    };
    ensure(is_right, || {
        let found = event.map(Event::name);
        format!("{actor} got the sequence {seq} for {command:?}, but the event there is {found:?}")
    })
}

fn is_machine_event(event: &Event, id: MachineId) -> bool {
    event.aggregate() == Aggregate::Machine(id)
}

/// True if the attempt with this lease was accepted, or is over.
fn was_accepted(checker: &Checker, job: JobId, lease: Lease) -> bool {
    let Some(job) = checker.jobs.get(&job) else { return false };
    job.live.as_ref().is_some_and(|l| l.lease == lease && l.accepted.is_some()) || job.past.contains_key(&lease)
}

/// True if the event with this sequence ended the attempt with this lease.
fn lease_ended_at(checker: &Checker, job: JobId, lease: Lease, seq: Seq) -> bool {
    checker.jobs.get(&job).and_then(|j| j.past.get(&lease)).is_some_and(|(_, at)| *at == seq)
}

/// True if this event ended the job or one of its attempts.
fn ended_by(checker: &Checker, id: JobId, event: &Event, seq: Seq) -> bool {
    let Some(job) = checker.jobs.get(&id).filter(|_| event.job() == Some(id)) else { return false };
    job.past.values().any(|(_, at)| *at == seq) || job.ended.as_ref().is_some_and(|e| e.seq == seq)
}
