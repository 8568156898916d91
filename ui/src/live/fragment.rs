//! A part of a page that is rendered anew when something in it changes, at most so often.

use std::{convert::Infallible, future::Future, time::Duration};

use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::Stream;
use gpubnb_events::{Aggregate, Seq};
use tokio::time::{Instant, sleep_until, timeout};

use super::{Changes, next_change};
use crate::error::Problem;

/// A page is refreshed at least this often, so that a missed notice heals.
const AT_LEAST: Duration = Duration::from_secs(20);

/// Sends event `name` with the fragment, now and after each change that matters, at most every `pace`.
pub(crate) fn stream<F, Fut>(
    changes: Changes,
    name: &'static str,
    pace: Duration,
    matters: impl Fn(Aggregate) -> bool + Send + Sync + 'static,
    render: F,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>>
where
    F: Fn(Seq) -> Fut + Send + 'static,
    Fut: Future<Output = Result<String, Problem>> + Send,
{
    let mut changes = changes.subscribe();
    let matters = Box::new(matters) as Box<dyn Fn(Aggregate) -> bool + Send + Sync>;
    let events = async_stream::stream! {
        let mut seq = Seq::ZERO;
        let mut shown = String::new();
        loop {
            let began = Instant::now();
            match render(seq).await {
                Ok(html) if html != shown => {
                    yield Ok(Event::default().event(name).data(html.clone()));
                    shown = html;
                }
                Ok(_) => {}
                Err(problem) => yield Ok(Event::default().event("problem").data(problem.detail)),
            }
            if let Ok(Some(newer)) = timeout(AT_LEAST, next_change(&mut changes, &matters)).await {
                seq = seq.max(newer);
            }
            sleep_until(began + pace).await;
        }
    };
    Sse::new(events).keep_alive(KeepAlive::default())
}
