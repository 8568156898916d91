//! The JSON form of a message of MARKET, which archives and proofs contain. An archive has one message per line.

use std::{borrow::Cow, collections::BTreeMap};

use gpubnb_events::{
    Seq,
    message::{COVERED, MessageParts, Recorded},
};
use serde::{Deserialize, Serialize};

/// A message as one JSON object.
///
/// Nothing may stand in the object that the leaf does not cover: a reader would take it for proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MessageLine {
    /// The message's sequence in MARKET.
    pub seq: Seq,
    /// The broker's time, nanoseconds since 1970.
    pub nanos: i64,
    /// The subject.
    pub subject: String,
    /// The headers that the leaf covers.
    pub headers: BTreeMap<String, String>,
    /// The body if it is UTF-8 text. The body of every event is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
    /// The body in hexadecimal if it is not text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<String>,
}

impl MessageLine {
    /// The body. `None` if the line has both `payload` and `bytes`, or neither, if `bytes` is not hexadecimal, or if
    /// there is a header that no leaf covers.
    pub fn body(&self) -> Option<Cow<'_, [u8]>> {
        if !self.headers.keys().all(|name| COVERED.contains(&name.as_str())) {
            return None;
        }
        match (&self.payload, &self.bytes) {
            (Some(text), None) => Some(Cow::Borrowed(text.as_bytes())),
            (None, Some(bytes)) => hex::decode(bytes).ok().map(Cow::Owned),
            _ => None,
        }
    }

    /// Decodes the message; `None` if the body is invalid.
    pub fn decode(&self) -> Option<Recorded> {
        let body = self.body()?;
        let value_of = |name: &'static str| self.headers.get(name).map(String::as_str);
        Some(
            MessageParts { seq: self.seq, nanos: self.nanos, subject: &self.subject, value_of, payload: &body }
                .decode(),
        )
    }
}
