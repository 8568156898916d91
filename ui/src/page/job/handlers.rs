//! The handlers of the job page: the page itself, the endpoints that its scripts call, and the button to cancel.

use askama::Template;
use axum::{
    extract::State,
    http::header,
    response::{Html, IntoResponse, Redirect, Response},
};
use gpubnb_events::{
    JobId, Lease, Seq,
    command::{CancelJob, Done},
};
use gpubnb_query::view::JobView;
use serde::Deserialize;

use super::render::{
    SummaryCache, metrics_json, read_trail, render_artifacts, render_receipt, render_summary, render_trail,
};
use crate::{
    access::SignedIn,
    app::App,
    error::{PageError, Problem},
    extract::{MinSeq, Origin, Path, Query},
    live::log,
    page::{Layout, render_page},
    snippets,
};

#[derive(Template)]
#[template(path = "job.html")]
struct JobPage {
    layout: Layout,
    job: JobView,
    /// True if the job is the viewer's. Nobody else, not even an operator, may see its log, metrics and files.
    is_own: bool,
    fragments: Fragments,
    /// The same job as a command and as programs; empty for a job of another account.
    snippets: String,
}

/// The HTML of the parts that live updates replace.
struct Fragments {
    summary: String,
    events: String,
    receipt: String,
    artifacts: String,
}

pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
    Query(min_seq): Query<MinSeq>,
    Origin(market): Origin,
) -> Result<Html<String>, PageError> {
    let job = app.queries.job(signed_in.reading_actor(), job, min_seq.seq()).await?;
    let (mut cache, mut trail) = (SummaryCache::default(), Vec::new());
    let (summary, receipt, events) = tokio::join!(
        render_summary(&app, signed_in, &job, &mut cache),
        render_receipt(&app, signed_in, &job),
        render_trail(&app, signed_in, job.job, (job.seq, false), &mut trail),
    );
    let fragments = Fragments { summary, events, receipt, artifacts: render_artifacts(&job) };
    let layout = Layout::new(job.spec.name.clone(), "jobs", signed_in.viewer);
    let is_own = job.account == signed_in.account;
    let snippets = if is_own {
        snippets::html(app.request_again(&job.spec, &job.placement, &job.limits), &market)?
    } else {
        String::new()
    };
    Ok(render_page(&JobPage { layout, job, is_own, fragments, snippets })?)
}

/// The range of lines to load, as query parameters.
#[derive(Debug, Deserialize)]
pub(crate) struct LogRange {
    /// The lease of the attempt that wrote the lines.
    lease: u64,
    /// The number of the first line within the attempt, counted from 0.
    #[serde(default)]
    from: u64,
}

/// `GET /jobs/{job}/log/part`: lines of one attempt, as HTML.
pub(crate) async fn log_part(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
    Query(range): Query<LogRange>,
) -> Result<Html<String>, PageError> {
    let job = app.queries.job(signed_in.actor(), job, Seq::ZERO).await?;
    let lines = log::lines(&app, &job, Lease(Seq(range.lease)), range.from).await?;
    Ok(Html(log::lines_html(&lines)))
}

#[derive(Debug, Deserialize)]
pub(crate) struct LogSearch {
    text: String,
}

/// `GET /jobs/{job}/log/search`: the lines of the whole log that contain a text, as HTML.
pub(crate) async fn log_search(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
    Query(search): Query<LogSearch>,
) -> Result<Html<String>, PageError> {
    let text = search.text.trim();
    if text.is_empty() || text.len() > 200 {
        return Err(Problem::invalid("text", "Search for a text of 1 to 200 bytes.").into());
    }
    let job = app.queries.job(signed_in.actor(), job, Seq::ZERO).await?;
    let (lines, is_complete) = log::search(&app, &job, text).await?;
    let count = match (lines.len(), is_complete) {
        (0, true) => "No line contains this text.".to_owned(),
        (1, true) => "One line.".to_owned(),
        (n, true) => format!("{n} lines."),
        (n, false) => format!("The first {n} matching lines. Download the log to search all of it."),
    };
    Ok(Html(format!(
        "<p class=\"hint\">{count} Click a line number to open the line in the log.</p>{}",
        log::lines_html(&lines)
    )))
}

/// `GET /jobs/{job}/metrics.json`: the job's measurements for the charts, as a JSON array.
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

/// `GET /jobs/{job}/trail.jsonl`: the job's first 2,000 events in order, one JSON object per line.
pub(crate) async fn trail_lines(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
) -> Result<Response, PageError> {
    let mut trail = Vec::new();
    read_trail(&app, signed_in, job, Seq::ZERO, &mut trail).await?;
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
    let done: Done = app.job_command("cancel", signed_in.reading_actor(), job, &CancelJob { job }).await?;
    Ok(Redirect::to(&format!("/jobs/{job}?seq={}", done.seq)).into_response())
}
