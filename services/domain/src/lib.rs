//! The decisions of `GPUbnb`, as pure functions: every replica that has the same state and gets the same command
//! makes the same decision.
//!
//! This crate decides which commands are allowed, and which event each command writes. It has no I/O, no clock, no
//! randomness and no floating point. Of the crates of this project it uses only `gpubnb-events`. Its `clippy.toml` bans
//! the clocks.
//!
//! Words that every file uses:
//!
//! - An *aggregate* is an account, a machine, a job or a batch. Every event belongs to one aggregate.
//! - The *log* is the stream MARKET of the *broker*, the NATS server. The *sequence* of an event is its number in the
//!   log. To *fold* an event is to apply it to the state.
//! - A *stray* is a message in the log that is not a valid event. It changes nothing but the guard.
//! - The *guard* of an event is the last sequence of its aggregate that the decider has seen. The broker appends the
//!   event only if the aggregate has no newer message.
//! - A *lease* is the sequence of the `JobAssigned` event that gave a job to a machine. A machine must name the lease
//!   in every command about the job. The lease is *live* until the machine's attempt at the job ends.
//! - To *settle* a job is to bill it and to release the *hold*, which is the money reserved for the job.
//!
//! A file uses only the files above it:
//!
//! ```text
//! command.rs, error.rs, rules.rs               commands, errors, rules for single values
//! daily_bytes.rs                               the bytes of a day's events that nobody pays for
//! account.rs, machine.rs, job.rs, batch.rs     the aggregates: their state, rules and events
//! recent_submissions.rs                        the job ids that were submitted in the last day
//! state.rs                                     the state of the whole market
//! queue.rs                                     the waiting jobs, and the order of fair shares
//! authorise.rs, placement.rs, submission.rs    rules that need several aggregates
//! metering.rs                                  the bill of a job
//! decide.rs                                    state + command -> event
//! apply.rs                                     state + event -> new state
//! due.rs                                       state + time -> commands of the process managers
//! ```

#![deny(clippy::float_arithmetic)]

pub mod account;
mod apply;
pub mod authorise;
pub mod batch;
#[cfg(test)]
mod bounded_events;
pub mod command;
mod daily_bytes;
mod decide;
pub mod due;
pub mod error;
mod hold;
mod image_rule;
pub mod job;
pub mod machine;
pub mod metering;
pub mod placement;
pub mod queue;
pub mod recent_submissions;
mod rules;
mod state;
pub mod submission;

#[cfg(test)]
mod testing;

pub use self::{
    apply::rebuild_job,
    authorise::may_enroll,
    command::{Command, Decision, Listing, Settings},
    error::DomainError,
    state::World,
};
