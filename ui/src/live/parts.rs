//! A page's one connection: the parts of the page that changed, each with the id of the element it fills.
//!
//! Of what was sent only hashes are kept: an open page costs the server next to nothing, however large it is.

use std::{collections::HashMap, convert::Infallible, future::Future, hash::BuildHasher as _, time::Duration};

use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::Stream;
use gpubnb_events::Seq;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Change, Changes, next_change, pending_changes};
use crate::error::Problem;

/// A page is looked at anew at least this often, so that a missed notice heals.
pub(super) const AT_LEAST: Duration = Duration::from_secs(20);

/// A part of a page.
pub(crate) struct Part {
    /// The element it fills.
    pub(crate) id: String,
    /// What is in it.
    pub(crate) html: String,
    /// What decides whether it is sent, where that is not all of its content: it holds the parts that follow.
    frame: Option<String>,
}

impl Part {
    pub(crate) fn new(id: impl Into<String>, html: String) -> Self {
        Self { id: id.into(), html, frame: None }
    }

    /// A part that holds all the parts that follow: sent when `key` differs, and they with it.
    pub(crate) fn frame(id: impl Into<String>, key: String, html: String) -> Self {
        Self { id: id.into(), html, frame: Some(key) }
    }

    /// As an event: the id on the first line, the content on the others.
    fn event(&self) -> Event {
        Event::default().event("part").data(format!("{}\n{}", self.id, self.html))
    }
}

/// What a page shows, as hashes.
#[derive(Default)]
pub(crate) struct Shown {
    hashes: HashMap<String, u64>,
    hasher: std::hash::RandomState,
}

impl Shown {
    /// The part as an event, if it differs from what is shown.
    pub(crate) fn changed(&mut self, part: &Part) -> Option<Event> {
        let hash = self.hasher.hash_one(part.frame.as_ref().unwrap_or(&part.html));
        if self.hashes.get(&part.id) == Some(&hash) {
            return None;
        }
        self.hashes.insert(part.id.clone(), hash);
        Some(part.event())
    }
}

/// Sends the parts that differ, now and after each change that matters, at most every `pace`.
pub(crate) fn stream<F, Fut>(
    changes: Changes,
    pace: Duration,
    matters: impl Fn(&Change) -> bool + Send + Sync + 'static,
    render: F,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>>
where
    F: Fn(Seq) -> Fut + Send + 'static,
    Fut: Future<Output = Result<Vec<Part>, Problem>> + Send,
{
    ticking(changes, pace, AT_LEAST, matters, render)
}

/// The same, and looks anew after `at_least` whatever changed.
pub(crate) fn ticking<F, Fut>(
    changes: Changes,
    pace: Duration,
    at_least: Duration,
    matters: impl Fn(&Change) -> bool + Send + Sync + 'static,
    render: F,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>>
where
    F: Fn(Seq) -> Fut + Send + 'static,
    Fut: Future<Output = Result<Vec<Part>, Problem>> + Send,
{
    let mut changes = changes.subscribe();
    let matters = Box::new(matters) as Box<dyn Fn(&Change) -> bool + Send + Sync>;
    let events = async_stream::stream! {
        let mut seq = Seq::ZERO;
        let mut shown = Shown::default();
        loop {
            let began = Instant::now();
            match render(seq).await {
                Ok(parts) => {
                    let mut with_frame = false;
                    for part in &parts {
                        if let Some(event) = shown.changed(part)
                            && !with_frame
                        {
                            with_frame = part.frame.is_some();
                            yield Ok(event);
                        }
                    }
                }
                Err(problem) => {
                    // All is said again afterwards: that is how the page knows it is well.
                    shown = Shown::default();
                    yield Ok(Event::default().event("problem").data(problem.detail));
                }
            }
            if let Ok(Some(change)) = timeout(at_least, next_change(&mut changes, &matters)).await {
                seq = seq.max(change.seq);
            }
            sleep_until(began + pace).await;
            if let Some(newer) = pending_changes(&mut changes, &matters).last() {
                seq = seq.max(newer.seq);
            }
        }
    };
    Sse::new(events).keep_alive(KeepAlive::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_sent() {
        let mut shown = Shown::default();
        let part = |html: &str| Part::new("a", html.to_owned());
        assert!(shown.changed(&part("1")).is_some());
        assert!(shown.changed(&part("1")).is_none());
        assert!(shown.changed(&part("2")).is_some());
    }
}
