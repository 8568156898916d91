//! `/api/v1/jobs/{id}/events/stream` and `…/logs/stream`: the trail (the job's events) and the output of a job as
//! server-sent events. A client that lost its connection sends the id of the last event that it received
//! (`Last-Event-ID`), and the new stream resumes after this event.

use std::{convert::Infallible, time::Duration};

use axum::{
    extract::State,
    http::HeaderMap,
    response::sse::{Event, KeepAlive, Sse},
};
use futures_util::{Stream, StreamExt};
use gpubnb_events::{Aggregate, JobId, Seq, output::UnfinishedLines};
use gpubnb_query::request::{TrailOf, TrailQuery};

use super::jobs::JobLogLine;
use crate::{
    access::SignedIn,
    app::App,
    error::ApiError,
    extract::Path,
    live::{
        output::{self, OutputCursor, OutputItem, OutputReader},
        unfinished::UnfinishedReader,
    },
    state::next_change,
};

/// The longest time without reading the job again, because a change notice (see `state/changes.rs`) may be lost.
const READ_AGAIN: Duration = Duration::from_secs(10);
/// The number of lines in one part of the output that is sent after the job's end.
const MAX_LINES_AFTER_END: usize = 1_000;
/// The number of events in one query.
const PAGE: u32 = 200;

fn last_event_id(headers: &HeaderMap) -> Option<u64> {
    headers.get("last-event-id")?.to_str().ok()?.parse().ok()
}

type Events = Sse<std::pin::Pin<Box<dyn Stream<Item = Result<Event, Infallible>> + Send>>>;

fn sse(events: impl Stream<Item = Event> + Send + 'static) -> Events {
    let events: std::pin::Pin<Box<dyn Stream<Item = Result<Event, Infallible>> + Send>> = Box::pin(events.map(Ok));
    Sse::new(events)
}

/// The job's trail. The id of an event is its sequence in the log. The stream ends after the job is settled.
pub(crate) async fn events(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
    headers: HeaderMap,
) -> Result<impl axum::response::IntoResponse, ApiError> {
    let mut changes = app.changes.subscribe();
    let mut seq = app.queries.job(signed_in.actor(), job, Seq::ZERO).await?.seq;
    let mut last = Seq(last_event_id(&headers).unwrap_or(0));
    let mut skip = 0;
    let events = async_stream::stream! {
        loop {
            let query = TrailQuery { of: TrailOf::Job(job), skip, limit: PAGE, from_end: false };
            // If the trail cannot be read, the stream ends, and the client opens it again.
            let Ok(page) = app.queries.trail(signed_in.actor(), query, seq).await else { return };
            let rows = page.rows;
            let is_full = rows.len() == PAGE as usize;
            skip += u32::try_from(rows.len()).unwrap_or(PAGE);
            let mut is_settled = false;
            for row in rows {
                is_settled |= row.event == "Settled";
                if row.seq > last {
                    last = row.seq;
                    let event = Event::default().event(row.event.clone()).id(row.seq.to_string());
                    if let Ok(event) = event.json_data(&row) {
                        yield event;
                    }
                }
            }
            if is_settled {
                return;
            }
            if !is_full {
                // A notice may be lost, so the trail is read again without one, too.
                let next = next_change(&mut changes, |c| c.aggregate == Aggregate::Job(job));
                let change = tokio::time::timeout(READ_AGAIN, next).await.ok().flatten();
                seq = change.map_or(seq, |change| change.seq);
            }
        }
    };
    Ok(sse(events).keep_alive(KeepAlive::default()))
}

