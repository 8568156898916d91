//! Authorisation: which actor may give which command. No other file decides that, and the default is no.

use gpubnb_events::{AccountId, Actor, command::MachineChange};

use super::{Command, Refusal, Settings, World, job::Job};

/// Refuses an account that may not add machines.
pub fn may_enroll(world: &World, owner: AccountId) -> Result<(), Refusal> {
    let account = world.account(owner).ok_or(Refusal::UnknownAccount)?;
    account.suspended.as_ref().map_or(Ok(()), |why| Err(Refusal::Suspended(why.clone())))
}

/// Refuses a command that the actor may not give. Whether the state allows the command is decided later.
pub(crate) fn authorise(
    world: &World,
    job: Option<&Job>,
    actor: Actor,
    command: &Command,
    settings: &Settings,
) -> Result<(), Refusal> {
    let allowed = match command {
        Command::OpenAccount(account) | Command::RequestPayout(account, _) | Command::Submit(account, _) => {
            actor == Actor::Account(*account)
        }
        Command::Deposit(account, _) => {
            matches!(actor, Actor::Operator(_)) || (settings.test_funds && actor == Actor::Account(*account))
        }
        Command::ClosePayout(_) | Command::SetSuspension(_) => matches!(actor, Actor::Operator(_)),
        Command::Cancel(_) => match (actor, job) {
            (Actor::Operator(_), _) => true,
            // Somebody else's job looks like one that does not exist.
            (Actor::Account(account), Some(job)) if job.account == account => true,
            _ => return Err(Refusal::UnknownJob),
        },
        // Only the machine itself knows whether its owner uses it.
        Command::ChangeMachine(c) if matches!(c.wish, MachineChange::Away | MachineChange::Back) => {
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
        | Command::Suspect(_)
        | Command::Lose(_)
        | Command::Recover(_) => actor == Actor::Platform,
    };
    if allowed { Ok(()) } else { Err(Refusal::NotAllowed("it is not yours, or not for you to decide")) }
}
