//! Events, read back from the log.

use gpubnb_events::{JobId, Recorded, Seq, Timestamp};
use serde::{Deserialize, Serialize};

/// One event of a trail.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TrailEvent {
    /// The event's place in the log.
    pub seq: Seq,
    /// The broker's time.
    pub recorded_at: Timestamp,
    /// The event's name, without its version.
    pub event: String,
    /// The event's name on the wire, with its version.
    pub wire_name: String,
    /// The actor in whose name the event was written.
    pub actor: String,
    /// The sequence of the event that led to this one.
    pub cause: Option<Seq>,
    /// The job that the event is about.
    pub job: Option<JobId>,
    /// The event's body.
    pub body: serde_json::Value,
}

impl TrailEvent {
    /// The event of a message; `None` where the message is quarantined.
    pub fn of(recorded: &Recorded) -> Option<Self> {
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
