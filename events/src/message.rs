//! The form of an event in MARKET: a message with a subject, headers (the *envelope*) and a body.
//!
//! Belongs here: the names of the headers, decoding a message from any source, and the message's leaf (its hash) in
//! the log's Merkle tree. Must not come here: sending or fetching a message (`gpubnb-log`).

use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::{
    actor::Actor,
    error::Chain,
    event::{Aggregate, Event},
    ids::{JobId, Seq},
    subject,
    time::Timestamp,
};

/// Names of the headers.
pub mod header {
    /// The event's id.
    pub const ID: &str = "Nats-Msg-Id";
    /// The event's wire name, with its version.
    pub const TYPE: &str = "Gpubnb-Type";
    /// The actor in whose name the event was written.
    pub const ACTOR: &str = "Gpubnb-Actor";
    /// The sequence of the event that led to this one.
    pub const CAUSE: &str = "Gpubnb-Cause";
    /// The job that the event is about.
    pub const CORRELATION: &str = "Gpubnb-Correlation";
    /// The W3C trace context of the writer. The leaf does not cover this header.
    pub const TRACE: &str = "traceparent";
    /// A filter of subjects. A guarded append compares the last sequence under this filter with the expected sequence.
    pub const EXPECTED_SUBJECT: &str = "Nats-Expected-Last-Subject-Sequence-Subject";
    /// Set by the broker on a message that the broker copied from another stream: `<stream> <sequence> …`.
    pub const STREAM_SOURCE: &str = "Nats-Stream-Source";
}

/// The headers that the leaf covers: those of the envelope. The leaf covers no other header: neither the trace context
/// nor the guard, for example.
pub const COVERED: [&str; 5] = [header::ID, header::TYPE, header::ACTOR, header::CAUSE, header::CORRELATION];

/// The SHA-256 of a message, or of two such hashes.
pub type Hash = [u8; 32];

/// An event's id. The same decision, taken twice, gives its event the same id.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EventId(pub String);

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The headers of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// The event's id.
    pub id: EventId,
    /// The actor in whose name the event was written.
    pub actor: Actor,
    /// The sequence of the event that led to this one.
    pub cause: Option<Seq>,
    /// The job that the event is about.
    pub correlation: Option<JobId>,
}

impl Envelope {
    /// The headers of `event` by name and value, in no particular order.
    pub fn headers(&self, event: &Event) -> impl Iterator<Item = (&'static str, String)> {
        let required = [
            (header::ID, self.id.0.clone()),
            (header::TYPE, event.wire_name().to_owned()),
            (header::ACTOR, self.actor.to_string()),
        ];
        let cause = self.cause.map(|cause| (header::CAUSE, cause.to_string()));
        let job = self.correlation.map(|job| (header::CORRELATION, job.to_string()));
        required.into_iter().chain(cause).chain(job)
    }

    fn from_headers<'a>(value_of: impl Fn(&'static str) -> Option<&'a str>) -> Result<Self, Quarantined> {
        let required = |name| value_of(name).ok_or_else(|| Quarantined(format!("no {name} header")));
        let bad = |name: &str| Quarantined(format!("unreadable {name} header"));
        Ok(Self {
            id: EventId(required(header::ID)?.to_owned()),
            actor: required(header::ACTOR)?.parse().map_err(|_| bad(header::ACTOR))?,
            cause: value_of(header::CAUSE).map(|c| c.parse().map(Seq)).transpose().map_err(|_| bad(header::CAUSE))?,
            correlation: value_of(header::CORRELATION)
                .map(str::parse)
                .transpose()
                .map_err(|_| bad(header::CORRELATION))?,
        })
    }
}

/// A decision that is to be written: one event, and the guard of its append. The broker refuses the append unless the
/// last sequence of the event's aggregate is `expected`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// The event.
    pub event: Event,
    /// The event's id: the same decision always gives the same id.
    pub id: EventId,
    /// The guard: the sequence of the last message of the aggregate that the decider saw. A message that is not a
    /// valid event counts, too, because the broker counts it.
    pub expected: Seq,
    /// The sequence of the event that led to this one.
    pub cause: Option<Seq>,
}

