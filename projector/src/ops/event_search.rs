//! Looks for events in the log: by what they belong to through the timeline, by name by reading back.

use futures_util::{StreamExt as _, TryStreamExt as _};
use gpubnb_events::Seq;
use gpubnb_log::Log;
use gpubnb_model::timeline;
use gpubnb_query::{
    request::EventsQuery,
    view::{Page, TrailEvent},
};
use gpubnb_runtime::rpc::Failure;
use gpubnb_store::Table;

/// Events in one answer.
const MOST: u32 = 200;
/// Events looked at for one answer.
const LOOKED_AT: u64 = 2_000;
/// Bytes of bodies in one answer: a message of the broker is a megabyte at the most.
const MOST_BYTES: usize = 300 * 1024;
const READ_AT_ONCE: usize = 64;

fn wanted(query: &EventsQuery, event: &TrailEvent, aggregate: &str) -> bool {
    query.event.as_ref().is_none_or(|name| *name == event.event)
        && query.kind.as_ref().is_none_or(|kind| aggregate.starts_with(kind.as_str()))
}

/// The events, newest first, and before which sequence the next part begins.
pub(crate) async fn search(
    log: &Log,
    timeline: &Table,
    last: Seq,
    query: &EventsQuery,
) -> Result<Page<TrailEvent>, Failure> {
    let unavailable = |e: &dyn std::fmt::Display| Failure::Unavailable(e.to_string());
    let before = query.before.unwrap_or(last.next()).min(last.next());
    let limit = query.limit.clamp(1, MOST) as usize;
    let candidates: Vec<Seq> = match query.of {
        None => (before.0.saturating_sub(LOOKED_AT).max(1)..before.0).rev().map(Seq).collect(),
        Some(of) => {
            let aggregate = of.into();
            let length = timeline::length(timeline, aggregate).map_err(|e| unavailable(&e))?;
            let found = timeline::sequences(timeline, aggregate, 0, length).map_err(|e| unavailable(&e))?;
            let earlier = found.into_iter().rev().filter(|seq| *seq < before);
            earlier.take(usize::try_from(LOOKED_AT).unwrap_or(usize::MAX)).collect()
        }
    };
    let (lowest, looked_at) = (candidates.last().copied(), candidates.len() as u64);
    let mut reading = futures_util::stream::iter(candidates).map(|seq| log.get(seq)).buffered(READ_AT_ONCE);
    let (mut page, mut bytes) = (Page { rows: Vec::new(), next: None }, 0);
    while let Some(recorded) = reading.try_next().await.map_err(|e| unavailable(&e))? {
        let Some(recorded) = recorded else { continue };
        let aggregate = recorded.aggregate.map(|a| a.to_string()).unwrap_or_default();
        let Some(event) = TrailEvent::of(&recorded).filter(|event| wanted(query, event, &aggregate)) else { continue };
        bytes += event.body.to_string().len();
        page.rows.push(event);
        if page.rows.len() == limit || bytes > MOST_BYTES {
            page.next = page.rows.last().map(|event| event.seq.to_string());
            return Ok(page);
        }
    }
    // What was looked at is not all there is.
    page.next = lowest.filter(|seq| seq.0 > 1 && looked_at == LOOKED_AT).map(|seq| seq.to_string());
    Ok(page)
}
