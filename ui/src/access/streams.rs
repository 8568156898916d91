//! Limits on streams of server-sent events. Each account, and each address without an account, may have [`MAX_STREAMS`]
//! open streams. Each stream ends after [`LIFE`]. Then the browser connects again and the gate checks its access again,
//! so a stream does not go on after the user has signed out.

use std::{net::IpAddr, time::Duration};

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::Response,
};
use futures_util::StreamExt as _;
use gpubnb_events::AccountId;
use gpubnb_runtime::metric;

use super::rate_limit::network_of;
use crate::{
    error::Problem,
    keyed_limit::{KeyedLimit, Share},
};

/// The maximum duration of a stream.
const LIFE: Duration = Duration::from_secs(15 * 60);
/// The maximum number of open streams of one reader.
const MAX_STREAMS: u64 = 32;

/// The reader of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum StreamReader {
    Account(AccountId),
    Stranger(IpAddr),
}

impl StreamReader {
    pub(super) fn of(account: Option<AccountId>, address: IpAddr) -> Self {
        account.map_or_else(|| Self::Stranger(network_of(address)), Self::Account)
    }
}

/// The open streams of this replica, counted by reader.
#[derive(Clone, Default)]
pub(crate) struct OpenStreams(KeyedLimit<StreamReader>);

/// One open stream. It counts in the limit and in the gauge until it is dropped.
struct OpenStream(#[allow(dead_code, reason = "held for its drop")] Share<StreamReader>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        metrics::gauge!(metric::OPEN_STREAMS).decrement(1.0);
    }
}

impl OpenStreams {
    fn open(&self, reader: StreamReader) -> Option<OpenStream> {
        let share = self.0.take(reader, 1, MAX_STREAMS)?;
        metrics::gauge!(metric::OPEN_STREAMS).increment(1.0);
        Some(OpenStream(share))
    }

    /// Counts a response that is a stream of events, and ends the stream after [`LIFE`]. Any other response passes
    /// unchanged. The header `x-accel-buffering` tells proxies such as nginx to pass each event on at once.
    pub(super) fn limit(&self, reader: StreamReader, mut response: Response) -> Result<Response, Problem> {
        let kind = response.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
        if kind != Some(b"text/event-stream") {
            return Ok(response);
        }
        let Some(open) = self.open(reader) else {
            let detail = format!("You have {MAX_STREAMS} live pages or streams open: close some of them.");
            return Err(Problem::too_many(&detail, 5));
        };
        response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
        Ok(response.map(|body| {
            let end = Box::pin(tokio::time::sleep(LIFE));
            let chunks = body.into_data_stream().take_until(end);
            // The closure owns `open`, so the stream counts until the body is dropped.
            Body::from_stream(chunks.map(move |chunk| {
                let _ = &open;
                chunk
            }))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reader_has_a_maximum_of_open_streams_and_closing_one_allows_another() {
        let streams = OpenStreams::default();
        let reader = || StreamReader::Account(AccountId::generate());
        let (one, other) = (reader(), reader());
        let mut open: Vec<_> = (0..MAX_STREAMS).map(|_| streams.open(one).unwrap()).collect();
        assert!(streams.open(one).is_none());
        assert!(streams.open(other).is_some());
        open.pop();
        assert!(streams.open(one).is_some());
        open.clear();
        assert!(streams.0.is_unused());
    }
}
