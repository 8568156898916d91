//! The live page of one job: its summary, trail, receipt and files as they change, its log as it is written.

use std::{convert::Infallible, sync::Arc, time::Duration};

use async_nats::jetstream::Message;
use axum::{
    extract::State,
    http::HeaderMap,
    response::sse::{Event, KeepAlive, Sse},
};
use futures_util::{Stream, StreamExt};
use gpubnb_events::{Aggregate, JobId, Seq};
use gpubnb_query::view::{JobNews, JobView};
use serde::Deserialize;
use tokio::{
    sync::{broadcast, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Change, log, next_change,
    output::{self, Heard, Reader, Said},
    parts::{AT_LEAST, Part, Shown},
    pending_changes,
};
use crate::{
    access::SignedIn,
    app::App,
    error::PageError,
    extract::{Path, Query},
    page::job as page,
};

/// `GET /jobs/{id}/live`. The id of an event is where to read on in the job's output.
///
/// State, trail and output are three streams in one, so that the quick one never waits for the slow.
pub(crate) async fn live(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
    Query(opened): Query<Opened>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, PageError> {
    let (of_state, of_trail) = (app.changes.subscribe(), app.changes.subscribe());
    let row = app.queries.job(signed_in.reader(), job, Seq(opened.seq)).await?;
    let again = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse::<u64>().ok());
    let from = match again.or(opened.from) {
        Some(heard) => heard + 1,
        None => log::tail(&app, &row).await,
    };
    // What it says is for nobody else.
    let own = row.account == signed_in.account;
    // When the output cannot be followed any more, the browser opens the whole stream again.
    let ended = CancellationToken::new();
    let (known, newest) = watch::channel(row.clone());
    let events = futures_util::stream::select_all([
        state(app.clone(), signed_in, known, of_state).boxed(),
        trail(app.clone(), signed_in, job, row.seq, of_trail).boxed(),
        if own { said(app, newest, from, ended.clone()).boxed() } else { futures_util::stream::pending().boxed() },
    ]);
    Ok(Sse::new(events.map(Ok).take_until(ended.cancelled_owned())).keep_alive(KeepAlive::default()))
}

/// How a page is opened.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Opened {
    /// What its reader has brought about.
    #[serde(default)]
    seq: u64,
    /// The last of the output that it heard, if it was open before.
    from: Option<u64>,
}

/// Pause between two looks: states that follow each other within milliseconds are read and drawn once. The bill is
/// not waited for.
const FRAME: Duration = Duration::from_millis(25);
/// How long output may be ahead of the read models.
const AHEAD: Duration = Duration::from_secs(2);

type Notices = broadcast::Receiver<Change>;

/// What became of a job, and at which sequence; its row comes along if the notice told.
async fn next_news(notices: &mut Notices, job: JobId) -> (Seq, Vec<Arc<JobNews>>) {
    let matters = |change: &Change| change.aggregate == Aggregate::Job(job);
    // A notice that was missed heals: now and then it is asked.
    let Ok(Some(first)) = timeout(AT_LEAST, next_change(notices, matters)).await else {
        return (Seq::ZERO, Vec::new());
    };
    let all: Vec<Change> = std::iter::once(first).chain(pending_changes(notices, matters)).collect();
    let seq = all.iter().map(|change| change.seq).max().unwrap_or(Seq::ZERO);
    let told: Vec<_> = all.iter().filter_map(|change| change.job.clone()).collect();
    // One that did not tell leaves a gap: then all is asked for.
    (seq, if told.len() == all.len() { told } else { Vec::new() })
}

