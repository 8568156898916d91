//! `/api/v1/jobs`: submitting, reading and cancelling jobs; the trail (the job's events), the log, the receipt and the
//! files of a job.

use axum::{
    Json,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::Stream;
use gpubnb_events::{
    JobId, Lease, MachineId, Seq, Timestamp,
    command::{CancelJob, Done, ExplainJob, Quote},
    job_request::JobRequest,
    output::{LogLine, LogStream, Progress},
    signed_log::SignedLog,
    spec::{Artifact, PlacementExplanation},
};
use gpubnb_query::{
    request::{JobsQuery, TrailOf, TrailQuery},
    view::{JobState, JobView, Page, Receipt, TrailEvent},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::idempotency_key;
use crate::{
    access::SignedIn,
    app::App,
    error::{ApiError, Problem},
    extract::{JsonBody, MinSeq, Path, Query},
    live::output::{self, OutputCursor, OutputItem},
    submission::Submission,
};

/// A job as the read model shows it, with two things that the read model does not contain: the job's progress, and the
/// reason why it waits.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct JobDetails {
    /// `Queued`, `Assigned`, `Accepted`, `Running`, `Completed`, `Failed`, `Cancelled`, or `Settled` after the bill.
    status: &'static str,
    /// The state of the job in a sentence.
    summary: String,
    #[serde(flatten)]
    row: JobView,
    progress: Option<Progress>,
    /// Why a queued job waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting: Option<PlacementExplanation>,
}

/// `POST /api/v1/jobs`: submits a job.
pub(crate) async fn submit(
    State(app): State<App>,
    signed_in: SignedIn,
    headers: HeaderMap,
    JsonBody(request): JsonBody<JobRequest>,
) -> Result<Response, ApiError> {
    let request = JobRequest { job: idempotency_key(&headers, request.job)?, ..request };
    let submission = Submission::prepare(&app, signed_in.account, request, JobId::generate()).await?;
    let submitted = submission.submit(&app, signed_in.actor()).await?;
    let location = format!("/api/v1/jobs/{}", submitted.job);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(submitted)).into_response())
}

/// Answer of `POST /api/v1/quote`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct QuotedJob {
    #[serde(flatten)]
    quote: Quote,
    /// The image that the job would run. An image that the request names by a tag has its digest here.
    image: String,
}

/// `POST /api/v1/quote`: the price of a job, without submitting it.
pub(crate) async fn quote(
    State(app): State<App>,
    signed_in: SignedIn,
    JsonBody(request): JsonBody<JobRequest>,
) -> Result<Json<QuotedJob>, ApiError> {
    let submission = Submission::prepare(&app, signed_in.account, request, JobId::generate()).await?;
    let quote = submission.quote(&app, signed_in.actor()).await?;
    Ok(Json(QuotedJob { quote, image: submission.image().to_owned() }))
}

/// Query parameters of `GET /api/v1/jobs`.
#[derive(Debug, Default, Deserialize, IntoParams)]
pub(crate) struct JobFilters {
    /// The state of the jobs.
    #[serde(default)]
    state: Option<JobState>,
    /// A part of the jobs' name, image or id.
    #[serde(default)]
    text: Option<String>,
    /// The `next` of the previous page.
    #[serde(default)]
    cursor: Option<String>,
    /// The most rows.
    #[serde(default)]
    limit: Option<u32>,
    /// The sequence of your last command, which the answer must include.
    #[serde(default)]
    min_seq: u64,
}

/// `GET /api/v1/jobs`: a page of the caller's jobs, newest first.
pub(crate) async fn list(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(filters): Query<JobFilters>,
) -> Result<Json<Page<JobView>>, ApiError> {
    if filters.cursor.as_deref().is_some_and(|cursor| cursor.parse::<JobId>().is_err()) {
        return Err(Problem::invalid("cursor", "This is not the `next` of an earlier answer.").into());
    }
    let query = JobsQuery {
        account: Some(signed_in.account),
        machine: None,
        state: filters.state,
        text: filters.text,
        cursor: filters.cursor,
        limit: filters.limit,
    };
    Ok(Json(app.queries.jobs(signed_in.actor(), query, Seq(filters.min_seq)).await?))
}

