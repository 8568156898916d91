//! The pure domain: state, `decide`, `apply`. Given the same log and the same command, every replica
//! decides alike.
//!
//! Architecture invariant: no I/O, no clock, no randomness, no async in here (tests/boundaries.rs checks).

pub mod account;
pub mod authorise;
pub mod command;
pub mod job;
pub mod machine;
pub mod metering;
pub mod placement;
pub mod refusal;
pub mod submission;
pub mod world;

#[cfg(test)]
mod given;

pub use self::{
    authorise::may_enroll,
    command::{Command, Decision, Listing, Settings},
    refusal::Refusal,
    world::World,
};
