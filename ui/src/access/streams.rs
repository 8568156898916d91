//! Limits on streams of server-sent events: each account, or address of strangers, may have a number of them open at
//! once, and each stream ends after a while. The reader then comes through the gate again, so that somebody who was
//! signed out meanwhile learns nothing more.

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

/// How long a stream may live.
const LIFE: Duration = Duration::from_secs(15 * 60);
/// Most streams that one reader may have open at once.
const MOST: u64 = 32;

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

/// The streams that are open at this replica.
#[derive(Clone, Default)]
pub(crate) struct OpenStreams(KeyedLimit<StreamReader>);

/// One open stream. Dropping it ends its share of the limit and takes it off the gauge.
struct OpenStream(#[allow(dead_code, reason = "held for its drop")] Share<StreamReader>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        metrics::gauge!(metric::OPEN_STREAMS).decrement(1.0);
    }
}

impl OpenStreams {
    fn open(&self, reader: StreamReader) -> Option<OpenStream> {
        let share = self.0.take(reader, 1, MOST)?;
        metrics::gauge!(metric::OPEN_STREAMS).increment(1.0);
        Some(OpenStream(share))
    }

    /// Counts a response that is a stream of events, and ends it after [`LIFE`]. Any other response passes unchanged.
    pub(super) fn limit(&self, reader: StreamReader, response: Response) -> Result<Response, Problem> {
        let kind = response.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
        if kind != Some(b"text/event-stream") {
            return Ok(response);
        }
        let Some(open) = self.open(reader) else {
            let detail = format!("You have {MOST} live pages or streams open: close some.");
            return Err(Problem::too_many(&detail, 5));
        };
        Ok(response.map(|body| {
            let until = Box::pin(tokio::time::sleep(LIFE));
            let parts = body.into_data_stream().take_until(until);
            Body::from_stream(parts.map(move |part| {
                let _ = &open;
                part
            }))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reader_has_so_many_at_once_and_gets_the_place_of_a_closed_one_back() {
        let streams = OpenStreams::default();
        let reader = || StreamReader::Account(AccountId::generate());
        let (one, other) = (reader(), reader());
        let mut open: Vec<_> = (0..MOST).map(|_| streams.open(one).unwrap()).collect();
        assert!(streams.open(one).is_none());
        assert!(streams.open(other).is_some());
        open.pop();
        assert!(streams.open(one).is_some());
        open.clear();
        assert!(streams.0.is_unused());
    }
}