/// `GET /api/v1/jobs/{id}`: one job.
pub(crate) async fn get(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
    Query(min_seq): Query<MinSeq>,
) -> Result<Json<JobDetails>, ApiError> {
    let row = app.queries.job(signed_in.actor(), job, min_seq.seq()).await?;
    let progress = output::progress(&app, &row).await;
    // The request to explain has the same body as a request to cancel. Nothing is cancelled.
    let waiting = match row.state {
        JobState::Queued => app.command("job", "explain", signed_in.actor(), &ExplainJob { job }).await.unwrap_or(None),
        _ => None,
    };
    Ok(Json(JobDetails { status: row.state_name(), summary: crate::format::job_state(&row), row, progress, waiting }))
}

/// `POST /api/v1/jobs/{id}/cancel`: asks a job to stop.
pub(crate) async fn cancel(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
) -> Result<Json<Done>, ApiError> {
    Ok(Json(app.job_command("cancel", signed_in.actor(), job, &CancelJob { job }).await?))
}

/// `GET /api/v1/jobs/{id}/receipt`: the receipt of a settled job.
pub(crate) async fn receipt(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
    Query(min_seq): Query<MinSeq>,
) -> Result<Json<Receipt>, ApiError> {
    let receipt = app.queries.receipt(signed_in.actor(), job, min_seq.seq()).await?;
    let not_yet = || Problem::new(StatusCode::NOT_FOUND, "NotSettled", "The job is not settled yet.");
    Ok(Json(receipt.ok_or_else(not_yet)?))
}

/// `GET /api/v1/jobs/{id}/artifacts`: the list of the job's output files.
pub(crate) async fn artifacts(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
) -> Result<Json<Vec<Artifact>>, ApiError> {
    Ok(Json(app.queries.job(signed_in.actor(), job, Seq::ZERO).await?.outputs))
}

/// The signed list of a job's output files (see `docs/jobs.md`, "Files").
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Manifest {
    /// The job.
    job: JobId,
    /// The lease of the attempt that wrote the files.
    lease: Lease,
    /// The machine on which the attempt ran.
    machine: MachineId,
    /// All public keys that the machine has used (NKeys, base32). One of them verifies the signature.
    public_keys: Vec<String>,
    /// The files, in the order in which they are signed.
    outputs: Vec<Artifact>,
    /// The Ed25519 signature, in base64url without padding.
    signature: String,
    /// The log of the attempt, with a signature of its own. An older worker signs no log.
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<SignedLog>,
}

/// `GET /api/v1/jobs/{id}/manifest`: the signed list of the job's output files.
pub(crate) async fn manifest(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
) -> Result<Json<Manifest>, ApiError> {
    let row = app.queries.job(signed_in.actor(), job, Seq::ZERO).await?;
    let not_signed =
        || Problem::new(StatusCode::NOT_FOUND, "NotSigned", "The job has no signed list of files, or not yet.");
    let (attempt, signature) = row.attempt().zip(row.signature.clone()).ok_or_else(not_signed)?;
    let (lease, machine) = (attempt.lease, attempt.machine);
    let public_keys = app.queries.machine(signed_in.actor(), machine, Seq::ZERO).await?.listed.public_keys;
    Ok(Json(Manifest { job, lease, machine, public_keys, outputs: row.outputs, signature, log: row.log }))
}

/// Query parameters that choose a page of a trail.
#[derive(Debug, Default, Deserialize, IntoParams)]
pub(crate) struct TrailPage {
    /// The `next` of the previous page: the number of events to skip.
    #[serde(default)]
    cursor: u32,
    /// The most rows.
    #[serde(default)]
    limit: Option<u32>,
    /// The sequence of your last command, which the answer must include.
    #[serde(default)]
    min_seq: u64,
}

