//! The language of `GPUbnb`: everything two processes must agree on.
//!
//! Belongs here: event types with their frozen wire names, typed ids, money, time, subjects, streams,
//! the guarded log, and the messages of commands. Must not come here: a decision (that is `services`)
//! or a read model (that is `projector`).

pub mod actor;
pub mod archive;
#[cfg(feature = "monitor")]
mod collector;
pub mod command;
pub mod dispatch;
pub mod event;
pub mod ids;
pub mod ledger;
pub mod log;
pub mod manifest;
pub mod merkle;
pub mod metric;
pub mod money;
#[cfg(feature = "monitor")]
pub mod monitor;
pub mod nats;
pub mod observe;
pub mod output;
pub mod proof;
pub mod record;
pub mod rpc;
pub mod snapshot;
pub mod spec;
pub mod stream;
pub mod subject;
pub mod telemetry;
pub mod template;
pub mod time;
pub mod trace;
pub mod transfer;

pub use actor::Actor;
pub use event::{Aggregate, Event};
pub use ids::{AccountId, CommandId, JobId, Lease, MachineId, ProjectorId, Seq};
pub use log::{Log, Proposal, Recorded};
pub use money::{HourlyRate, MicroUsd};
pub use time::{Clock, Millis, Seconds, SystemClock, Timestamp};

/// Bytes as hexadecimal text.
pub fn hex(bytes: impl AsRef<[u8]>) -> String {
    ::hex::encode(bytes)
}
