//! The decisions of `GPUbnb`, pure: given the same log and the same command, every replica decides alike.
//!
//! Belongs here: who may do what, and what follows from it. Must not come here: I/O, a clock, randomness, floating
//! point.
//! The crate depends on `gpubnb-events` alone, and `clippy.toml` bans the clocks.
//!
//! ```text
//! command.rs, refusal.rs, rules.rs                 commands, refusals, rules for single values
//!     ^
//! account.rs, machine.rs, job.rs, submissions.rs   the aggregates: their state, their rules, their events
//!     ^
//! state.rs                                         the state of the whole market
//!     ^
//! submission.rs, placement.rs, authorise.rs        rules across aggregates; metering.rs bills a job
//!     ^
//! decide.rs (state + command -> event), apply.rs (event -> state), due.rs (state + time -> commands)
//! ```

#![deny(clippy::float_arithmetic)]

pub mod account;
mod apply;
pub mod authorise;
pub mod command;
mod decide;
pub mod due;
pub mod job;
pub mod machine;
pub mod metering;
pub mod placement;
pub mod refusal;
mod rules;
mod state;
pub mod submission;
pub mod submissions;

#[cfg(test)]
mod testing;

pub use self::{
    apply::rebuild,
    authorise::may_enroll,
    command::{Command, Decision, Listing, Settings},
    refusal::Refusal,
    state::World,
};
