//! The one connection of an open job page: summary, trail, receipt and files as they change, and the log as it is
//! written.

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

use super::render::{SummaryCache, artifacts, events, metrics_json, progress_bar, receipt, summary, take_in};
use crate::{
    access::SignedIn,
    app::App,
    error::PageError,
    extract::{Path, Query},
    live::{
        log,
        output::{self, OutputMessage, OutputReader, Said},
        parts::{AT_LEAST, PagePart, Shown},
    },
    state::{Change, next_change, pending_changes},
};

/// `GET /jobs/{id}/live`. The id of an event is the position in the job's output from which to resume.
///
/// State, trail and output are three independent streams, so that none of them waits for another.
pub(crate) async fn live(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
    Query(opened): Query<Opened>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, PageError> {
    let (of_state, of_trail) = (app.changes.subscribe(), app.changes.subscribe());
    let row = app.queries.job(signed_in.reader(), job, Seq(opened.seq)).await?;
    let resumed = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse::<u64>().ok());
    let from = match resumed.or(opened.from) {
        Some(last) => last + 1,
        None => log::tail(&app, &row).await,
    };
    // Only the job's owner may see its output.
    let own = row.account == signed_in.account;
    // If the output stream breaks, the whole connection ends, and the browser opens it again.
    let ended = CancellationToken::new();
    let (known, newest) = watch::channel(row.clone());
    let events = futures_util::stream::select_all([
        state(app.clone(), signed_in, known, of_state).boxed(),
        trail(app.clone(), signed_in, job, row.seq, of_trail).boxed(),
        if own { output(app, newest, from, ended.clone()).boxed() } else { futures_util::stream::pending().boxed() },
    ]);
    Ok(Sse::new(events.map(Ok).take_until(ended.cancelled_owned())).keep_alive(KeepAlive::default()))
}

/// The state of the page that opens the connection.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Opened {
    /// The sequence of the viewer's last command, which the page must show.
    #[serde(default)]
    seq: u64,
    /// The last position in the output that the page got, if it was connected before.
    from: Option<u64>,
}

/// Pause after each rendering. States that follow each other within milliseconds are rendered once. After the end of
/// the job there is no pause, so that the receipt comes at once.
const FRAME: Duration = Duration::from_millis(25);
/// How long the page waits for the read model when output of a new attempt comes first.
const AHEAD: Duration = Duration::from_secs(2);

type Notices = broadcast::Receiver<Change>;

/// The next changes of a job: the sequence of the newest, and the news that the notices carried. The list is empty if a
/// notice carried none; then everything has to be read.
async fn next_news(notices: &mut Notices, job: JobId) -> (Seq, Vec<Arc<JobNews>>) {
    let matters = |change: &Change| change.aggregate == Aggregate::Job(job);
    // After a while without a notice the job is read anyway, because a notice may have been lost.
    let Ok(Some(first)) = timeout(AT_LEAST, next_change(notices, matters)).await else {
        return (Seq::ZERO, Vec::new());
    };
    let all: Vec<Change> = std::iter::once(first).chain(pending_changes(notices, matters)).collect();
    let seq = all.iter().map(|change| change.seq).max().unwrap_or(Seq::ZERO);
    let news: Vec<_> = all.iter().filter_map(|change| change.job.clone()).collect();
    (seq, if news.len() == all.len() { news } else { Vec::new() })
}

/// The parts that are rendered from the job's view: summary, files, receipt.
fn state(
    app: App,
    signed_in: SignedIn,
    newest: watch::Sender<JobView>,
    mut notices: Notices,
) -> impl Stream<Item = Event> {
    async_stream::stream! {
        let (mut shown, mut known) = (Shown::default(), SummaryCache::default());
        loop {
            let row = newest.borrow().clone();
            let html = summary(&app, signed_in, &row, &mut known).await;
            if let Some(event) = shown.changed(&PagePart::new("summary", html)) {
                yield event;
            }
            let bill = receipt(&app, signed_in, &row).await;
            for part in [PagePart::new("artifacts", artifacts(&row)), PagePart::new("receipt", bill)] {
                if let Some(event) = shown.changed(&part) {
                    yield event;
                }
            }
            if row.ended_at.is_none() {
                sleep(FRAME).await;
            }
            let newer = loop {
                let (seq, news) = next_news(&mut notices, row.job).await;
                let newest = news.iter().map(|one| &one.job).max_by_key(|row| row.seq);
                let newer = match newest {
                    Some(newer) => Ok(newer.clone()),
                    None => app.queries.job(signed_in.reader(), row.job, seq).await,
                };
                // If the job cannot be read now, it is read at the next change. Another projector may be behind.
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
        let mut complete = false;
        loop {
            let html = events(&app, signed_in, job, (seq, complete), &mut trail).await;
            if let Some(event) = shown.changed(&PagePart::new("trail", html)) {
                yield event;
            }
            sleep(FRAME).await;
            let (newer, news) = next_news(&mut notices, job).await;
            seq = newer;
            complete = take_in(&mut trail, &news);
        }
    }
}

/// The job's output, beginning at a sequence of OUTPUT. It begins when a machine has the job.
fn output(
    app: App,
    mut newest: watch::Receiver<JobView>,
    from: u64,
    ended: CancellationToken,
) -> impl Stream<Item = Event> {
    async_stream::stream! {
        let has_machine = |row: &JobView| !row.attempts.is_empty();
        let Ok(job) = newest.wait_for(has_machine).await.map(|row| row.job) else { return };
        let Ok(mut messages) = output::follow(&app, job, from).await else { return ended.cancel() };
        let mut reader = OutputReader::default();
        while let Some(message) = messages.next().await {
            let row = with_sender(&mut newest, &message).await;
            let Some(heard) = reader.read(&message, &output::attempts(&row)) else { continue };
            for event in events_of(&row, heard) {
                yield event;
            }
        }
        ended.cancel();
    }
}

/// The job's view, with the machine that sent a message among its attempts. If the machine is missing, the output is
/// ahead of the read model, and this waits a little.
async fn with_sender(newest: &mut watch::Receiver<JobView>, message: &Message) -> JobView {
    let machine = gpubnb_events::subject::parse_output(&message.subject).map(|(machine, ..)| machine);
    let known = newest.wait_for(|row| row.attempts.iter().any(|a| Some(a.machine) == machine));
    // A machine that is still missing then has no attempt of this job, and the reader drops its message.
    drop(timeout(AHEAD, known).await);
    newest.borrow().clone()
}

fn events_of(row: &JobView, heard: OutputMessage) -> Vec<Event> {
    let id = heard.seq.to_string();
    let mut lines = Vec::new();
    let mut events = Vec::new();
    for said in heard.said {
        match said {
            Said::Line(lease, number, line) => lines.push((lease, number, line)),
            Said::Progress(progress) if row.attempt().is_some_and(|a| a.lease == progress.lease) => {
                events.push(Event::default().event("part").data(format!("progress\n{}", progress_bar(&progress, row))));
            }
            Said::Metrics(metrics) if row.attempts.last().is_some_and(|a| a.lease == metrics.lease) => {
                events.push(Event::default().event("metrics").data(metrics_json(&metrics)));
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
