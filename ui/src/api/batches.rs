//! `/api/v1/batches`: submitting, reading and cancelling batches, their tasks, and the table of their results.

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use gpubnb_events::{
    BatchId, Seq,
    batch_request::BatchRequest,
    command::{BatchQuote, Done, SubmittedBatch},
};
use gpubnb_query::{
    request::{BatchesQuery, TaskOrder, TasksQuery, TrailOf},
    view::{BatchView, JobState, Page, TaskView, TrailEvent},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{idempotency_key, jobs::TrailPage};
use crate::{
    access::SignedIn,
    app::App,
    batches::{self, BatchSubmission},
    error::{ApiError, Problem},
    extract::{JsonBody, MinSeq, Path, Query},
};

/// A batch as the read model shows it, with its state in a word.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BatchDetails {
    /// `Waiting`, `Running`, `Stopping`, `Finished`, `Finished with failures`, `Cancelled` or `Stopped`.
    status: &'static str,
    #[serde(flatten)]
    row: BatchView,
}

impl From<BatchView> for BatchDetails {
    fn from(row: BatchView) -> Self {
        Self { status: row.state_name(), row }
    }
}

/// `POST /api/v1/batches`: submits a batch.
pub(crate) async fn submit(
    State(app): State<App>,
    signed_in: SignedIn,
    headers: HeaderMap,
    JsonBody(request): JsonBody<BatchRequest>,
) -> Result<Response, ApiError> {
    let request = BatchRequest { batch: idempotency_key(&headers, request.batch)?, ..request };
    let submission = BatchSubmission::prepare(&app, signed_in.account, request).await?;
    let submitted: SubmittedBatch = submission.submit(&app, signed_in.actor()).await?;
    let location = format!("/api/v1/batches/{}", submitted.batch);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(submitted)).into_response())
}

/// Answer of `POST /api/v1/batches/quote`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct QuotedBatch {
    #[serde(flatten)]
    quote: BatchQuote,
    /// The image that the tasks would run. An image that the request names by a tag has its digest here.
    image: String,
}

/// `POST /api/v1/batches/quote`: the price of a batch, without submitting it.
pub(crate) async fn quote(
    State(app): State<App>,
    signed_in: SignedIn,
    JsonBody(request): JsonBody<BatchRequest>,
) -> Result<Json<QuotedBatch>, ApiError> {
    let submission = BatchSubmission::prepare(&app, signed_in.account, request).await?;
    let quote = submission.quote(&app, signed_in.actor()).await?;
    Ok(Json(QuotedBatch { quote, image: submission.image().to_owned() }))
}

/// Query parameters of `GET /api/v1/batches`.
#[derive(Debug, Default, Deserialize, IntoParams)]
pub(crate) struct BatchPage {
    /// The `next` of the previous page.
    #[serde(default)]
    cursor: Option<String>,
    /// The most rows, at most 50.
    #[serde(default)]
    limit: Option<u32>,
    /// The sequence of your last command, which the answer must include.
    #[serde(default)]
    min_seq: u64,
}

/// `GET /api/v1/batches`: a page of the caller's batches, newest first.
pub(crate) async fn list(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(page): Query<BatchPage>,
) -> Result<Json<Page<BatchDetails>>, ApiError> {
    if page.cursor.as_deref().is_some_and(|cursor| cursor.parse::<BatchId>().is_err()) {
        return Err(Problem::invalid("cursor", "This is not the `next` of an earlier answer.").into());
    }
    let query = BatchesQuery { account: signed_in.account, cursor: page.cursor, limit: page.limit.unwrap_or(u32::MAX) };
    let found = app.queries.batches(signed_in.actor(), query, Seq(page.min_seq)).await?;
    Ok(Json(Page { rows: found.rows.into_iter().map(Into::into).collect(), next: found.next }))
}

/// `GET /api/v1/batches/{batch}`: one batch.
pub(crate) async fn get(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(batch): Path<BatchId>,
    Query(min_seq): Query<MinSeq>,
) -> Result<Json<BatchDetails>, ApiError> {
    Ok(Json(app.queries.batch(signed_in.actor(), batch, min_seq.seq()).await?.into()))
}

/// Query parameters that choose tasks of a batch.
#[derive(Debug, Default, Deserialize, IntoParams)]
pub(crate) struct TaskPage {
    /// The state of the tasks. `Running` also has the tasks that a machine prepares, and those whose files it uploads.
    #[serde(default)]
    state: Option<JobState>,
    /// The order: by number, or the failed tasks first.
    #[serde(default)]
    #[param(inline)]
    order: TaskOrder,
    /// The `next` of the previous page: the number of tasks to skip.
    #[serde(default)]
    cursor: u32,
    /// The most rows, at most 200.
    #[serde(default)]
    limit: Option<u32>,
    /// The sequence of your last command, which the answer must include.
    #[serde(default)]
    min_seq: u64,
}

/// `GET /api/v1/batches/{batch}/tasks`: a page of the batch's tasks.
pub(crate) async fn tasks(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(batch): Path<BatchId>,
    Query(page): Query<TaskPage>,
) -> Result<Json<Page<TaskView>>, ApiError> {
    let (state, order, skip, limit) = (page.state, page.order, page.cursor, page.limit.unwrap_or(u32::MAX));
    let query = TasksQuery { batch, state, order, skip, limit };
    Ok(Json(app.queries.tasks(signed_in.actor(), query, Seq(page.min_seq)).await?))
}

/// `POST /api/v1/batches/{batch}/cancel`: cancels the tasks that have not ended.
pub(crate) async fn cancel(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(batch): Path<BatchId>,
) -> Result<Json<Done>, ApiError> {
    Ok(Json(batches::cancel(&app, signed_in, batch).await?))
}

/// `POST /api/v1/batches/{batch}/retry`: submits a new batch of the tasks that failed or were cancelled. The header
/// `Idempotency-Key` has the id of the new batch.
pub(crate) async fn retry(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(batch): Path<BatchId>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let id = idempotency_key(&headers, None)?.unwrap_or_else(BatchId::generate);
    let submitted = batches::retry(&app, signed_in, batch, id).await?;
    let location = format!("/api/v1/batches/{}", submitted.batch);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(submitted)).into_response())
}

/// `GET /api/v1/batches/{batch}/events`: a page of the batch's trail.
pub(crate) async fn events(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(batch): Path<BatchId>,
    Query(page): Query<TrailPage>,
) -> Result<Json<Page<TrailEvent>>, ApiError> {
    Ok(Json(app.queries.trail(signed_in.actor(), page.query(TrailOf::Batch(batch)), page.seq()).await?))
}

/// `GET /api/v1/batches/{batch}/results.csv`: one line for each task, with its parameters, result and last
/// measurements.
pub(crate) async fn results(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(batch): Path<BatchId>,
) -> Result<Response, ApiError> {
    let table = batches::results_table(&app, signed_in, batch).await?;
    let headers = [
        (header::CONTENT_TYPE, "text/csv; charset=utf-8".to_owned()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"batch-{}.csv\"", batch.short())),
    ];
    Ok((headers, Body::from(table)).into_response())
}
