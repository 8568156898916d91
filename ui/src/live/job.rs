//! The live page of one job: its summary, trail, receipt and files as they change, its log as it is written.

use std::convert::Infallible;

use axum::{
    extract::State,
    http::HeaderMap,
    response::sse::{Event, KeepAlive, Sse},
};
use futures_util::{Stream, StreamExt};
use gpubnb_events::{Aggregate, JobId, Seq};
use gpubnb_projector::view::JobRow;

use super::{
    next_change,
    output::{self, Heard, Reader, Said},
    pending_changes,
};
use crate::{
    app::App,
    error::PageError,
    extract::{AtLeast, Path, Query},
    page::job::{Fragments, log_lines},
    viewer::SignedIn,
};

/// What wakes the page.
enum Woken {
    Changed(Option<Seq>),
    Heard(Option<Box<async_nats::jetstream::Message>>),
}

/// `GET /jobs/{id}/live`. The id of an event is where to read on in the job's output.
pub(crate) async fn live(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
    Query(at_least): Query<AtLeast>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, PageError> {
    let mut changes = app.changes.subscribe();
    let mut row = app.queries.job(signed_in.actor(), job, at_least.seq()).await?;
    let heard_before = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse::<u64>().ok());
    let from = heard_before.map_or(1, |seq| seq + 1);
    let mut messages = output::follow(&app, job, from).await?;
    let events = async_stream::stream! {
        let mut reader = Reader::default();
        let mut fragments = Fragments::load(&app, signed_in, &row).await;
        for event in fragments.events() {
            yield Ok(event);
        }
        loop {
            let woken = tokio::select! {
                seq = next_change(&mut changes, |a| a == Aggregate::Job(job)) => Woken::Changed(seq),
                message = messages.next() => Woken::Heard(message.map(Box::new)),
            };
            match woken {
                Woken::Changed(seq) => {
                    let seq = seq.max(pending_changes(&mut changes, |a| a == Aggregate::Job(job)));
                    let asked = app.queries.job(signed_in.actor(), job, seq.unwrap_or(Seq::ZERO)).await;
                    if let Ok(newer) = asked {
                        row = newer;
                        let new = Fragments::load(&app, signed_in, &row).await;
                        for event in new.changed(&fragments) {
                            yield Ok(event);
                        }
                        fragments = new;
                    }
                }
                Woken::Heard(Some(message)) => {
                    // A lease that is not known yet: the trail is ahead of this page.
                    let Some(heard) = hear(&app, signed_in, &mut row, &mut reader, &message).await else { continue };
                    for event in said(&row, heard) {
                        yield Ok(event);
                    }
                }
                // The output could not be followed: the browser opens the page's stream again.
                Woken::Heard(None) => return,
            }
        }
    };
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

async fn hear(
    app: &App,
    signed_in: SignedIn,
    row: &mut JobRow,
    reader: &mut Reader,
    message: &async_nats::jetstream::Message,
) -> Option<Heard> {
    let known = |row: &JobRow| {
        let machine = gpubnb_events::subject::parse_output(&message.subject).map(|(machine, ..)| machine);
        row.attempts.iter().any(|a| Some(a.machine) == machine)
    };
    if !known(row) {
        *row = app.queries.job(signed_in.actor(), row.job, Seq::ZERO).await.ok()?;
    }
    reader.read(message, &output::attempts(row))
}

fn said(row: &JobRow, heard: Heard) -> Vec<Event> {
    let id = heard.seq.to_string();
    let mut lines = Vec::new();
    let mut events = Vec::new();
    for said in heard.said {
        match said {
            Said::Line(lease, number, line) => lines.push((lease, number, line)),
            Said::Progress(progress) if row.attempt().is_some_and(|a| a.lease == progress.lease) => {
                events.push(Event::default().event("progress").data(crate::page::job::progress_bar(&progress)));
            }
            Said::Metrics(metrics) => {
                events.push(Event::default().event("metrics").data(crate::page::job::metrics_line(&metrics)));
            }
            Said::Progress(_) => {}
        }
    }
    if !lines.is_empty() {
        events.push(Event::default().event("log").data(log_lines(&lines)));
    }
    if let Some(last) = events.pop() {
        events.push(last.id(id));
    }
    events
}
