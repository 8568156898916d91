//! The live connection of an open job page. It sends the summary, the trail, the receipt and the files whenever they
//! change, and the job's output while the job writes it.
//!
//! The job's output is its log, its progress and its metrics, as messages of the stream OUTPUT.

use std::{convert::Infallible, sync::Arc, time::Duration};

use async_nats::jetstream::Message;
use axum::{
    extract::State,
    http::HeaderMap,
    response::sse::{Event, KeepAlive, Sse},
};
use futures_util::{Stream, StreamExt};
use gpubnb_events::{Aggregate, JobId, Seq};
use gpubnb_query::view::{JobChange, JobView};
use serde::Deserialize;
use tokio::{
    sync::{broadcast, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::render::{
    SummaryCache, append_changes, metrics_json, progress_bar, render_artifacts, render_receipt, render_summary,
    render_trail,
};
use crate::{
    access::SignedIn,
    app::App,
    error::PageError,
    extract::{Path, Query},
    live::{
        log,
        output::{self, OutputItem, OutputMessage, OutputReader},
        parts::{MAX_SILENCE, PagePart, SentParts},
        unfinished::{UnfinishedReader, unfinished_html},
    },
    state::{Change, next_change, pending_changes},
};

/// `GET /jobs/{job}/live`. The id of a server-sent event is the sequence in OUTPUT after which a new connection
/// resumes.
///
/// State, trail, output and unfinished lines are four streams. A slow one does not stop the others, with one exception:
/// the stream of the state passes on the job's view (`JobView`), and output waits until the view has the attempt that
/// wrote the output.
pub(crate) async fn live(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(id): Path<JobId>,
    Query(query): Query<LiveQuery>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, PageError> {
    // Both subscriptions begin before the job is read, so that no change is missed.
    let (state_changes, trail_changes) = (app.changes.subscribe(), app.changes.subscribe());
    let job = app.queries.job(signed_in.reading_actor(), id, Seq(query.seq)).await?;
    let last_event_id = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse::<u64>().ok());
    let from = match last_event_id.or(query.last_id) {
        Some(last) => last.saturating_add(1),
        None => log::tail_start(&app, &job).await,
    };
    // Only the account that submitted the job may see its output.
    let is_own = job.account == signed_in.account;
    // If the stream of output fails, the whole connection ends, and the browser opens a new one.
    let output_ended = CancellationToken::new();
    let (view_sender, view_receiver) = watch::channel(job.clone());
    let events = futures_util::stream::select_all([
        state_events(app.clone(), signed_in, view_sender, state_changes).boxed(),
        trail_events(app.clone(), signed_in, id, job.seq, trail_changes).boxed(),
        if is_own {
            let unfinished = unfinished_events(app.clone(), view_receiver.clone());
            futures_util::stream::select(output_events(app, view_receiver, from, output_ended.clone()), unfinished)
                .boxed()
        } else {
            futures_util::stream::pending().boxed()
        },
    ]);
    Ok(Sse::new(events.map(Ok).take_until(output_ended.cancelled_owned())).keep_alive(KeepAlive::default()))
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct LiveQuery {
    /// The sequence of the viewer's last command, which the page must reflect.
    #[serde(default)]
    seq: u64,
    /// The last event id that the page received on an earlier connection. The header `Last-Event-ID` takes precedence.
    #[serde(rename = "from")]
    last_id: Option<u64>,
}

/// Pause after each rendering, so that several changes within milliseconds are rendered once. After the job's end the
/// state is rendered without a pause, so that the receipt is shown at once.
const RENDER_PAUSE: Duration = Duration::from_millis(25);
/// Time to wait for a job's bill before the end of the job is rendered.
const BILL_PAUSE: Duration = Duration::from_millis(10);
/// Maximum wait for the read model when the output of a new attempt arrives before the attempt is in the job's view.
const MAX_VIEW_LAG: Duration = Duration::from_secs(2);

/// Waits for the next changes of a job. Returns the last sequence and the changes. An empty list means that the caller
/// must read the job and its trail from the read model: a notice came without its change, or notices were lost, or no
/// notice came for [`MAX_SILENCE`]. In the last two cases the sequence is zero.
async fn next_job_changes(notices: &mut broadcast::Receiver<Change>, id: JobId) -> (Seq, Vec<Arc<JobChange>>) {
    let is_relevant = |change: &Change| change.aggregate == Aggregate::Job(id);
    // After a silence the job is read anyway, because a notice may have been lost.
    let Ok(Some(first)) = timeout(MAX_SILENCE, next_change(notices, is_relevant)).await else {
        return (Seq::ZERO, Vec::new());
    };
    let all: Vec<Change> = std::iter::once(first).chain(pending_changes(notices, is_relevant)).collect();
    let seq = all.iter().map(|change| change.seq).max().unwrap_or(Seq::ZERO);
    let job_changes: Vec<_> = all.iter().filter_map(|change| change.job.clone()).collect();
    (seq, if job_changes.len() == all.len() { job_changes } else { Vec::new() })
}

/// Waits for the next change of the machine that runs the job, for example because the machine falls silent. Returns
/// its sequence.
async fn next_machine_change(notices: &mut broadcast::Receiver<Change>, job: &JobView) -> Seq {
    let Some(attempt) = job.attempt() else { return std::future::pending().await };
    // A heartbeat has no sequence.
    let is_relevant =
        |change: &Change| change.aggregate == Aggregate::Machine(attempt.machine) && change.seq > Seq::ZERO;
    next_change(notices, is_relevant).await.map_or(Seq::ZERO, |change| change.seq)
}

/// Sends the parts that depend on the job's view (summary, files and receipt), and passes each new view to `view`.
fn state_events(
    app: App,
    signed_in: SignedIn,
    view: watch::Sender<JobView>,
    mut notices: broadcast::Receiver<Change>,
) -> impl Stream<Item = Event> {
    async_stream::stream! {
        let (mut sent, mut cache) = (SentParts::default(), SummaryCache::default());
        let mut machine_notices = app.changes.subscribe();
        loop {
            let mut job = view.borrow().clone();
            // The bill follows the end within milliseconds, and both are rendered at once.
            if job.ended_at.is_some() && !job.settled
                && let Ok(changes) = timeout(BILL_PAUSE, next_job_changes(&mut notices, job.job)).await
                && let Some(newer) = newer_view(&app, signed_in, &job, changes).await
            {
                job = newer;
                view.send_replace(job.clone());
            }
            let html = render_summary(&app, signed_in, &job, &mut cache).await;
            if let Some(event) = sent.event_if_changed(&PagePart::new("summary", html)) {
                yield event;
            }
            let receipt = render_receipt(&app, signed_in, &job).await;
            // Only the account that submitted the job may see the names of its files.
            let files = (job.account == signed_in.account).then(|| PagePart::new("artifacts", render_artifacts(&job)));
            for part in files.into_iter().chain([PagePart::new("receipt", receipt)]) {
                if let Some(event) = sent.event_if_changed(&part) {
                    yield event;
                }
            }
            if job.ended_at.is_none() {
                sleep(RENDER_PAUSE).await;
            }
            let newer = loop {
                tokio::select! {
                    changes = next_job_changes(&mut notices, job.job) => {
                        if let Some(newer) = newer_view(&app, signed_in, &job, changes).await {
                            break newer;
                        }
                    }
                    seq = next_machine_change(&mut machine_notices, &job) => {
                        cache.forget_machine(seq);
                        break job;
                    }
                }
            };
            view.send_replace(newer);
        }
    }
}

/// The view of the job after these changes, from [`next_job_changes`]. `None` if the job cannot be read, or if the
/// answer is older than the known view: the projector that answers may lag behind the one that sent the notice.
async fn newer_view(
    app: &App,
    signed_in: SignedIn,
    known: &JobView,
    (seq, changes): (Seq, Vec<Arc<JobChange>>),
) -> Option<JobView> {
    let newest = changes.iter().map(|change| &change.job).max_by_key(|job| job.seq);
    let newer = match newest {
        Some(newer) => newer.clone(),
        None => app.queries.job(signed_in.reading_actor(), known.job, seq).await.ok()?,
    };
    (newer.seq >= known.seq).then_some(newer)
}

/// Sends the job's trail. The first rendering reflects the log at least up to `min_seq`.
fn trail_events(
    app: App,
    signed_in: SignedIn,
    id: JobId,
    min_seq: Seq,
    mut notices: broadcast::Receiver<Change>,
) -> impl Stream<Item = Event> {
    async_stream::stream! {
        let (mut sent, mut trail, mut seq) = (SentParts::default(), Vec::new(), min_seq);
        let mut is_complete = false;
        loop {
            let html = render_trail(&app, signed_in, id, (seq, is_complete), &mut trail).await;
            if let Some(event) = sent.event_if_changed(&PagePart::new("trail", html)) {
                yield event;
            }
            sleep(RENDER_PAUSE).await;
            let (newer, changes) = next_job_changes(&mut notices, id).await;
            seq = newer;
            is_complete = append_changes(&mut trail, &changes);
        }
    }
}

/// Sends the job's output, beginning at the sequence `from` of OUTPUT. Waits first until the job has an attempt.
fn output_events(
    app: App,
    mut view: watch::Receiver<JobView>,
    from: u64,
    output_ended: CancellationToken,
) -> impl Stream<Item = Event> {
    async_stream::stream! {
        let has_attempt = |job: &JobView| !job.attempts.is_empty();
        let Ok(id) = view.wait_for(has_attempt).await.map(|job| job.job) else { return };
        let Ok(mut messages) = output::follow(&app, id, from).await else { return output_ended.cancel() };
        let mut reader = OutputReader::default();
        while let Some(message) = messages.next().await {
            let job = view_with_lease(&mut view, &message).await;
            let Some(output) = reader.read(&message, &output::machines_by_lease(&job)) else { continue };
            for event in to_events(&job, output) {
                yield event;
            }
        }
        output_ended.cancel();
    }
}

/// Sends the lines that the job has not finished yet. They are gone when the job has ended.
fn unfinished_events(app: App, mut view: watch::Receiver<JobView>) -> impl Stream<Item = Event> {
    async_stream::stream! {
        let id = view.borrow().job;
        // If the subscription fails, the page goes on without these lines.
        let Ok(mut unfinished) = UnfinishedReader::open(&app, id).await else { return };
        let mut sent = SentParts::default();
        loop {
            let lines = unfinished.newest(&view.borrow_and_update());
            let part = PagePart::new("log-unfinished", unfinished_html(lines.as_ref()));
            if let Some(event) = sent.event_if_changed(&part) {
                yield event;
            }
            sleep(RENDER_PAUSE).await;
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return },
                () = unfinished.changed() => {}
            }
        }
    }
}

/// Waits until the job's view has the attempt whose lease the message names, at most [`MAX_VIEW_LAG`]. Returns the
/// newest view.
async fn view_with_lease(view: &mut watch::Receiver<JobView>, message: &Message) -> JobView {
    let lease = output::lease_of(message);
    let has_attempt = view.wait_for(|job| job.attempts.iter().any(|a| Some(a.lease) == lease));
    // After a time-out, the reader drops the message, because the view has no such attempt.
    drop(timeout(MAX_VIEW_LAG, has_attempt).await);
    view.borrow().clone()
}

/// A message of OUTPUT as server-sent events. Only the last event has an id, so that a page resumes after a whole
/// message.
fn to_events(job: &JobView, output: OutputMessage) -> Vec<Event> {
    let id = output.seq.to_string();
    let mut lines = Vec::new();
    let mut events = Vec::new();
    for item in output.items {
        match item {
            OutputItem::Line(lease, number, line) => lines.push((lease, number, line)),
            OutputItem::Progress(progress) if job.attempt().is_some_and(|a| a.lease == progress.lease) => {
                events.push(Event::default().event("part").data(format!("progress\n{}", progress_bar(&progress, job))));
            }
            OutputItem::Metrics(metrics) if job.attempts.last().is_some_and(|a| a.lease == metrics.lease) => {
                events.push(Event::default().event("metrics").data(metrics_json(&metrics)));
            }
            OutputItem::Progress(_) | OutputItem::Metrics(_) => {}
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
