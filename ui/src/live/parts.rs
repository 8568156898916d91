//! The live updates of a page, sent over one connection of server-sent events. Each event carries one changed part of
//! the page, with the id of the HTML element that the part fills.
//!
//! The server stores only hashes of the parts, so a large open page needs little memory.

use std::{collections::HashMap, convert::Infallible, future::Future, hash::BuildHasher as _, time::Duration};

use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::Stream;
use gpubnb_events::Seq;
use tokio::time::{Instant, sleep_until, timeout};

use crate::{
    error::Problem,
    state::{Change, Changes, next_change, pending_changes},
};

/// The maximum time between two renderings of a page. A change whose notice was lost appears after this time.
pub(crate) const MAX_SILENCE: Duration = Duration::from_secs(20);

/// A part of a page.
pub(crate) struct PagePart {
    /// The id of the element that the part fills.
    pub(crate) id: String,
    /// The element's content.
    pub(crate) html: String,
    /// The key of a container: a part that contains all parts after it. A container is sent when its key changes, not
    /// when its HTML changes, because the parts inside are also sent on their own.
    container_key: Option<String>,
}

impl PagePart {
    pub(crate) fn new(id: impl Into<String>, html: String) -> Self {
        Self { id: id.into(), html, container_key: None }
    }

    /// A container. When `key` changes, the whole container is sent, with all parts inside. For example, a list of
    /// machines is the container of its rows, and its key is the list of the rows' ids.
    pub(crate) fn container(id: impl Into<String>, key: String, html: String) -> Self {
        Self { id: id.into(), html, container_key: Some(key) }
    }

    /// Encodes the part as an event: the first line is the id, the other lines are the content.
    fn event(&self) -> Event {
        Event::default().event("part").data(format!("{}\n{}", self.id, self.html))
    }
}

/// The hashes of the parts that were last sent to a page.
#[derive(Default)]
pub(crate) struct SentParts {
    hashes: HashMap<String, u64>,
    hasher: std::hash::RandomState,
}

impl SentParts {
    /// Encodes the part as an event, if the part differs from the one that was last sent. Remembers it as sent.
    pub(crate) fn event_if_changed(&mut self, part: &PagePart) -> Option<Event> {
        let hash = self.hasher.hash_one(part.container_key.as_ref().unwrap_or(&part.html));
        if self.hashes.get(&part.id) == Some(&hash) {
            return None;
        }
        self.hashes.insert(part.id.clone(), hash);
        Some(part.event())
    }
}

/// Renders a page now and after each change for which `matters` returns true, and sends the parts that changed. There
/// is at least `pause` between two renderings. `render` gets the sequence of the newest change, which its queries must
/// reflect.
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
    stream_with_timer(changes, pause, MAX_SILENCE, matters, render)
}

/// Like [`stream`], but the caller chooses the maximum time between two renderings: `max_silence` in place of
/// [`MAX_SILENCE`].
pub(crate) fn stream_with_timer<F, Fut>(
    changes: Changes,
    pause: Duration,
    max_silence: Duration,
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
        let mut sent = SentParts::default();
        loop {
            let began = Instant::now();
            match render(seq).await {
                Ok(parts) => {
                    let mut is_container_sent = false;
                    for part in &parts {
                        if let Some(event) = sent.event_if_changed(part)
                            && !is_container_sent
                        {
                            is_container_sent = part.container_key.is_some();
                            yield Ok(event);
                        }
                    }
                }
                Err(problem) => {
                    // At the next success all parts are sent again, which removes the message from the page.
                    sent = SentParts::default();
                    yield Ok(Event::default().event("problem").data(problem.detail));
                }
            }
            if let Ok(Some(change)) = timeout(max_silence, next_change(&mut changes, &matters)).await {
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
    fn only_changed_parts_are_sent() {
        let mut sent = SentParts::default();
        let part = |html: &str| PagePart::new("a", html.to_owned());
        assert!(sent.event_if_changed(&part("1")).is_some());
        assert!(sent.event_if_changed(&part("1")).is_none());
        assert!(sent.event_if_changed(&part("2")).is_some());
    }
}
