//! One job: summary first, then log, files, receipt and events, all live.

use std::sync::Arc;

use askama::Template;
use axum::{
    extract::State,
    http::header,
    response::{Html, IntoResponse, Redirect, Response},
};
use gpubnb_events::{
    JobId, Lease, MicroUsd, Millis, Seq, Timestamp,
    command::{CancelJob, Done},
    output::{JobMetrics, Progress},
    spec::PlacementExplanation,
};
use gpubnb_query::{
    request::{TrailOf, TrailQuery},
    view::{JobNews, JobState, JobView, MachineView, Receipt, TrailEvent},
};
use gpubnb_runtime::rpc::Failure;
use serde::Deserialize;

use super::{Chrome, fragment, html};
use crate::ansi::escape;
use crate::{
    access::SignedIn,
    app::App,
    error::{PageError, Problem},
    extract::{AtLeast, Path, Query},
    format,
    live::{log, output},
};

#[derive(Template)]
#[template(path = "job.html")]
struct JobPage {
    chrome: Chrome,
    job: JobView,
    /// Whether it is the viewer's. Its log and files are for nobody else, operators included.
    own: bool,
    fragments: Fragments,
}

#[derive(Template)]
#[template(path = "job_summary.html")]
struct Summary<'a> {
    job: &'a JobView,
    machine: Option<&'a MachineView>,
    progress: String,
    waiting: Option<PlacementExplanation>,
    now: Timestamp,
    csrf: String,
}

#[derive(Template)]
#[template(path = "job_events.html")]
struct Events<'a> {
    trail: &'a [TrailEvent],
    now: Timestamp,
}

impl Events<'_> {
    fn is_bad(&self, event: &str) -> bool {
        matches!(event, "Failed" | "Requeued" | "Cancelled" | "Declined")
    }

    /// The names in it, each once, for the filter.
    fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.trail.iter().map(|e| e.event.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// When its sender says that it happened, if it says so.
    fn occurred(&self, event: &TrailEvent) -> Option<Timestamp> {
        event.body.get("occurred_at")?.as_str()?.parse().ok()
    }

    /// The attempt it belongs to: a line is drawn where the next begins.
    fn begins_attempt(&self, event: &TrailEvent) -> Option<u64> {
        (event.event == "JobAssigned").then(|| event.body.get("attempt").and_then(serde_json::Value::as_u64)).flatten()
    }

    fn raw(&self, event: &TrailEvent) -> String {
        super::json(&event.body)
    }
}

#[derive(Template)]
#[template(path = "job_receipt.html")]
struct ReceiptCard<'a> {
    job: &'a JobView,
    receipt: Option<&'a Receipt>,
}

impl ReceiptCard<'_> {
    /// Of all postings: nothing comes from nowhere.
    fn sum(&self, receipt: &Receipt) -> MicroUsd {
        receipt.settled.postings.iter().map(|p| p.amount).sum()
    }
}

#[derive(Template)]
#[template(path = "job_artifacts.html")]
struct Artifacts<'a> {
    job: &'a JobView,
}

impl Artifacts<'_> {
    fn is_picture(&self, path: &str) -> bool {
        let ending = path.rsplit('.').next().unwrap_or_default().to_lowercase();
        matches!(ending.as_str(), "png" | "jpg" | "jpeg" | "gif" | "webp")
    }

    fn is_text(&self, path: &str, bytes: u64) -> bool {
        let ending = path.rsplit('.').next().unwrap_or_default().to_lowercase();
        bytes <= PREVIEW && matches!(ending.as_str(), "txt" | "json" | "jsonl" | "csv" | "md" | "log" | "yaml" | "toml")
    }

    fn total(&self) -> u64 {
        self.job.outputs.iter().map(|a| a.bytes).sum()
    }

    fn link(&self, path: &str) -> String {
        let parts: Vec<_> = path.split('/').map(crate::transfer::escape).collect();
        format!("/jobs/{}/artifacts/{}", self.job.job, parts.join("/"))
    }
}

/// The parts of the page that change, rendered.
struct Fragments {
    summary: String,
    events: String,
    receipt: String,
    artifacts: String,
}

/// What is kept between two looks, because it does not change any more.
#[derive(Default)]
pub(crate) struct Known {
    /// The machine of the newest attempt.
    machine: Option<(Lease, Arc<MachineView>)>,
    progress: Option<Progress>,
    /// The job has ended, and this was its last progress.
    last: bool,
}

/// Largest text that is shown on the page.
const PREVIEW: u64 = 64 * 1024;
/// A run is judged by its pace after so long.
const KNOWN_AFTER: Millis = Millis(3_000);
/// Events asked for at once.
const PAGE: u32 = 200;
/// Most events on the page.
const MOST_EVENTS: usize = 2_000;

/// A part that cannot be read now says so.
fn shown(part: Result<String, Problem>) -> String {
    part.unwrap_or_else(|p| format!("<p class=\"hint\">{}</p>", escape(&p.detail)))
}

