//! The language of `GPUbnb`: everything that two processes must agree on, as plain data and pure functions.
//!
//! Belongs here: event types with their frozen wire names, typed ids, money, time, subjects, the form of a message, and
//! the bodies of commands. Must not come here: a decision (`services/domain`), a read model (`projector`), or anything
//! that talks to a broker (`events/log`, `events/runtime`).

pub mod actor;
pub mod batch;
pub mod batch_request;
pub mod command;
pub mod dataset;
pub mod dead_letter;
pub mod error;
pub mod event;
pub mod ids;
pub mod job_request;
pub mod ledger;
pub mod manifest;
pub mod message;
pub mod money;
pub mod notification;
pub mod output;
pub mod record;
pub mod refusal;
pub mod signed_log;
pub mod spec;
pub mod subject;
pub mod telemetry;
pub mod template;
pub mod text;
pub mod time;
pub mod transfer;

pub use actor::Actor;
pub use batch::BatchId;
pub use error::{BoxError, Chain};
pub use event::{Aggregate, Event};
pub use ids::{AccountId, CommandId, JobId, Lease, MachineId, ProjectorId, Seq};
pub use message::{Proposal, Recorded};
pub use money::{HourlyRate, MicroUsd};
pub use refusal::{Refusal, RefusalKind};
pub use time::{Clock, Millis, Seconds, SystemClock, Timestamp};

/// Bytes as hexadecimal text.
pub fn hex(bytes: impl AsRef<[u8]>) -> String {
    ::hex::encode(bytes)
}
