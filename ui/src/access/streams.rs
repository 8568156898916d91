//! Streams of events that are open: so many of an account or address at once, each for a while, so that who was signed
//! out meanwhile learns nothing more.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::Response,
};
use futures_util::StreamExt as _;
use gpubnb_events::AccountId;
use gpubnb_runtime::metric;

use super::pace::network_of;
use crate::error::Problem;

/// After so long a stream ends, and its reader comes through the gate again.
const LIFE: Duration = Duration::from_secs(15 * 60);
/// Most that an account, or an address of strangers, has open at once.
const MOST: usize = 32;

/// Whose a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Reader {
    Account(AccountId),
    Stranger(IpAddr),
}

impl Reader {
    pub(super) fn of(account: Option<AccountId>, address: IpAddr) -> Self {
        account.map_or_else(|| Self::Stranger(network_of(address)), Self::Account)
    }
}

/// How many each has open at this replica.
#[derive(Clone, Default)]
pub(crate) struct Streams(Arc<Mutex<HashMap<Reader, usize>>>);

/// One of them. It is over when this is dropped.
struct Open {
    streams: Streams,
    reader: Reader,
}

impl Streams {
    fn counts(&self) -> MutexGuard<'_, HashMap<Reader, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, reader: Reader) -> Option<Open> {
        let mut counts = self.counts();
        let count = counts.entry(reader).or_insert(0);
        if *count >= MOST {
            return None;
        }
        *count += 1;
        drop(counts);
        metrics::gauge!(metric::OPEN_STREAMS).increment(1.0);
        Some(Open { streams: self.clone(), reader })
    }

    /// Counts an answer that is a stream of events, and sees to its end. Every other one passes as it is.
    pub(super) fn bound(&self, reader: Reader, response: Response) -> Result<Response, Problem> {
        let kind = response.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
        if kind != Some(b"text/event-stream") {
            return Ok(response);
        }
        let Some(open) = self.open(reader) else {
            let what = format!("You have {MOST} live pages or streams open: close some.");
            return Err(Problem::too_many(&what, 5));
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

impl Drop for Open {
    fn drop(&mut self) {
        metrics::gauge!(metric::OPEN_STREAMS).decrement(1.0);
        let mut counts = self.streams.counts();
        if let Some(count) = counts.get_mut(&self.reader) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.reader);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reader_has_so_many_at_once_and_gets_the_place_of_a_closed_one_back() {
        let streams = Streams::default();
        let (one, other) = (Reader::Account(AccountId::generate()), Reader::Account(AccountId::generate()));
        let mut open: Vec<_> = (0..MOST).map(|_| streams.open(one).unwrap()).collect();
        assert!(streams.open(one).is_none());
        assert!(streams.open(other).is_some());
        open.pop();
        assert!(streams.open(one).is_some());
        open.clear();
        assert!(streams.counts().is_empty());
    }
}
