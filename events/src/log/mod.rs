//! The guarded log: the only way an event enters MARKET, and the ways it is read back.
//!
//! No unguarded append exists here, and none may be added.

mod append;
mod envelope;
mod follow;
mod raw;

use async_nats::jetstream::{self, stream::Stream};

pub use self::{
    append::{AppendError, Appended},
    envelope::{Envelope, EventId, header},
    follow::Follower,
    raw::{Hash, Raw, VOUCHED},
};
use crate::{
    event::{Aggregate, Event},
    ids::Seq,
    stream::MARKET,
    subject,
    time::Timestamp,
};

/// Most messages one aggregate may have when it is loaded at once.
const MAX_AGGREGATE: u64 = 10_000;

/// A handle on MARKET. Cheap to clone.
#[derive(Clone)]
pub struct Log {
    js: jetstream::Context,
    stream: Stream<()>,
}

/// A decision that wants to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// The event.
    pub event: Event,
    /// Its identity: the same decision always has the same.
    pub id: EventId,
    /// The last sequence of the aggregate that the decider saw: the guard.
    pub expected: Seq,
    /// The sequence that led to it.
    pub cause: Option<Seq>,
}

/// A message of MARKET as it was read.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Its place in the log.
    pub seq: Seq,
    /// The broker's time.
    pub at: Timestamp,
    /// The aggregate whose guard it moves, by its subject.
    pub aggregate: Option<Aggregate>,
    /// Its envelope and event; or why it is no event of ours. Every fold skips such a message alike.
    pub entry: Result<(Envelope, Event), Quarantined>,
    /// The leaf that it is in the log's Merkle tree.
    pub leaf: Hash,
}

/// Why a message of MARKET is skipped by every fold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("quarantined: {0}")]
pub struct Quarantined(pub String);

impl Recorded {
    /// The event, unless it is quarantined.
    pub fn event(&self) -> Option<&Event> {
        self.entry.as_ref().ok().map(|(_, event)| event)
    }

    /// The envelope, unless it is quarantined.
    pub fn envelope(&self) -> Option<&Envelope> {
        self.entry.as_ref().ok().map(|(envelope, _)| envelope)
    }
}

/// A failure to read the log.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The broker did not answer, or not in time.
    #[error("the broker is unavailable: {0}")]
    Unavailable(String),
    /// The aggregate is larger than anything the domain can bring about.
    #[error("{0} has more than {MAX_AGGREGATE} events")]
    TooLarge(String),
}

impl Log {
    /// Opens MARKET. Fails where the stream was not provisioned.
    pub async fn open(js: jetstream::Context) -> Result<Self, ReadError> {
        js.get_stream(MARKET).await.map_err(|e| ReadError::Unavailable(e.to_string()))?;
        // The info that comes along grows stale at once: keep a handle without it.
        let stream = js.get_stream_no_info(MARKET).await.map_err(|e| ReadError::Unavailable(e.to_string()))?;
        Ok(Self { js, stream })
    }

    /// The broker's connection.
    pub fn client(&self) -> async_nats::Client {
        self.js.client()
    }

    /// Its `JetStream`.
    pub fn jetstream(&self) -> jetstream::Context {
        self.js.clone()
    }

    /// The last sequence in MARKET.
    pub async fn last_seq(&self) -> Result<Seq, ReadError> {
        let info = self.stream.get_info().await.map_err(|e| ReadError::Unavailable(e.to_string()))?;
        Ok(Seq(info.state.last_sequence))
    }

    /// The last message of this time or before, among those up to `last`.
    pub async fn seq_at(&self, time: Timestamp, last: Seq) -> Result<Seq, ReadError> {
        let (mut low, mut high) = (0, last.0);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if self.get(Seq(middle)).await?.is_some_and(|r| r.at <= time) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        Ok(Seq(low))
    }

    /// One message.
    pub async fn get(&self, seq: Seq) -> Result<Option<Recorded>, ReadError> {
        Ok(self.get_raw(seq).await?.map(|raw| raw.read()))
    }

    /// One message, as the broker has it.
    pub async fn get_raw(&self, seq: Seq) -> Result<Option<Raw>, ReadError> {
        use async_nats::jetstream::stream::DirectGetErrorKind::NotFound;
        if seq == Seq::ZERO {
            // Sequences begin at one; the broker would take zero for none.
            return Ok(None);
        }
        match self.stream.direct_get(seq.0).await {
            Ok(message) => Ok(Some(Raw::stored(message))),
            Err(e) if e.kind() == NotFound => Ok(None),
            Err(e) => Err(ReadError::Unavailable(e.to_string())),
        }
    }

    /// The last message of an aggregate.
    pub async fn last_of(&self, aggregate: Aggregate) -> Result<Option<Recorded>, ReadError> {
        use async_nats::jetstream::stream::DirectGetErrorKind::NotFound;
        match self.stream.direct_get_last_for_subject(subject::guard(aggregate)).await {
            Ok(message) => Ok(Some(Raw::stored(message).read())),
            Err(e) if e.kind() == NotFound => Ok(None),
            Err(e) => Err(ReadError::Unavailable(e.to_string())),
        }
    }

    /// All messages of one aggregate, in order. A job's submission is its account's event and not among them.
    pub async fn load(&self, aggregate: Aggregate) -> Result<Vec<Recorded>, ReadError> {
        use async_nats::jetstream::stream::DirectGetErrorKind::NotFound;
        let filter = subject::guard(aggregate);
        let mut found = Vec::new();
        let mut from = 1;
        loop {
            let next = self.stream.direct_get_next_for_subject(filter.clone(), Some(from)).await;
            match next {
                Ok(message) => {
                    from = message.sequence.saturating_add(1);
                    found.push(Raw::stored(message).read());
                }
                Err(e) if e.kind() == NotFound => return Ok(found),
                Err(e) => return Err(ReadError::Unavailable(e.to_string())),
            }
            if found.len() as u64 >= MAX_AGGREGATE {
                return Err(ReadError::TooLarge(aggregate.to_string()));
            }
        }
    }

    /// Reads on from `from`, for ever, in large batches.
    pub fn follow(&self, from: Seq) -> Follower {
        Follower::new(self.stream.clone(), from)
    }
}
