//! `/api/v1/jobs`: submit, look, cancel; trail, log, receipt and files.

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
    command::{CancelJob, Done, Quote, Submitted},
    job_request::JobRequest,
    output::{LogLine, LogStream, Progress},
    spec::{Artifact, PlacementExplanation},
};
use gpubnb_query::{
    request::{JobsQuery, TrailOf, TrailQuery},
    view::{JobState, JobView, Page, Receipt, TrailEvent},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    access::SignedIn,
    app::App,
    error::{ApiError, Problem},
    extract::{AtLeast, JsonBody, Path, Query},
    live::output::{self, Said},
    transfer,
};

/// A job, with what is not in the read model: its progress and why it waits.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct JobDetails {
    /// `Queued`, `Assigned`, `Accepted`, `Running`, `Completed`, `Failed`, `Cancelled`, and `Settled` once paid.
    status: &'static str,
    /// The state of the job in a sentence.
    summary: String,
    #[serde(flatten)]
    row: JobView,
    progress: Option<Progress>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting: Option<PlacementExplanation>,
}

/// `POST /api/v1/jobs`.
pub(crate) async fn submit(
    State(app): State<App>,
    signed_in: SignedIn,
    headers: HeaderMap,
    JsonBody(request): JsonBody<JobRequest>,
) -> Result<Response, ApiError> {
    // The standard header may carry the id as well as the body.
    let key = headers.get("idempotency-key").map(|v| v.to_str().unwrap_or_default().parse::<JobId>());
    let key = key.transpose().map_err(|e| Problem::invalid("idempotency-key", e.to_string()))?;
    let inputs = transfer::describe(&app, signed_in.account, &request.inputs).await?;
    let command = request.into_command(key.unwrap_or_else(JobId::generate), inputs).map_err(Problem::from)?;
    let submitted: Submitted = app.job_command("submit", signed_in.actor(), command.job, &command).await?;
    let location = format!("/api/v1/jobs/{}", submitted.job);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(submitted)).into_response())
}

/// `POST /api/v1/quote`.
pub(crate) async fn quote(
    State(app): State<App>,
    signed_in: SignedIn,
    JsonBody(request): JsonBody<JobRequest>,
) -> Result<Json<Quote>, ApiError> {
    let inputs = transfer::describe(&app, signed_in.account, &request.inputs).await?;
    let command = request.into_command(JobId::generate(), inputs).map_err(Problem::from)?;
    Ok(Json(app.command("market", "quote", signed_in.actor(), &command).await?))
}

/// Filters of `GET /api/v1/jobs`.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Filters {
    #[serde(default)]
    state: Option<JobState>,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    cursor: Option<String>,
    #[serde(default)]
    limit: Option<u32>,
    #[serde(default)]
    min_seq: u64,
}

