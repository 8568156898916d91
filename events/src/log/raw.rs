//! A message of MARKET before it is read: its bytes, and what of them the log vouches for.

use async_nats::{HeaderMap, jetstream::Message, jetstream::message::StreamMessage};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::{Recorded, envelope, header};
use crate::{ids::Seq, subject, time::Timestamp};

/// A hash of a message, or of two such hashes.
pub type Hash = [u8; 32];

/// A message as the broker has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raw {
    /// Its place in the log.
    pub seq: Seq,
    /// The broker's time, nanoseconds since 1970.
    pub nanos: i64,
    /// Its subject.
    pub subject: String,
    /// Its headers, where it has any.
    pub headers: Option<HeaderMap>,
    /// Its body.
    pub payload: Bytes,
}

/// The headers that say something of ours; what a broker adds to a message is not vouched for.
pub const VOUCHED: [&str; 5] = [header::ID, header::TYPE, header::ACTOR, header::CAUSE, header::CORRELATION];

impl Raw {
    /// A message of a consumer.
    pub(super) fn delivered(message: Message) -> Result<Self, String> {
        let (seq, published) =
            message.info().map(|i| (Seq(i.stream_sequence), i.published)).map_err(|e| e.to_string())?;
        let nanos = i64::try_from(published.unix_timestamp_nanos()).map_err(|e| e.to_string())?;
        let Message { message, .. } = message;
        let (subject, headers, payload) = (message.subject.to_string(), message.headers, message.payload);
        Ok(Self { seq, nanos, subject, headers, payload })
    }

    /// A message that was got by its sequence.
    pub(super) fn stored(message: StreamMessage) -> Self {
        Self {
            seq: Seq(message.sequence),
            // Until the year 2262.
            nanos: i64::try_from(message.time.unix_timestamp_nanos()).unwrap_or(i64::MAX),
            subject: message.subject.to_string(),
            headers: Some(message.headers),
            payload: message.payload,
        }
    }

    /// The leaf that it is in the log's Merkle tree (RFC 6962, 2.1): SHA-256 of a zero byte, and of its time, subject,
    /// headers and body, each with its length before it. Its place is its sequence: that is not in it.
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
        for name in VOUCHED {
            let value = self.headers.as_ref().and_then(|headers| headers.get(name));
            field(value.map(|value| value.as_str().as_bytes()));
        }
        field(Some(&self.payload));
        hash.finalize().into()
    }

    /// What it says.
    pub fn read(&self) -> Recorded {
        Recorded {
            seq: self.seq,
            at: Timestamp::from_nanos(self.nanos.into()),
            aggregate: subject::aggregate_of(&self.subject),
            entry: envelope::decode(&self.subject, self.headers.as_ref(), &self.payload),
            leaf: self.leaf(),
        }
    }
}