/// Where the job is, what it costs, and why it waits.
pub(crate) async fn summary(app: &App, signed_in: SignedIn, job: &JobView, known: &mut Known) -> String {
    // What a job says is for nobody else.
    let own = job.account == signed_in.account;
    let ((), (), waiting) = tokio::join!(
        know_machine(app, signed_in, job, &mut known.machine),
        know_progress(app, own, job, &mut known.progress, &mut known.last),
        waiting(app, signed_in, job),
    );
    let machine = known.machine.as_ref().map(|(_, machine)| machine.as_ref());
    let progress = known.progress.as_ref().map(|p| progress_bar(p, job)).unwrap_or_default();
    shown(fragment(&Summary {
        job,
        machine,
        progress,
        waiting,
        now: app.now(),
        csrf: super::csrf_field(signed_in.viewer),
    }))
}

/// The bill, or what will be on it.
pub(crate) async fn receipt(app: &App, signed_in: SignedIn, job: &JobView) -> String {
    let receipt = if job.settled { app.queries.receipt(signed_in.reader(), job.job, job.seq).await } else { Ok(None) };
    let card = |receipt: Option<Receipt>| fragment(&ReceiptCard { job, receipt: receipt.as_ref() });
    shown(receipt.map_err(Problem::from).and_then(card))
}

/// The files.
pub(crate) fn artifacts(job: &JobView) -> String {
    shown(fragment(&Artifacts { job }))
}

/// Takes what notices told into a trail: what comes after its end. Whether it is whole then; else it has to be read.
pub(crate) fn take_in(trail: &mut Vec<TrailEvent>, told: &[Arc<JobNews>]) -> bool {
    for news in told {
        let last = trail.last().map_or(Seq::ZERO, |event| event.seq);
        trail.extend(news.trail.iter().filter(|event| event.seq > last).cloned());
    }
    told.last().is_some_and(|news| trail.len() >= news.before as usize + news.trail.len())
}

/// The trail; `trail` is what is known of it, as far as `at_least`, and whether that is all.
pub(crate) async fn events(
    app: &App,
    signed_in: SignedIn,
    job: JobId,
    (at_least, whole): (Seq, bool),
    trail: &mut Vec<TrailEvent>,
) -> String {
    let read = if whole { Ok(()) } else { read_on(app, signed_in, job, at_least, trail).await };
    shown(read.map_err(Problem::from).and_then(|()| fragment(&Events { trail, now: app.now() })))
}

/// Reads on in the trail.
async fn read_on(
    app: &App,
    signed_in: SignedIn,
    job: JobId,
    at_least: Seq,
    trail: &mut Vec<TrailEvent>,
) -> Result<(), Failure> {
    while trail.len() < MOST_EVENTS {
        let skip = u32::try_from(trail.len()).unwrap_or(u32::MAX);
        let query = TrailQuery { of: TrailOf::Job(job), skip, limit: PAGE, from_end: false };
        let read = app.queries.trail(signed_in.reader(), query, at_least).await?.rows;
        let last = read.len() < PAGE as usize;
        trail.extend(read);
        if last {
            break;
        }
    }
    Ok(())
}

/// A page without its machine's name is better than none.
async fn know_machine(app: &App, signed_in: SignedIn, job: &JobView, known: &mut Option<(Lease, Arc<MachineView>)>) {
    let Some(attempt) = job.attempts.last() else { return };
    if known.as_ref().is_none_or(|(lease, _)| *lease != attempt.lease) {
        let machine = match app.board.machine(attempt.machine) {
            Some(machine) => Some(machine),
            None => app.queries.machine(signed_in.reader(), attempt.machine, Seq::ZERO).await.ok().map(Arc::new),
        };
        *known = machine.map(|machine| (attempt.lease, machine));
    }
}

async fn know_progress(app: &App, own: bool, job: &JobView, progress: &mut Option<Progress>, last: &mut bool) {
    if own && !*last && !job.attempts.is_empty() {
        *progress = output::progress(app, job).await;
        *last = job.ended_at.is_some();
    }
}

async fn waiting(app: &App, signed_in: SignedIn, job: &JobView) -> Option<PlacementExplanation> {
    if job.state != JobState::Queued {
        return None;
    }
    let body = CancelJob { job: job.job };
    // Why it waits is a courtesy: the page says that it waits in any case.
    app.command::<Option<PlacementExplanation>>("job", "explain", signed_in.reader(), &body).await.ok().flatten()
}

pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
    Query(at_least): Query<AtLeast>,
) -> Result<Html<String>, PageError> {
    let job = app.queries.job(signed_in.reader(), job, at_least.seq()).await?;
    let (mut known, mut trail) = (Known::default(), Vec::new());
    let (summary, receipt, events) = tokio::join!(
        summary(&app, signed_in, &job, &mut known),
        receipt(&app, signed_in, &job),
        events(&app, signed_in, job.job, (job.seq, false), &mut trail),
    );
    let fragments = Fragments { summary, events, receipt, artifacts: artifacts(&job) };
    let chrome = Chrome::new(job.spec.name.clone(), "jobs", signed_in.viewer);
    let own = job.account == signed_in.account;
    Ok(html(&JobPage { chrome, job, own, fragments })?)
}

/// Which part of a log.
#[derive(Debug, Deserialize)]
pub(crate) struct Part {
    lease: u64,
    #[serde(default)]
    from: u64,
}

/// `GET /jobs/{id}/log/part`: lines of an attempt, for the page.
pub(crate) async fn log_part(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
    Query(part): Query<Part>,
) -> Result<Html<String>, PageError> {
    let job = app.queries.job(signed_in.actor(), job, Seq::ZERO).await?;
    let lines = log::part(&app, &job, Lease(Seq(part.lease)), part.from).await?;
    Ok(Html(log::lines_html(&lines)))
}

/// What to look for.
#[derive(Debug, Deserialize)]
pub(crate) struct Search {
    text: String,
}

/// `GET /jobs/{id}/log/search`: lines of the whole log, for the page.
pub(crate) async fn log_search(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
    Query(search): Query<Search>,
) -> Result<Html<String>, PageError> {
    let text = search.text.trim();
    if text.is_empty() || text.len() > 200 {
        return Err(Problem::invalid("text", "Look for up to 200 letters.").into());
    }
    let job = app.queries.job(signed_in.actor(), job, Seq::ZERO).await?;
    let (lines, all) = log::search(&app, &job, text).await?;
    let count = match (lines.len(), all) {
        (0, true) => "No line has this in it.".to_owned(),
        (1, true) => "One line.".to_owned(),
        (n, true) => format!("{n} lines."),
        (n, false) => format!("{n} lines so far; not all of the log was searched. Download it to see all."),
    };
    Ok(Html(format!("<p class=\"hint\">{count} A line's number leads to its place.</p>{}", log::lines_html(&lines))))
}

/// `GET /jobs/{id}/metrics.json`: what the job has measured, for the charts.
pub(crate) async fn metrics(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
) -> Result<Response, PageError> {
    let job = app.queries.job(signed_in.actor(), job, Seq::ZERO).await?;
    let points: Vec<String> = log::metrics(&app, &job).await?.iter().map(metrics_json).collect();
    let body = format!("[{}]", points.join(","));
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// `GET /jobs/{id}/trail.jsonl`: every event of the job, in order, one JSON object a line.
pub(crate) async fn trail_lines(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
) -> Result<Response, PageError> {
    let mut trail = Vec::new();
    read_on(&app, signed_in, job, Seq::ZERO, &mut trail).await?;
    let lines: Vec<_> = trail.iter().filter_map(|e| serde_json::to_string(e).ok()).collect();
    let headers = [
        (header::CONTENT_TYPE, "application/jsonl".to_owned()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{job}.jsonl\"")),
    ];
    Ok((headers, lines.join("\n") + "\n").into_response())
}

pub(crate) async fn cancel(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
) -> Result<Response, PageError> {
    let done: Done = app.job_command("cancel", signed_in.reader(), job, &CancelJob { job }).await?;
    Ok(Redirect::to(&format!("/jobs/{job}?seq={}", done.seq)).into_response())
}

/// A progress bar with what the job says, and how long it will take if it goes on like this.
pub(crate) fn progress_bar(progress: &Progress, job: &JobView) -> String {
    let percent = progress.fraction.clamp(0.0, 1.0) * 100.0;
    let message = escape(&progress.message);
    let left = left(progress, job).map(|left| format!(" · about {} left", format::duration(left))).unwrap_or_default();
    format!(
        "<progress value=\"{percent:.1}\" max=\"100\" aria-label=\"Progress\"></progress>\
         <span class=\"percent\">{percent:.0} %</span> <span class=\"hint\">{message}{left}</span>"
    )
}

/// What is left of a run at its pace so far; nothing while too little of it is known.
// Seconds for people: no precision is lost that anybody could see.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
fn left(progress: &Progress, job: &JobView) -> Option<Millis> {
    let started = job.started_at.filter(|_| job.ended_at.is_none())?;
    let (done, ran) = (f64::from(progress.fraction), progress.occurred_at.since(started));
    let known = (0.01..1.0).contains(&done) && ran >= KNOWN_AFTER;
    known.then(|| Millis((ran.0 as f64 * (1.0 - done) / done) as u64 / 1_000 * 1_000))
}

/// Measurements, for the charts of the page.
pub(crate) fn metrics_json(metrics: &JobMetrics) -> String {
    let at = metrics.occurred_at.millis();
    serde_json::json!({ "lease": metrics.lease, "at": at, "values": metrics.values }).to_string()
}
