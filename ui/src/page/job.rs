//! One job: summary first, then log, files, receipt and events, all live.

use std::fmt::Write as _;

use askama::Template;
use axum::{
    extract::State,
    response::{Html, IntoResponse, Redirect, Response},
};
use gpubnb_events::{
    JobId, Lease, Seq, Timestamp,
    command::{CancelJob, Done},
    output::{JobMetrics, LogLine, LogStream, Progress},
    rpc::Failure,
    spec::PlacementExplanation,
};
use gpubnb_projector::{
    client::{TrailOf, TrailQuery},
    view::{JobRow, JobState, MachineView, Receipt, TrailEvent},
};

use super::{Chrome, fragment, html};
use crate::{
    access::SignedIn,
    app::App,
    error::{PageError, Problem},
    extract::{AtLeast, Path, Query},
    live::output,
};

#[derive(Template)]
#[template(path = "job.html")]
struct JobPage {
    chrome: Chrome,
    job: JobRow,
    fragments: Fragments,
}

#[derive(Template)]
#[template(path = "job_summary.html")]
struct Summary<'a> {
    job: &'a JobRow,
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

    fn raw(&self, event: &TrailEvent) -> String {
        serde_json::to_string_pretty(&event.body).unwrap_or_default()
    }
}

#[derive(Template)]
#[template(path = "job_receipt.html")]
struct ReceiptCard<'a> {
    job: &'a JobRow,
    receipt: Option<&'a Receipt>,
}

#[derive(Template)]
#[template(path = "job_artifacts.html")]
struct Artifacts<'a> {
    job: &'a JobRow,
}

impl Artifacts<'_> {
    fn is_picture(&self, path: &str) -> bool {
        let ending = path.rsplit('.').next().unwrap_or_default().to_lowercase();
        matches!(ending.as_str(), "png" | "jpg" | "jpeg" | "gif" | "webp")
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
    machine: Option<(Lease, MachineView)>,
    progress: Option<Progress>,
    /// The job has ended, and this was its last progress.
    last: bool,
}

/// Events asked for at once.
const PAGE: u32 = 200;
/// Most events on the page.
const MOST_EVENTS: usize = 2_000;

/// A part that cannot be read now says so.
fn shown(part: Result<String, Problem>) -> String {
    part.unwrap_or_else(|p| format!("<p class=\"hint\">{}</p>", escape(&p.detail)))
}

/// Where the job is, what it costs, and why it waits.
pub(crate) async fn summary(app: &App, signed_in: SignedIn, job: &JobRow, known: &mut Known) -> String {
    let ((), (), waiting) = tokio::join!(
        know_machine(app, signed_in, job, &mut known.machine),
        know_progress(app, job, &mut known.progress, &mut known.last),
        waiting(app, signed_in, job),
    );
    let machine = known.machine.as_ref().map(|(_, machine)| machine);
    let progress = known.progress.as_ref().map(progress_bar).unwrap_or_default();
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
pub(crate) async fn receipt(app: &App, signed_in: SignedIn, job: &JobRow) -> String {
    let receipt = if job.settled { app.queries.receipt(signed_in.actor(), job.job, job.seq).await } else { Ok(None) };
    let card = |receipt: Option<Receipt>| fragment(&ReceiptCard { job, receipt: receipt.as_ref() });
    shown(receipt.map_err(Problem::from).and_then(card))
}

/// The files.
pub(crate) fn artifacts(job: &JobRow) -> String {
    shown(fragment(&Artifacts { job }))
}

/// The trail; `trail` is what was read of it before.
pub(crate) async fn events(
    app: &App,
    signed_in: SignedIn,
    job: JobId,
    at_least: Seq,
    trail: &mut Vec<TrailEvent>,
) -> String {
    let read = read_on(app, signed_in, job, at_least, trail).await;
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
        let query = TrailQuery { of: TrailOf::Job(job), skip, limit: PAGE };
        let read = app.queries.trail(signed_in.actor(), query, at_least).await?.rows;
        let last = read.len() < PAGE as usize;
        trail.extend(read);
        if last {
            break;
        }
    }
    Ok(())
}

