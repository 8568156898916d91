//! An event of the log, as the answer to a query.

use gpubnb_events::{JobId, Recorded, Seq, Timestamp};
use serde::{Deserialize, Serialize};

/// One event. The list of all events of a job, machine or account is its *trail*.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TrailEvent {
    /// The event's sequence in the log.
    pub seq: Seq,
    /// The time at which the broker recorded the event.
    pub recorded_at: Timestamp,
    /// The event's name without its version, for example `JobAssigned`.
    pub event: String,
    /// The event's name with its version, for example `JobAssigned.v1`.
    pub wire_name: String,
    /// The actor in whose name the event was written.
    pub actor: String,
    /// The sequence of the event that caused this event.
    pub cause: Option<Seq>,
    /// The job that the event is about.
    pub job: Option<JobId>,
    /// The event's body.
    pub body: serde_json::Value,
}

impl TrailEvent {
    /// The event of a message; `None` if the message is quarantined, which means that it is no valid event.
    pub fn from_recorded(recorded: &Recorded) -> Option<Self> {
        let (envelope, event) = recorded.entry.as_ref().ok()?;
        Some(Self {
            seq: recorded.seq,
            recorded_at: recorded.at,
            event: event.name().to_owned(),
            wire_name: event.wire_name().to_owned(),
            actor: envelope.actor.to_string(),
            cause: envelope.cause,
            job: event.job(),
            body: serde_json::to_value(event).ok()?,
        })
    }
}
