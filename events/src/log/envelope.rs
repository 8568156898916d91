//! The envelope: headers around an event. A message without a valid one is quarantined.

use std::fmt;

use async_nats::HeaderMap;

use super::Quarantined;
use crate::{
    actor::Actor,
    event::Event,
    ids::{JobId, Seq},
    subject, trace,
};

/// Header names.
pub mod header {
    /// The event's identity.
    pub const ID: &str = "Nats-Msg-Id";
    /// Wire name and version.
    pub const TYPE: &str = "Gpubnb-Type";
    /// In whose name.
    pub const ACTOR: &str = "Gpubnb-Actor";
    /// Sequence that led to it.
    pub const CAUSE: &str = "Gpubnb-Cause";
    /// The job it is about.
    pub const CORRELATION: &str = "Gpubnb-Correlation";
    /// What was going on when it was written (W3C). No part of what is vouched for.
    pub const TRACE: &str = "traceparent";
    /// The broker's guard: which subjects.
    pub(crate) const EXPECTED_SUBJECT: &str = "Nats-Expected-Last-Subject-Sequence-Subject";
    /// Set by the broker on a sourced message: `<stream> <sequence> …`.
    pub const STREAM_SOURCE: &str = "Nats-Stream-Source";
}

/// An event's identity. The same decision, taken twice, has the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EventId(pub String);

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is written around an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Identity.
    pub id: EventId,
    /// In whose name.
    pub actor: Actor,
    /// Sequence that led to it.
    pub cause: Option<Seq>,
    /// The job it is about.
    pub correlation: Option<JobId>,
}

impl Envelope {
    pub(super) fn headers(&self, event: &Event) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::ID, self.id.0.as_str());
        headers.insert(header::TYPE, event.wire_name());
        headers.insert(header::ACTOR, self.actor.to_string());
        if let Some(cause) = self.cause {
            headers.insert(header::CAUSE, cause.to_string());
        }
        if let Some(job) = self.correlation {
            headers.insert(header::CORRELATION, job.to_string());
        }
        trace::inject(&mut headers);
        headers
    }

    fn read(headers: &HeaderMap) -> Result<Self, Quarantined> {
        let text = |name: &str| headers.get(name).map(async_nats::HeaderValue::as_str);
        let required = |name: &str| text(name).ok_or_else(|| Quarantined(format!("no {name} header")));
        let bad = |name: &str| Quarantined(format!("unreadable {name} header"));
        Ok(Self {
            id: EventId(required(header::ID)?.to_owned()),
            actor: required(header::ACTOR)?.parse().map_err(|_| bad(header::ACTOR))?,
            cause: text(header::CAUSE).map(|c| c.parse().map(Seq)).transpose().map_err(|_| bad(header::CAUSE))?,
            correlation: text(header::CORRELATION).map(str::parse).transpose().map_err(|_| bad(header::CORRELATION))?,
        })
    }
}

/// Reads what a message says, or why it says nothing to us.
pub(super) fn decode(
    subject: &str,
    headers: Option<&HeaderMap>,
    payload: &[u8],
) -> Result<(Envelope, Event), Quarantined> {
    let headers = headers.ok_or_else(|| Quarantined("no headers".to_owned()))?;
    let envelope = Envelope::read(headers)?;
    let wire_name = headers.get(header::TYPE).ok_or_else(|| Quarantined(format!("no {} header", header::TYPE)))?;
    let event = Event::decode(wire_name.as_str(), payload).map_err(|e| Quarantined(e.to_string()))?;
    if subject::address(&event).subject != subject {
        return Err(Quarantined(format!("{} does not belong on {subject}", event.wire_name())));
    }
    Ok((envelope, event))
}
