//! Actors: the people, machines and processes in whose name commands are given. The envelope of every event names its
//! actor.

use std::{fmt, str::FromStr};

use crate::ids::{AccountId, MachineId};

/// The person, machine or process in whose name a command is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Actor {
    /// A signed-in person.
    Account(AccountId),
    /// A machine of a provider.
    Machine(MachineId),
    /// A process of the platform that acts for itself, such as the scheduler, the settlement or the watchdog.
    Platform,
    /// A person who runs the platform. `None` only in old events, which do not name the operator.
    Operator(Option<AccountId>),
}

/// The error for a text that is not an actor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an actor")]
pub struct BadActor(String);

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Account(id) => write!(f, "account:{id}"),
            Self::Machine(id) => write!(f, "machine:{id}"),
            Self::Platform => f.write_str("platform"),
            Self::Operator(Some(id)) => write!(f, "operator:{id}"),
            Self::Operator(None) => f.write_str("operator"),
        }
    }
}

impl FromStr for Actor {
    type Err = BadActor;

    fn from_str(text: &str) -> Result<Self, BadActor> {
        let bad = || BadActor(text.chars().take(64).collect());
        match text.split_once(':') {
            Some(("account", id)) => id.parse().map(Self::Account).map_err(|_| bad()),
            Some(("machine", id)) => id.parse().map(Self::Machine).map_err(|_| bad()),
            None if text == "platform" => Ok(Self::Platform),
            Some(("operator", id)) => id.parse().map(|id| Self::Operator(Some(id))).map_err(|_| bad()),
            None if text == "operator" => Ok(Self::Operator(None)),
            _ => Err(bad()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_an_actor_parses_to_the_same_actor() {
        for actor in [
            Actor::Account(AccountId::generate()),
            Actor::Machine(MachineId::generate()),
            Actor::Platform,
            Actor::Operator(None),
            Actor::Operator(Some(AccountId::generate())),
        ] {
            assert_eq!(actor.to_string().parse(), Ok(actor));
        }
        for bad in ["", "account", "account:x", "root", "platform:1"] {
            assert!(bad.parse::<Actor>().is_err(), "{bad}");
        }
    }
}