impl TrailPage {
    pub(crate) fn seq(&self) -> Seq {
        Seq(self.min_seq)
    }

    pub(crate) fn query(&self, of: TrailOf) -> TrailQuery {
        TrailQuery { of, skip: self.cursor, limit: self.limit.unwrap_or(200), from_end: false }
    }
}

/// `GET /api/v1/jobs/{id}/events`: a page of the job's trail.
pub(crate) async fn events(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
    Query(page): Query<TrailPage>,
) -> Result<Json<Page<TrailEvent>>, ApiError> {
    Ok(Json(app.queries.trail(signed_in.actor(), page.query(TrailOf::Job(job)), page.seq()).await?))
}

/// Query parameters that choose a page of a log.
#[derive(Debug, Default, Deserialize, IntoParams)]
pub(crate) struct LogPage {
    /// The `next` of the previous page.
    #[serde(default)]
    cursor: Option<String>,
    /// The approximate number of lines. The lines of one worker's message stay together.
    #[serde(default)]
    limit: Option<usize>,
}

/// A line of a log.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct JobLogLine {
    /// Lease of the attempt that wrote the line.
    lease: Lease,
    /// Number of the line within the attempt, from 0.
    number: u64,
    at: Timestamp,
    stream: LogStream,
    text: String,
    /// The number of bytes at the end of the line that are left out, because the line is too long.
    #[serde(skip_serializing_if = "Option::is_none")]
    cut: Option<u64>,
}

impl JobLogLine {
    pub(crate) fn new(lease: Lease, number: u64, line: LogLine) -> Self {
        let cut = Some(line.cut).filter(|bytes| *bytes > 0);
        Self { lease, number, at: line.at, stream: line.stream, text: line.text, cut }
    }
}

/// The maximum number of lines in one answer.
const MAX_LINES: usize = 10_000;

/// `GET /api/v1/jobs/{id}/logs`: a page of the job's log.
pub(crate) async fn logs(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
    Query(page): Query<LogPage>,
) -> Result<Json<Page<JobLogLine>>, ApiError> {
    let row = app.queries.job(signed_in.actor(), job, Seq::ZERO).await?;
    let max_lines = page.limit.unwrap_or(MAX_LINES).clamp(1, MAX_LINES);
    let cursor =
        page.cursor.as_deref().map(str::parse).transpose().map_err(|e: String| Problem::invalid("cursor", e))?;
    let (items, next) = output::read_page(&app, &row, cursor.unwrap_or(OutputCursor::START), max_lines).await?;
    let line = |item| match item {
        OutputItem::Line(lease, number, line) => Some(JobLogLine::new(lease, number, line)),
        _ => None,
    };
    Ok(Json(Page { rows: items.into_iter().filter_map(line).collect(), next: next.map(|next| next.to_string()) }))
}

/// `GET /jobs/{id}/log.txt`: the whole log as a text file to download.
pub(crate) async fn log_text(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
) -> Result<Response, ApiError> {
    let row = app.queries.job(signed_in.actor(), job, Seq::ZERO).await?;
    let text = async_stream::try_stream! {
        let mut from = OutputCursor::START;
        loop {
            let (items, next) = output::read_page(&app, &row, from, MAX_LINES)
                .await
                .map_err(|p| std::io::Error::other(p.detail))?;
            for item in items {
                if let OutputItem::Line(_, _, line) = item {
                    yield Bytes::from(format!("{} {}{}\n", line.at, line.text, line.cut_mark()));
                }
            }
            match next {
                Some(next) => from = next,
                None => break,
            }
        }
    };
    let text: std::pin::Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>> = Box::pin(text);
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8".to_owned()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{job}.log\"")),
    ];
    Ok((headers, Body::from_stream(text)).into_response())
}