pub(crate) async fn list(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(filters): Query<Filters>,
) -> Result<Json<Page<JobView>>, ApiError> {
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

pub(crate) async fn get(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
    Query(at_least): Query<AtLeast>,
) -> Result<Json<JobDetails>, ApiError> {
    let row = app.queries.job(signed_in.actor(), job, at_least.seq()).await?;
    let progress = output::progress(&app, &row).await;
    let waiting = match row.state {
        JobState::Queued => app.command("job", "explain", signed_in.actor(), &CancelJob { job }).await.unwrap_or(None),
        _ => None,
    };
    Ok(Json(JobDetails { status: row.state_name(), summary: crate::format::job_state(&row), row, progress, waiting }))
}

pub(crate) async fn cancel(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
) -> Result<Json<Done>, ApiError> {
    Ok(Json(app.job_command("cancel", signed_in.actor(), job, &CancelJob { job }).await?))
}

pub(crate) async fn receipt(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
    Query(at_least): Query<AtLeast>,
) -> Result<Json<Receipt>, ApiError> {
    let receipt = app.queries.receipt(signed_in.actor(), job, at_least.seq()).await?;
    let not_yet = || Problem::new(StatusCode::NOT_FOUND, "NotSettled", "The job is not settled yet.");
    Ok(Json(receipt.ok_or_else(not_yet)?))
}

pub(crate) async fn artifacts(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
) -> Result<Json<Vec<Artifact>>, ApiError> {
    Ok(Json(app.queries.job(signed_in.actor(), job, Seq::ZERO).await?.outputs))
}

/// The signed list of the files that a job left: see `docs/jobs.md`, "Files".
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Manifest {
    /// The job.
    job: JobId,
    /// The attempt that left them.
    lease: Lease,
    /// Where it ran.
    machine: MachineId,
    /// The public keys that the machine has had (NKeys, base32); one of them has signed.
    public_keys: Vec<String>,
    /// The files, in the order that is signed.
    outputs: Vec<Artifact>,
    /// The signature (Ed25519), base64url without padding.
    signature: String,
}

pub(crate) async fn manifest(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
) -> Result<Json<Manifest>, ApiError> {
    let row = app.queries.job(signed_in.actor(), job, Seq::ZERO).await?;
    let not_signed =
        || Problem::new(StatusCode::NOT_FOUND, "NotSigned", "The job has left nothing that is signed, or not yet.");
    let (attempt, signature) = row.attempt().zip(row.signature.clone()).ok_or_else(not_signed)?;
    let (lease, machine) = (attempt.lease, attempt.machine);
    let public_keys = app.queries.machine(signed_in.actor(), machine, Seq::ZERO).await?.listed.public_keys;
    Ok(Json(Manifest { job, lease, machine, public_keys, outputs: row.outputs, signature }))
}

impl Part {
    pub(crate) fn seq(&self) -> Seq {
        Seq(self.min_seq)
    }

    pub(crate) fn of(&self, of: TrailOf) -> TrailQuery {
        TrailQuery { of, skip: self.cursor, limit: self.limit.unwrap_or(200), from_end: false }
    }
}

/// Part of a trail.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Part {
    #[serde(default)]
    cursor: u32,
    #[serde(default)]
    limit: Option<u32>,
    #[serde(default)]
    min_seq: u64,
}

pub(crate) async fn events(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
    Query(part): Query<Part>,
) -> Result<Json<Page<TrailEvent>>, ApiError> {
    Ok(Json(app.queries.trail(signed_in.actor(), part.of(TrailOf::Job(job)), part.seq()).await?))
}

/// Where to read on in a log.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct LogPart {
    #[serde(default)]
    cursor: Option<u64>,
    /// About how many lines: messages of the worker are not parted.
    #[serde(default)]
    limit: Option<usize>,
}

impl Line {
    pub(crate) fn new(lease: Lease, number: u64, line: LogLine) -> Self {
        Self { lease, number, at: line.at, stream: line.stream, text: line.text }
    }
}

/// A line of a log.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Line {
    lease: Lease,
    number: u64,
    at: Timestamp,
    stream: LogStream,
    text: String,
}

/// Most lines in one answer.
const LINES: usize = 10_000;

pub(crate) async fn logs(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
    Query(part): Query<LogPart>,
) -> Result<Json<Page<Line>>, ApiError> {
    let row = app.queries.job(signed_in.actor(), job, Seq::ZERO).await?;
    let most = part.limit.unwrap_or(LINES).clamp(1, LINES);
    let (said, next) = output::so_far(&app, &row, part.cursor.unwrap_or(1), most).await?;
    let line = |said| match said {
        Said::Line(lease, number, line) => Some(Line::new(lease, number, line)),
        _ => None,
    };
    Ok(Json(Page { rows: said.into_iter().filter_map(line).collect(), next: next.map(|seq| seq.to_string()) }))
}

/// `GET /jobs/{id}/log.txt`: the log as text, to keep.
pub(crate) async fn log_text(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
) -> Result<Response, ApiError> {
    let row = app.queries.job(signed_in.actor(), job, Seq::ZERO).await?;
    let events = async_stream::try_stream! {
        let mut from = 1;
        loop {
            let (said, next) = output::so_far(&app, &row, from, LINES)
                .await
                .map_err(|p| std::io::Error::other(p.detail))?;
            for said in said {
                if let Said::Line(_, _, line) = said {
                    yield Bytes::from(format!("{} {}\n", line.at, line.text));
                }
            }
            match next {
                Some(next) => from = next,
                None => break,
            }
        }
    };
    let events: std::pin::Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>> = Box::pin(events);
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8".to_owned()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{job}.log\"")),
    ];
    Ok((headers, Body::from_stream(events)).into_response())
}
