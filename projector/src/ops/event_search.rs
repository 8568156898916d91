//! The search for events in the log. The timeline finds the events of a job, a machine or an account; for a name or a
//! kind, events are read back from the log, the newest first.

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

/// Most events in one answer.
const MOST: u32 = 200;
/// Most events that are read back for one answer.
const LOOKED_AT: u64 = 2_000;
/// Most bytes of bodies in one answer: a message of the broker holds a megabyte.
const MOST_BYTES: usize = 300 * 1024;
/// Events that are read back at the same time.
const READ_AT_ONCE: usize = 64;

fn wanted(query: &EventsQuery, event: &TrailEvent, aggregate: &str) -> bool {
    query.event.as_ref().is_none_or(|name| *name == event.event)
        && query.kind.as_ref().is_none_or(|kind| aggregate.starts_with(kind.as_str()))
}

/// The events, newest first. The cursor is the sequence before which the next page begins.
pub(super) async fn search(
    log: &Log,
    timeline: &Table,
    last: Seq,
    query: &EventsQuery,
) -> Result<Page<TrailEvent>, Failure> {
    let unavailable = |e: anyhow::Error| Failure::Unavailable(format!("{e:#}"));
    let before = query.before.unwrap_or(last.next()).min(last.next());
    let limit = query.limit.clamp(1, MOST) as usize;
    let candidates: Vec<Seq> = match query.of {
        None => (before.0.saturating_sub(LOOKED_AT).max(1)..before.0).rev().map(Seq).collect(),
        Some(of) => {
            let aggregate = of.into();
            let length = timeline::length(timeline, aggregate).map_err(|e| unavailable(e.into()))?;
            let found = timeline::sequences(timeline, aggregate, 0, length).map_err(|e| unavailable(e.into()))?;
            let earlier = found.into_iter().rev().filter(|seq| *seq < before);
            earlier.take(usize::try_from(LOOKED_AT).unwrap_or(usize::MAX)).collect()
        }
    };
    let (lowest, looked_at) = (candidates.last().copied(), candidates.len() as u64);
    let mut reading = futures_util::stream::iter(candidates).map(|seq| log.get(seq)).buffered(READ_AT_ONCE);
    let (mut page, mut bytes) = (Page { rows: Vec::new(), next: None }, 0);
    while let Some(recorded) = reading.try_next().await.map_err(|e| unavailable(e.into()))? {
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
    // All candidates were looked at; where that is the most for one answer, older events may follow.
    page.next = lowest.filter(|seq| seq.0 > 1 && looked_at == LOOKED_AT).map(|seq| seq.to_string());
    Ok(page)
}
