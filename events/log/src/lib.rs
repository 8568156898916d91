//! The guarded log on `JetStream`: the only way by which an event enters MARKET, and the ways to read events back.
//!
//! Belongs here: the definitions of streams, and appending, following, archives and snapshots. Must not come here: the
//! meaning of an event, or an append without a guard.

mod append;
pub mod archive;
pub mod dispatch;
mod follow;
mod raw;
pub mod snapshot;
pub mod stream;

use async_nats::jetstream::{self, stream::Stream};
use gpubnb_events::{Aggregate, BoxError, Recorded, Seq, Timestamp, subject};
use gpubnb_runtime::rpc::Failure;

pub use self::{
    append::{AppendError, Appended},
    follow::Follower,
    raw::Raw,
};
use crate::stream::MARKET;

/// Most messages of an aggregate that are loaded at once.
const MAX_AGGREGATE: u64 = 10_000;

/// A handle to MARKET. Cheap to clone.
#[derive(Clone)]
pub struct Log {
    js: jetstream::Context,
    stream: Stream<()>,
}

/// The log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The broker did not answer, or not in time.
    #[error("the broker does not answer")]
    Unavailable(#[source] BoxError),
    /// The aggregate has more messages than the domain can bring about.
    #[error("{0} has more than {MAX_AGGREGATE} events")]
    TooLarge(String),
}

fn unavailable(e: impl Into<BoxError>) -> ReadError {
    ReadError::Unavailable(e.into())
}

impl From<ReadError> for Failure {
    /// The requester is told that the log cannot be read now. The causes go into the log lines of this process.
    fn from(e: ReadError) -> Self {
        let message = match &e {
            ReadError::Unavailable(_) => "the log of events cannot be read now; try again".to_owned(),
            ReadError::TooLarge(_) => e.to_string(),
        };
        Self::unavailable(message, &e)
    }
}

impl Log {
    /// Opens MARKET. Fails if the stream was not provisioned.
    pub async fn open(js: jetstream::Context) -> Result<Self, ReadError> {
        js.get_stream(MARKET).await.map_err(unavailable)?;
        // The stream's info in this answer is out of date at once: keep a handle without it.
        let stream = js.get_stream_no_info(MARKET).await.map_err(unavailable)?;
        Ok(Self { js, stream })
    }

    /// The broker's connection.
    pub fn client(&self) -> async_nats::Client {
        self.js.client()
    }

    /// The connection's `JetStream`.
    pub fn jetstream(&self) -> jetstream::Context {
        self.js.clone()
    }

    /// The last sequence in MARKET.
    pub async fn last_seq(&self) -> Result<Seq, ReadError> {
        let info = self.stream.get_info().await.map_err(unavailable)?;
        Ok(Seq(info.state.last_sequence))
    }

    /// The sequence of the last message up to `last` that is not later than `time`.
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

    /// Reads one message; `None` if the log does not have it.
    pub async fn get(&self, seq: Seq) -> Result<Option<Recorded>, ReadError> {
        Ok(self.get_raw(seq).await?.map(|raw| raw.read()))
    }

    /// Reads one message as the broker has it; `None` if the log does not have it.
    pub async fn get_raw(&self, seq: Seq) -> Result<Option<Raw>, ReadError> {
        use async_nats::jetstream::stream::DirectGetErrorKind::NotFound;
        if seq == Seq::ZERO {
            // Sequences begin at 1. The broker takes 0 for "no sequence given".
            return Ok(None);
        }
        match self.stream.direct_get(seq.0).await {
            Ok(message) => Ok(Some(Raw::stored(message))),
            Err(e) if e.kind() == NotFound => Ok(None),
            Err(e) => Err(unavailable(e)),
        }
    }

    /// The last message of an aggregate.
    pub async fn last_of(&self, aggregate: Aggregate) -> Result<Option<Recorded>, ReadError> {
        use async_nats::jetstream::stream::DirectGetErrorKind::NotFound;
        match self.stream.direct_get_last_for_subject(subject::guard(aggregate)).await {
            Ok(message) => Ok(Some(Raw::stored(message).read())),
            Err(e) if e.kind() == NotFound => Ok(None),
            Err(e) => Err(unavailable(e)),
        }
    }

    /// All messages of an aggregate, in order. The submission of a job is not among the job's messages: it belongs to
    /// the account.
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
                Err(e) => return Err(unavailable(e)),
            }
            if found.len() as u64 >= MAX_AGGREGATE {
                return Err(ReadError::TooLarge(aggregate.to_string()));
            }
        }
    }

    /// Reads MARKET from `from` on, for ever, in large batches.
    pub fn follow(&self, from: Seq) -> Follower {
        Follower::new(self.stream.clone(), from)
    }
}
