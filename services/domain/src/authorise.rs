//! Authorisation: the actors that may give each command. No other file decides this. A command is forbidden unless a
//! line here allows it.

use gpubnb_events::{AccountId, Actor, command::MachineChange};

use super::{Command, DomainError, Settings, World, job::Job};

/// Checks that an account may add machines: the account is open and not suspended.
pub fn may_enroll(world: &World, owner: AccountId) -> Result<(), DomainError> {
    let account = world.account(owner).ok_or(DomainError::UnknownAccount)?;
    account.suspended.as_ref().map_or(Ok(()), |why| Err(DomainError::Suspended(why.clone())))
}

/// Refuses a command that the actor may not give. The command's own rules check the state later.
pub(crate) fn authorise(
    world: &World,
    job: Option<&Job>,
    actor: Actor,
    command: &Command,
    settings: &Settings,
) -> Result<(), DomainError> {
    let allowed = match command {
        Command::OpenAccount(account)
        | Command::RequestPayout(account, _)
        | Command::CloseAccount(account, _)
        | Command::Submit(account, _)
        | Command::SubmitBatch(account, _) => actor == Actor::Account(*account),
        Command::Deposit(account, _) => {
            matches!(actor, Actor::Operator(_)) || (settings.test_funds && actor == Actor::Account(*account))
        }
        Command::ClosePayout(_) | Command::SetSuspension(_) => matches!(actor, Actor::Operator(_)),
        Command::Cancel(_) => match (actor, job) {
            (Actor::Operator(_), _) => true,
            // The answer does not reveal that another account has a job with this id.
            (Actor::Account(account), Some(job)) if job.account == account => true,
            // The rest of a batch that is closed.
            (Actor::Platform, Some(job)) if world.batch_of(job).is_some_and(|batch| batch.closed.is_some()) => true,
            _ => return Err(DomainError::UnknownJob),
        },
        Command::CancelBatch(batch) => match (actor, world.batch(*batch)) {
            (Actor::Operator(_), _) => true,
            (Actor::Account(account), Some(batch)) if batch.submitted.account == account => true,
            _ => return Err(DomainError::UnknownBatch),
        },
        // Only the machine itself knows whether its owner uses it.
        Command::ChangeMachine(c) if matches!(c.change, MachineChange::Away | MachineChange::Back) => {
            actor == Actor::Machine(c.machine)
        }
        Command::ChangeMachine(c) => match actor {
            Actor::Operator(_) => true,
            Actor::Machine(machine) => machine == c.machine,
            Actor::Account(account) => world.machine(c.machine).is_some_and(|m| m.owner == account),
            Actor::Platform => false,
        },
        Command::ListMachine(machine, _)
        | Command::RecordTest(machine, _)
        | Command::Accept(machine, _)
        | Command::Decline(machine, _)
        | Command::Start(machine, _)
        | Command::Exit(machine, _)
        | Command::Report(machine, _) => actor == Actor::Machine(*machine),
        Command::Assign(_)
        | Command::Expire(_)
        | Command::Abandon(_)
        | Command::Settle(_)
        | Command::OpenTasks(_)
        | Command::EndBatch(_)
        | Command::ReleaseHold(..)
        | Command::Suspect(_)
        | Command::Lose(_)
        | Command::Recover(_) => actor == Actor::Platform,
    };
    if allowed { Ok(()) } else { Err(DomainError::NotAllowed("the actor has no right to this command")) }
}
