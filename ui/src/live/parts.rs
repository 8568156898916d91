//! A page's one connection. It sends the parts of the page that changed, each with the id of the element that it fills.
//!
//! The server keeps only the hashes of the parts, so an open page costs next to nothing, however large it is.

use std::{collections::HashMap, convert::Infallible, future::Future, hash::BuildHasher as _, time::Duration};

use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::Stream;
use gpubnb_events::Seq;
use tokio::time::{Instant, sleep_until, timeout};

use crate::{
    error::Problem,
    state::{Change, Changes, next_change, pending_changes},
};

/// A page is rendered at least this often, which repairs it after a lost notice.
pub(crate) const AT_LEAST: Duration = Duration::from_secs(20);

/// A part of a page.
pub(crate) struct PagePart {
    /// The id of the element that it fills.
    pub(crate) id: String,
    /// The element's content.
    pub(crate) html: String,
    /// Set for a part that contains the parts after it. It is sent when this key changes, not when its HTML changes,
    /// because the parts inside it are sent on their own.
    frame: Option<String>,
}

impl PagePart {
    pub(crate) fn new(id: impl Into<String>, html: String) -> Self {
        Self { id: id.into(), html, frame: None }
    }

    /// A part that contains all the parts after it. It is sent, with all of them, when `key` changes.
    pub(crate) fn frame(id: impl Into<String>, key: String, html: String) -> Self {
        Self { id: id.into(), html, frame: Some(key) }
    }

    /// The part as an event: the id on the first line, the content on the others.
    fn event(&self) -> Event {
        Event::default().event("part").data(format!("{}\n{}", self.id, self.html))
    }
}

/// The hashes of the parts that a page shows.
#[derive(Default)]
pub(crate) struct Shown {
    hashes: HashMap<String, u64>,
    hasher: std::hash::RandomState,
}

impl Shown {
    /// The part as an event, if it differs from the one that the page shows.
    pub(crate) fn changed(&mut self, part: &PagePart) -> Option<Event> {
        let hash = self.hasher.hash_one(part.frame.as_ref().unwrap_or(&part.html));
        if self.hashes.get(&part.id) == Some(&hash) {
            return None;
        }
        self.hashes.insert(part.id.clone(), hash);
        Some(part.event())
    }
}

/// Sends the parts that changed, now and after each change that matters, but no more often than every `pause`.
pub(crate) fn stream<F, Fut>(
    changes: Changes,
    pause: Duration,
    matters: impl Fn(&Change) -> bool + Send + Sync + 'static,
    render: F,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>>
where
    F: Fn(Seq) -> Fut + Send + 'static,
    Fut: Future<Output = Result<Vec<PagePart>, Problem>> + Send,
{
    ticking(changes, pause, AT_LEAST, matters, render)
}

/// Like [`stream`], and also renders the page after `at_least` without any change.
pub(crate) fn ticking<F, Fut>(
    changes: Changes,
    pause: Duration,
    at_least: Duration,
    matters: impl Fn(&Change) -> bool + Send + Sync + 'static,
    render: F,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>>
where
    F: Fn(Seq) -> Fut + Send + 'static,
    Fut: Future<Output = Result<Vec<PagePart>, Problem>> + Send,
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
                    // Afterwards all parts are sent again: that is how the page learns that the problem is over.
                    shown = Shown::default();
                    yield Ok(Event::default().event("problem").data(problem.detail));
                }
            }
            if let Ok(Some(change)) = timeout(at_least, next_change(&mut changes, &matters)).await {
                seq = seq.max(change.seq);
            }
            sleep_until(began + pause).await;
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
        let part = |html: &str| PagePart::new("a", html.to_owned());
        assert!(shown.changed(&part("1")).is_some());
        assert!(shown.changed(&part("1")).is_none());
        assert!(shown.changed(&part("2")).is_some());
    }
}
