//! A message of MARKET that is not decoded yet.

use async_nats::{HeaderMap, HeaderValue, jetstream::Message, jetstream::message::StreamMessage};
use bytes::Bytes;
use gpubnb_events::{
    BoxError, Seq,
    message::{COVERED, Hash, MessageParts, Recorded},
};
use gpubnb_proof::MessageLine;

/// A message of MARKET, as the broker stores it: a subject, headers and bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawMessage {
    /// The message's sequence in MARKET.
    pub seq: Seq,
    /// The broker's time, nanoseconds since 1970.
    pub nanos: i64,
    /// The subject.
    pub subject: String,
    /// The headers; `None` if the message has none.
    pub headers: Option<HeaderMap>,
    /// The body.
    pub payload: Bytes,
}

impl RawMessage {
    /// Converts a message that a consumer of the stream received.
    pub(crate) fn from_delivered(message: Message) -> Result<Self, BoxError> {
        let (seq, published) = message.info().map(|i| (Seq(i.stream_sequence), i.published))?;
        let nanos = i64::try_from(published.unix_timestamp_nanos())?;
        let Message { message, .. } = message;
        let (subject, headers, payload) = (message.subject.to_string(), message.headers, message.payload);
        Ok(Self { seq, nanos, subject, headers, payload })
    }

    /// Converts a message that was fetched by its sequence.
    pub(crate) fn from_stored(message: StreamMessage) -> Self {
        Self {
            seq: Seq(message.sequence),
            // An i64 of nanoseconds ends in the year 2262.
            nanos: i64::try_from(message.time.unix_timestamp_nanos()).unwrap_or(i64::MAX),
            subject: message.subject.to_string(),
            headers: (!message.headers.is_empty()).then_some(message.headers),
            payload: message.payload,
        }
    }

    fn parts<'a>(&'a self) -> MessageParts<'a, impl Fn(&'static str) -> Option<&'a str>> {
        let value_of = |name| -> Option<&'a str> { self.headers.as_ref()?.get(name).map(HeaderValue::as_str) };
        MessageParts { seq: self.seq, nanos: self.nanos, subject: &self.subject, value_of, payload: &self.payload }
    }

    /// The message's leaf in the log's Merkle tree.
    pub fn leaf(&self) -> Hash {
        self.parts().leaf()
    }

    /// Decodes the message. See [`MessageParts::decode`].
    pub fn decode(&self) -> Recorded {
        self.parts().decode()
    }
}

/// Converts a message to a line of an archive. The line has only the headers that the leaf covers. A body that is not
/// UTF-8 is written in hexadecimal, as `bytes`.
impl From<&RawMessage> for MessageLine {
    fn from(raw: &RawMessage) -> Self {
        let header = |name: &&str| {
            let value = raw.headers.as_ref()?.get(*name)?;
            Some(((*name).to_owned(), value.as_str().to_owned()))
        };
        let payload = std::str::from_utf8(&raw.payload).ok().map(ToOwned::to_owned);
        let bytes = payload.is_none().then(|| gpubnb_events::hex(&raw.payload));
        let headers = COVERED.iter().filter_map(header).collect();
        Self { seq: raw.seq, nanos: raw.nanos, subject: raw.subject.clone(), headers, payload, bytes }
    }
}

impl RawMessage {
    /// Converts a line of an archive; `None` if the line's body or headers are invalid.
    pub fn from_line(line: MessageLine) -> Option<Self> {
        let payload = line.body()?.into_owned().into();
        let mut headers = HeaderMap::new();
        for (name, value) in line.headers {
            let name: async_nats::HeaderName = name.parse().ok()?;
            headers.insert(name, value.parse::<HeaderValue>().ok()?);
        }
        Some(Self {
            seq: line.seq,
            nanos: line.nanos,
            subject: line.subject,
            headers: (!headers.is_empty()).then_some(headers),
            payload,
        })
    }
}