/// A page without its machine's name is better than none.
async fn know_machine(app: &App, signed_in: SignedIn, job: &JobRow, known: &mut Option<(Lease, MachineView)>) {
    let Some(attempt) = job.attempts.last() else { return };
    if known.as_ref().is_none_or(|(lease, _)| *lease != attempt.lease) {
        let machine = app.queries.machine(signed_in.actor(), attempt.machine, Seq::ZERO).await.ok();
        *known = machine.map(|machine| (attempt.lease, machine));
    }
}

async fn know_progress(app: &App, job: &JobRow, progress: &mut Option<Progress>, last: &mut bool) {
    if !*last && !job.attempts.is_empty() {
        *progress = output::progress(app, job).await;
        *last = job.ended_at.is_some();
    }
}

async fn waiting(app: &App, signed_in: SignedIn, job: &JobRow) -> Option<PlacementExplanation> {
    if job.state != JobState::Queued {
        return None;
    }
    let body = CancelJob { job: job.job };
    // Why it waits is a courtesy: the page says that it waits in any case.
    app.command::<Option<PlacementExplanation>>("job", "explain", signed_in.actor(), &body).await.ok().flatten()
}

pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
    Query(at_least): Query<AtLeast>,
) -> Result<Html<String>, PageError> {
    let job = app.queries.job(signed_in.actor(), job, at_least.seq()).await?;
    let (mut known, mut trail) = (Known::default(), Vec::new());
    let (summary, receipt, events) = tokio::join!(
        summary(&app, signed_in, &job, &mut known),
        receipt(&app, signed_in, &job),
        events(&app, signed_in, job.job, job.seq, &mut trail),
    );
    let fragments = Fragments { summary, events, receipt, artifacts: artifacts(&job) };
    let chrome = Chrome::new(job.spec.name.clone(), "jobs", signed_in.viewer);
    Ok(html(&JobPage { chrome, job, fragments })?)
}

pub(crate) async fn cancel(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
) -> Result<Response, PageError> {
    let done: Done = app.command("job", "cancel", signed_in.actor(), &CancelJob { job }).await?;
    Ok(Redirect::to(&format!("/jobs/{job}?seq={}", done.seq)).into_response())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A progress bar with what the job says.
pub(crate) fn progress_bar(progress: &Progress) -> String {
    let percent = progress.fraction.clamp(0.0, 1.0) * 100.0;
    let message = escape(&progress.message);
    format!(
        "<progress value=\"{percent:.1}\" max=\"100\" aria-label=\"Progress\"></progress>\
         <span class=\"percent\">{percent:.0} %</span> <span class=\"hint\">{message}</span>"
    )
}

/// The newest measurements.
pub(crate) fn metrics_line(metrics: &JobMetrics) -> String {
    metrics.values.iter().fold(String::new(), |mut html, (name, value)| {
        // Writing to a String cannot fail.
        let _ = write!(html, "<span class=\"metric\"><b>{}</b> {}</span> ", escape(name), short(*value));
        html
    })
}

/// A number with as many decimals as it needs, four at most.
fn short(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Lines of the log as HTML. A job's text is hostile: escaped, its control characters made visible.
pub(crate) fn log_lines(lines: &[(Lease, u64, LogLine)]) -> String {
    lines.iter().fold(String::new(), |mut html, (lease, number, line)| {
        let text: String =
            line.text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect();
        let class = if line.stream == LogStream::Stderr { "line err" } else { "line" };
        let at = line.at.to_string();
        let clock = at.get(11..23).unwrap_or_default();
        let _ = write!(
            html,
            "<div class=\"{class}\" id=\"L{lease}-{number}\"><span class=\"at\">{clock}</span><code>{}</code></div>",
            escape(&text)
        );
        html
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_cannot_write_html_into_its_log() {
        let line = LogLine {
            stream: LogStream::Stdout,
            at: Timestamp::EPOCH,
            text: "<script>alert(1)</script>\u{1b}[31m & \"".to_owned(),
        };
        let html = log_lines(&[(Lease(Seq(1)), 0, line)]);
        assert!(!html.contains("<script>") && !html.contains('\u{1b}'), "{html}");
        assert!(html.contains("&lt;script&gt;") && html.contains("&amp; &quot;"));
    }
}