/// A decoded message of MARKET.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// The message's sequence in MARKET.
    pub seq: Seq,
    /// The broker's time of the message.
    pub at: Timestamp,
    /// The aggregate in the message's subject. A quarantined message may have an aggregate, too: the broker counts the
    /// message when it checks the guard of an append.
    pub aggregate: Option<Aggregate>,
    /// The envelope and the event; or the reason why the message is quarantined.
    pub entry: Result<(Envelope, Event), Quarantined>,
    /// The message's leaf in the log's Merkle tree.
    pub leaf: Hash,
}

/// The reason why a message of MARKET is not a valid event. Every fold (a program that computes state from the events)
/// skips the message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("quarantined: {0}")]
pub struct Quarantined(pub String);

impl Recorded {
    /// The event, unless the message is quarantined.
    pub fn event(&self) -> Option<&Event> {
        self.entry.as_ref().ok().map(|(_, event)| event)
    }

    /// The envelope, unless the message is quarantined.
    pub fn envelope(&self) -> Option<&Envelope> {
        self.entry.as_ref().ok().map(|(envelope, _)| envelope)
    }
}

/// The parts of a message that comes from a broker, an archive or a proof.
pub struct MessageParts<'a, F> {
    /// The message's sequence in MARKET.
    pub seq: Seq,
    /// The broker's time, nanoseconds since 1970.
    pub nanos: i64,
    /// The subject.
    pub subject: &'a str,
    /// Returns the value of a header; `None` if the message has no such header.
    pub value_of: F,
    /// The body.
    pub payload: &'a [u8],
}

impl<'a, F: Fn(&'static str) -> Option<&'a str>> MessageParts<'a, F> {
    /// The message's leaf in the log's Merkle tree (RFC 6962, 2.1): the SHA-256 of a zero byte, the time in
    /// nanoseconds, the subject, the covered headers in the order of [`COVERED`], and the body. The time and all
    /// lengths are 8 bytes, big-endian. The subject, each header and the body stand after their length; a missing
    /// header has the length `u64::MAX` and no bytes. The sequence is the leaf's place in the tree, and therefore not
    /// part of the leaf.
    pub fn leaf(&self) -> Hash {
        let mut hash = Sha256::new();
        hash.update([0]);
        hash.update(self.nanos.to_be_bytes());
        let mut field = |bytes: Option<&[u8]>| {
            let length = bytes.map_or(u64::MAX, |bytes| bytes.len() as u64);
            hash.update(length.to_be_bytes());
            hash.update(bytes.unwrap_or_default());
        };
        field(Some(self.subject.as_bytes()));
        for name in COVERED {
            field((self.value_of)(name).map(str::as_bytes));
        }
        field(Some(self.payload));
        hash.finalize().into()
    }

    /// Decodes the message. A message whose envelope, type or body is invalid, or that is on the subject of another
    /// event, is quarantined.
    pub fn decode(&self) -> Recorded {
        Recorded {
            seq: self.seq,
            at: Timestamp::from_nanos(self.nanos.into()),
            aggregate: subject::aggregate_of(self.subject),
            entry: self.decode_entry(),
            leaf: self.leaf(),
        }
    }

    fn decode_entry(&self) -> Result<(Envelope, Event), Quarantined> {
        let envelope = Envelope::from_headers(&self.value_of)?;
        let wire_name =
            (self.value_of)(header::TYPE).ok_or_else(|| Quarantined(format!("no {} header", header::TYPE)))?;
        let event = Event::decode(wire_name, self.payload).map_err(|e| Quarantined(Chain(&e).to_string()))?;
        if subject::address(&event).subject != self.subject {
            return Err(Quarantined(format!("{} does not belong on {}", event.wire_name(), self.subject)));
        }
        Ok((envelope, event))
    }
}
