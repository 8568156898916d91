//! Searches for events in the log, newest first. The events of one job, machine or account are found in the timeline
//! (the model of trails). To find events by name or kind, the log is read backwards.

use futures_util::{StreamExt as _, TryStreamExt as _};
use gpubnb_events::Seq;
use gpubnb_log::Log;
use gpubnb_model::timeline;
use gpubnb_query::{
    request::EventsQuery,
    view::{Page, TrailEvent},
};
use gpubnb_runtime::rpc::RpcError;
use gpubnb_store::Table;

/// The most events in one answer.
const MAX_EVENTS: u32 = 200;
/// The most events that are read for one answer.
const MAX_READ: u64 = 2_000;
/// When the event bodies of an answer have more bytes than this, the answer is complete: a message of the broker has at
/// most one megabyte.
const MAX_BODY_BYTES: usize = 300 * 1024;
/// The most events that are read at the same time.
const CONCURRENT_READS: usize = 64;

/// True if an event matches the name and the kind in a query. The kind is a kind of aggregate, such as `job`.
fn matches(query: &EventsQuery, event: &TrailEvent, aggregate: &str) -> bool {
    query.event.as_ref().is_none_or(|name| *name == event.event)
        && query.kind.as_ref().is_none_or(|kind| aggregate.starts_with(kind.as_str()))
}

/// Finds the events that match a query, newest first, up to the sequence `last`. The cursor of the next page is the
/// sequence of the last event that was returned or read.
pub(super) async fn search(
    log: &Log,
    timeline: &Table,
    last: Seq,
    query: &EventsQuery,
) -> Result<Page<TrailEvent>, RpcError> {
    let unavailable = |e: anyhow::Error| RpcError::Unavailable(format!("{e:#}"));
    let before = query.before.unwrap_or(last.next()).min(last.next());
    let limit = query.limit.clamp(1, MAX_EVENTS) as usize;
    let candidates: Vec<Seq> = match query.of {
        None => (before.0.saturating_sub(MAX_READ).max(1)..before.0).rev().map(Seq).collect(),
        Some(of) => {
            let aggregate = of.into();
            let length = timeline::length(timeline, aggregate).map_err(|e| unavailable(e.into()))?;
            let found = timeline::sequences(timeline, aggregate, 0, length).map_err(|e| unavailable(e.into()))?;
            let earlier = found.into_iter().rev().filter(|seq| *seq < before);
            earlier.take(usize::try_from(MAX_READ).unwrap_or(usize::MAX)).collect()
        }
    };
    let (lowest, read_count) = (candidates.last().copied(), candidates.len() as u64);
    let mut reading = futures_util::stream::iter(candidates).map(|seq| log.get(seq)).buffered(CONCURRENT_READS);
    let (mut page, mut bytes) = (Page { rows: Vec::new(), next: None }, 0);
    while let Some(recorded) = reading.try_next().await.map_err(|e| unavailable(e.into()))? {
        let Some(recorded) = recorded else { continue };
        let aggregate = recorded.aggregate.map(|a| a.to_string()).unwrap_or_default();
        let Some(event) = TrailEvent::from_recorded(&recorded).filter(|event| matches(query, event, &aggregate)) else {
            continue;
        };
        bytes += event.body.to_string().len();
        page.rows.push(event);
        if page.rows.len() == limit || bytes > MAX_BODY_BYTES {
            page.next = page.rows.last().map(|event| event.seq.to_string());
            return Ok(page);
        }
    }
    // All candidates were read. If their number is `MAX_READ`, older events may match too.
    page.next = lowest.filter(|seq| seq.0 > 1 && read_count == MAX_READ).map(|seq| seq.to_string());
    Ok(page)
}