/// The job's output as events `line`, `progress` and `metrics`. An event `unfinished` has the lines that the job has
/// begun and not finished, one of standard output and one of standard error. Each such event replaces the former one.
/// The id of an event is a sequence in the stream OUTPUT. When the job has ended, the rest of the output follows, then
/// the event `end`, and the stream ends. A client that got no `end` opens the stream again.
pub(crate) async fn logs(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
    headers: HeaderMap,
) -> Result<impl axum::response::IntoResponse, ApiError> {
    let mut changes = app.changes.subscribe();
    let mut row = app.queries.job(signed_in.actor(), job, Seq::ZERO).await?;
    let mut from = OutputCursor { seq: last_event_id(&headers).map_or(1, |seq| seq + 1), line: None };
    let mut messages = output::follow(&app, job, from.seq).await?;
    let mut unfinished = UnfinishedReader::open(&app, job).await?;
    let events = async_stream::stream! {
        let mut reader = OutputReader::default();
        // A notice may be lost, so the job is looked at now and then, whatever else arrives.
        let mut look_again = tokio::time::interval_at(tokio::time::Instant::now() + READ_AGAIN, READ_AGAIN);
        look_again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut shown: Option<UnfinishedLines> = None;
        // A job's end is recorded after its output is complete. So when the end is known, the rest can be read below.
        while row.ended_at.is_none() {
            let lines = unfinished.newest(&row);
            if lines != shown {
                // If no line is unfinished any more, an event with empty lines clears those that the client shows.
                let empty = |shown| UnfinishedLines { stdout: String::new(), stderr: String::new(), ..shown };
                let newest = lines.clone().or_else(|| shown.map(empty));
                shown = lines;
                if let Some(Ok(event)) = newest.map(|lines| Event::default().event("unfinished").json_data(lines)) {
                    yield event;
                }
            }
            let change = next_change(&mut changes, |c| c.aggregate == Aggregate::Job(job));
            let message = tokio::select! {
                message = messages.next() => message,
                () = unfinished.changed() => continue,
                change = change => {
                    row = app.queries.job(signed_in.actor(), job, change.map_or(Seq::ZERO, |change| change.seq)).await
                        .unwrap_or(row);
                    continue;
                }
                _ = look_again.tick() => {
                    row = app.queries.job(signed_in.actor(), job, Seq::ZERO).await.unwrap_or(row);
                    continue;
                }
            };
            let Some(message) = message else { return };
            let Some(lease) = output::lease_of(&message) else { continue };
            if !row.attempts.iter().any(|a| a.lease == lease) {
                // The answer must include the new attempt, whose event has the lease's sequence.
                row = app.queries.job(signed_in.actor(), job, lease.0).await.unwrap_or(row);
            }
            let Some(output) = reader.read(&message, &output::machines_by_lease(&row)) else { continue };
            from = reader.cursor(output.seq + 1);
            for event in with_id(output.items, Some(output.seq)) {
                yield event;
            }
        }
        loop {
            // A broken answer ends the stream without `end`, so that the client asks again.
            let Ok((items, next)) = output::read_page(&app, &row, from, MAX_LINES_AFTER_END).await else { return };
            for event in with_id(items, next.map(|next| next.seq - 1)) {
                yield event;
            }
            match next {
                Some(next) => from = next,
                None => break,
            }
        }
        yield Event::default().event("end").data("{}");
    };
    Ok(sse(events).keep_alive(KeepAlive::default()))
}

/// The items as events. Only the last event carries the id, so a client that knows the id has all of them.
fn with_id(items: Vec<OutputItem>, id: Option<u64>) -> Vec<Event> {
    let event = |item| match item {
        OutputItem::Line(lease, number, line) => {
            Event::default().event("line").json_data(JobLogLine::new(lease, number, line)).ok()
        }
        OutputItem::Progress(progress) => Event::default().event("progress").json_data(progress).ok(),
        OutputItem::Metrics(metrics) => Event::default().event("metrics").json_data(metrics).ok(),
    };
    let mut events: Vec<_> = items.into_iter().filter_map(event).collect();
    if let Some(last) = events.pop() {
        events.push(match id {
            Some(id) => last.id(id.to_string()),
            None => last,
        });
    }
    events
}
