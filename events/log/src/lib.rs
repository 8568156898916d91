//! The log of events: the broker's stream MARKET on `JetStream`. Every event enters MARKET through this crate, by an
//! append with a guard: the broker refuses the append if the aggregate has got another event in the meantime.
//!
//! Belongs here: the definitions of the broker's streams, reads of single messages, appending to MARKET, following
//! MARKET, archives and snapshots. Must not come here: code that depends on the kind of an event, or an append without
//! a guard.

mod append;
pub mod archive;
mod definitions;
pub mod dispatch;
mod follow;
pub mod message;
mod raw;
pub mod snapshot;
pub mod stream;

use async_nats::jetstream::{self, stream::Stream};
use gpubnb_events::{Aggregate, BoxError, Recorded, Seq, Timestamp, subject};
use gpubnb_runtime::rpc::RpcError;

pub use self::{
    append::{AppendError, Appended},
    follow::Follower,
    raw::RawMessage,
};
use crate::stream::MARKET;

/// [`Log::load`] fails for an aggregate with this many messages or more.
const MAX_MESSAGES: u64 = 10_000;

/// A handle to MARKET. A clone of the handle is cheap.
#[derive(Clone)]
pub struct Log {
    js: jetstream::Context,
    stream: Stream<()>,
}

/// The log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The broker did not answer in time, or answered with an error.
    #[error("the broker does not answer")]
    Unavailable(#[source] BoxError),
    /// MARKET has no message of this sequence, although it has later ones.
    #[error("the log has no message {0}: it is damaged")]
    Missing(Seq),
    /// The named aggregate has more messages than the rules of the domain allow.
    #[error("{0} has {MAX_MESSAGES} events or more")]
    TooLarge(String),
}

fn unavailable(e: impl Into<BoxError>) -> ReadError {
    ReadError::Unavailable(e.into())
}

impl From<ReadError> for RpcError {
    /// The requester is told that the log cannot be read now, or what is wrong with it. The causes go into the log
    /// lines of this process only.
    fn from(e: ReadError) -> Self {
        let message = match &e {
            ReadError::Unavailable(_) => "the log of events cannot be read now; try again".to_owned(),
            ReadError::Missing(_) | ReadError::TooLarge(_) => e.to_string(),
        };
        Self::unavailable(message, &e)
    }
}

impl Log {
    /// Opens MARKET. Fails if the stream was not provisioned.
    pub async fn open(js: jetstream::Context) -> Result<Self, ReadError> {
        js.get_stream(MARKET).await.map_err(unavailable)?;
        // A stream's info is out of date as soon as it arrives, so the handle that is kept has no info.
        let stream = js.get_stream_no_info(MARKET).await.map_err(unavailable)?;
        Ok(Self { js, stream })
    }

    /// The connection to the broker.
    pub fn client(&self) -> async_nats::Client {
        self.js.client()
    }

    /// The `JetStream` interface of the connection.
    pub fn jetstream(&self) -> jetstream::Context {
        self.js.clone()
    }

    /// The sequence of the last message in MARKET.
    pub async fn last_seq(&self) -> Result<Seq, ReadError> {
        let info = self.stream.get_info().await.map_err(unavailable)?;
        Ok(Seq(info.state.last_sequence))
    }

    /// The sequence of the newest message that was written at `time` or before, among the messages up to sequence
    /// `last`; 0 if there is none.
    pub async fn seq_at(&self, time: Timestamp, last: Seq) -> Result<Seq, ReadError> {
        let (mut low, mut high) = (0, last.0);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            let read = self.get(Seq(middle)).await?.ok_or(ReadError::Missing(Seq(middle)))?;
            if read.at <= time {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        Ok(Seq(low))
    }

    /// Reads and decodes one message; `None` if MARKET has no message of this sequence.
    pub async fn get(&self, seq: Seq) -> Result<Option<Recorded>, ReadError> {
        Ok(self.get_raw(seq).await?.map(|raw| raw.decode()))
    }

    /// Reads one message without decoding it; `None` if MARKET has no message of this sequence.
    pub async fn get_raw(&self, seq: Seq) -> Result<Option<RawMessage>, ReadError> {
        if seq == Seq::ZERO {
            // Sequences begin at 1. The broker takes 0 for "no sequence given".
            return Ok(None);
        }
        Ok(message::at(&self.client(), &self.stream, seq.0).await?.map(RawMessage::from_stored))
    }

    /// The last message of an aggregate; `None` if the aggregate has none.
    pub async fn last_of(&self, aggregate: Aggregate) -> Result<Option<Recorded>, ReadError> {
        let last = message::last(&self.client(), &self.stream, &subject::all_of(aggregate)).await?;
        Ok(last.map(|message| RawMessage::from_stored(message).decode()))
    }

    /// All messages of an aggregate, in order. The submission of a job is not among the job's messages: the
    /// submission is a message of the account.
    pub async fn load(&self, aggregate: Aggregate) -> Result<Vec<Recorded>, ReadError> {
        let filter = subject::all_of(aggregate);
        let mut found = Vec::new();
        let mut from = 1;
        let client = self.client();
        while let Some(message) = message::next(&client, &self.stream, &filter, from).await? {
            from = message.sequence.saturating_add(1);
            found.push(RawMessage::from_stored(message).decode());
            if found.len() as u64 >= MAX_MESSAGES {
                return Err(ReadError::TooLarge(aggregate.to_string()));
            }
        }
        Ok(found)
    }

    /// Reads MARKET in large batches, beginning with the sequence `from`. The follower never ends: it waits for new
    /// messages.
    pub fn follow(&self, from: Seq) -> Follower {
        Follower::new(self.stream.clone(), from)
    }
}
