//! The page of one job, and the addresses that its parts come from.

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

use super::render::{SummaryCache, artifacts, events, metrics_json, read_on, receipt, summary};
use crate::{
    access::SignedIn,
    app::App,
    error::{PageError, Problem},
    extract::{AtLeast, Path, Query},
    live::log,
    page::{Chrome, html},
};

#[derive(Template)]
#[template(path = "job.html")]
struct JobPage {
    chrome: Chrome,
    job: JobView,
    /// True if the job is the viewer's. Nobody else, not even an operator, may see its log and files.
    own: bool,
    fragments: Fragments,
}

/// The parts of the page that change, rendered.
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
    Query(at_least): Query<AtLeast>,
) -> Result<Html<String>, PageError> {
    let job = app.queries.job(signed_in.reader(), job, at_least.seq()).await?;
    let (mut known, mut trail) = (SummaryCache::default(), Vec::new());
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

/// A range of lines of a log.
#[derive(Debug, Deserialize)]
pub(crate) struct LogRange {
    lease: u64,
    #[serde(default)]
    from: u64,
}

/// `GET /jobs/{id}/log/part`: lines of an attempt, for the page.
pub(crate) async fn log_part(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
    Query(range): Query<LogRange>,
) -> Result<Html<String>, PageError> {
    let job = app.queries.job(signed_in.actor(), job, Seq::ZERO).await?;
    let lines = log::part(&app, &job, Lease(Seq(range.lease)), range.from).await?;
    Ok(Html(log::lines_html(&lines)))
}

/// A search through a log.
#[derive(Debug, Deserialize)]
pub(crate) struct Search {
    text: String,
}

/// `GET /jobs/{id}/log/search`: the lines of the whole log that contain a text, for the page.
pub(crate) async fn log_search(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
    Query(search): Query<Search>,
) -> Result<Html<String>, PageError> {
    let text = search.text.trim();
    if text.is_empty() || text.len() > 200 {
        return Err(Problem::invalid("text", "Search for a text of up to 200 letters.").into());
    }
    let job = app.queries.job(signed_in.actor(), job, Seq::ZERO).await?;
    let (lines, all) = log::search(&app, &job, text).await?;
    let count = match (lines.len(), all) {
        (0, true) => "No line contains this text.".to_owned(),
        (1, true) => "One line.".to_owned(),
        (n, true) => format!("{n} lines."),
        (n, false) => format!("The first {n} lines that were found. Download the log to search all of it."),
    };
    Ok(Html(format!("<p class=\"hint\">{count} Click a line's number to go there.</p>{}", log::lines_html(&lines))))
}

/// `GET /jobs/{id}/metrics.json`: the job's measurements, for the charts.
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