/// What follows from the job's row: summary, files, receipt.
fn state(
    app: App,
    signed_in: SignedIn,
    newest: watch::Sender<JobView>,
    mut notices: Notices,
) -> impl Stream<Item = Event> {
    async_stream::stream! {
        let (mut shown, mut known) = (Shown::default(), page::Known::default());
        loop {
            let row = newest.borrow().clone();
            let summary = page::summary(&app, signed_in, &row, &mut known).await;
            if let Some(event) = shown.changed(&Part::new("summary", summary)) {
                yield event;
            }
            let receipt = page::receipt(&app, signed_in, &row).await;
            for part in [Part::new("artifacts", page::artifacts(&row)), Part::new("receipt", receipt)] {
                if let Some(event) = shown.changed(&part) {
                    yield event;
                }
            }
            if row.ended_at.is_none() {
                sleep(FRAME).await;
            }
            let newer = loop {
                let (seq, told) = next_news(&mut notices, row.job).await;
                let newest = told.iter().map(|news| &news.job).max_by_key(|row| row.seq);
                let newer = match newest {
                    Some(newer) => Ok(newer.clone()),
                    None => app.queries.job(signed_in.reader(), row.job, seq).await,
                };
                // What cannot be read now is read at the next change; another projector may be behind.
                if let Ok(newer) = newer
                    && newer.seq >= row.seq
                {
                    break newer;
                }
            };
            newest.send_replace(newer);
        }
    }
}

/// The job's trail.
fn trail(app: App, signed_in: SignedIn, job: JobId, from: Seq, mut notices: Notices) -> impl Stream<Item = Event> {
    async_stream::stream! {
        let (mut shown, mut trail, mut seq) = (Shown::default(), Vec::new(), from);
        let mut whole = false;
        loop {
            let html = page::events(&app, signed_in, job, (seq, whole), &mut trail).await;
            if let Some(event) = shown.changed(&Part::new("trail", html)) {
                yield event;
            }
            sleep(FRAME).await;
            let (newer, told) = next_news(&mut notices, job).await;
            seq = newer;
            whole = page::take_in(&mut trail, &told);
        }
    }
}

/// What the job says, from a sequence of OUTPUT on. Nothing is said before a machine has it.
fn said(
    app: App,
    mut newest: watch::Receiver<JobView>,
    from: u64,
    ended: CancellationToken,
) -> impl Stream<Item = Event> {
    async_stream::stream! {
        let speaks = |row: &JobView| !row.attempts.is_empty();
        let Ok(job) = newest.wait_for(speaks).await.map(|row| row.job) else { return };
        let Ok(mut messages) = output::follow(&app, job, from).await else { return ended.cancel() };
        let mut reader = Reader::default();
        while let Some(message) = messages.next().await {
            let row = speaker_known(&mut newest, &message).await;
            let Some(heard) = reader.read(&message, &output::attempts(&row)) else { continue };
            for event in events_of(&row, heard) {
                yield event;
            }
        }
        ended.cancel();
    }
}

/// The row, with the machine that speaks among its attempts. A machine that is not known yet: the output is
/// ahead of this page.
async fn speaker_known(newest: &mut watch::Receiver<JobView>, message: &Message) -> JobView {
    let machine = gpubnb_events::subject::parse_output(&message.subject).map(|(machine, ..)| machine);
    let known = newest.wait_for(|row| row.attempts.iter().any(|a| Some(a.machine) == machine));
    // Who is not known by then has no attempt: the reader drops what it says.
    drop(timeout(AHEAD, known).await);
    newest.borrow().clone()
}

fn events_of(row: &JobView, heard: Heard) -> Vec<Event> {
    let id = heard.seq.to_string();
    let mut lines = Vec::new();
    let mut events = Vec::new();
    for said in heard.said {
        match said {
            Said::Line(lease, number, line) => lines.push((lease, number, line)),
            Said::Progress(progress) if row.attempt().is_some_and(|a| a.lease == progress.lease) => {
                events.push(
                    Event::default().event("part").data(format!("progress\n{}", page::progress_bar(&progress, row))),
                );
            }
            Said::Metrics(metrics) if row.attempts.last().is_some_and(|a| a.lease == metrics.lease) => {
                events.push(Event::default().event("metrics").data(page::metrics_json(&metrics)));
            }
            Said::Progress(_) | Said::Metrics(_) => {}
        }
    }
    if !lines.is_empty() {
        events.push(Event::default().event("log").data(log::lines_html(&lines)));
    }
    if let Some(last) = events.pop() {
        events.push(last.id(id));
    }
    events
}
