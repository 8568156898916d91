//! Uploads of artifacts by workers.

use async_nats::jetstream::object_store::ObjectStore;
use axum::{
    Json,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
};
use gpubnb_events::{
    Actor, JobId, Lease, Millis, Seq,
    transfer::{PART_BYTES, Received},
};
use gpubnb_runtime::permit::Purpose;
use serde::Deserialize;

use super::{
    parts::{self, PartialFile},
    store::{artifact_name, bad_permit, length, store, to_the_end},
};
use crate::{
    app::App,
    error::{ApiError, Problem},
    extract::{Path, Query},
};

/// How long the finished uploads of an attempt count towards its quota. No attempt uploads for longer.
const REMEMBERED: Millis = Millis(24 * 3_600_000);

/// Verifies a worker's permit for a file of its attempt. Returns the most bytes that the attempt may upload, the lease,
/// and the file's name in the store.
async fn permitted(
    app: &App,
    (job, lease, path): (JobId, u64, String),
    headers: &HeaderMap,
) -> Result<(u64, Lease, String), Problem> {
    let lease = Lease(Seq(lease));
    let authorization = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let permit = authorization.and_then(|v| v.strip_prefix("Bearer ")).ok_or_else(|| bad_permit("there is none"))?;
    let most = match app.transfer.verify(permit, app.now()).map_err(bad_permit)? {
        Purpose::Upload { job: of, lease: at, most } if (of, at) == (job, lease) => most,
        _ => return Err(bad_permit("it is for something else")),
    };
    if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") || path.len() > 512 {
        return Err(Problem::invalid("path", "The path must be relative and plain."));
    }
    let row = app.queries.job(Actor::Platform, job, lease.0).await?;
    if row.ended_at.is_some() || row.attempts.last().is_none_or(|attempt| attempt.lease != lease) {
        return Err(bad_permit("the attempt is over"));
    }
    Ok((most, lease, artifact_name(job, lease, &path)))
}

/// The part of a file that is uploaded. Without a number, the body is the whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FilePart {
    /// The part's number, from 0.
    part: Option<u32>,
    /// True for the last part.
    #[serde(default)]
    last: bool,
}

/// `PUT /transfer/{job}/{lease}/{path}`: a worker uploads a file of its attempt, or the next part of one. A file or
/// part that is stored never changes.
pub(crate) async fn put(
    State(app): State<App>,
    Path(file): Path<(JobId, u64, String)>,
    Query(piece): Query<FilePart>,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let (most, lease, name) = permitted(&app, file, request.headers()).await?;
    let (part, last) = (piece.part.unwrap_or(0), piece.last || piece.part.is_none());
    let bytes = length(request.headers(), most)?;
    let before = next(&app.artifacts, &name, part, bytes, last).await?;
    let Some(reservation) = app.upload_quota.reserve(lease.to_string(), bytes, most) else {
        return Err(Problem::too_large().into());
    };
    let (files, now) = (app.artifacts.clone(), app.now());
    let body = request.into_body();
    to_the_end(async move {
        let (mut partial, object) = (before, parts::new_object(&name, part));
        store(&files, &object, body, bytes, |piece| partial.take_in(piece)).await?;
        partial.add(object);
        if last { partial.seal(&files, &name).await } else { partial.keep(&files, &name, part).await }?;
        reservation.keep(now, REMEMBERED);
        Ok(())
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The parts before a part. Refuses a part that is not the next one or has the wrong size.
async fn next(files: &ObjectStore, name: &str, part: u32, bytes: u64, last: bool) -> Result<PartialFile, Problem> {
    if part >= parts::MOST_PARTS || bytes > PART_BYTES || (!last && bytes != PART_BYTES) {
        let detail = format!("A part has {PART_BYTES} bytes, the last one has no more, and there are few enough.");
        return Err(Problem::invalid("part", detail));
    }
    if parts::present(files, name).await?.is_some() || PartialFile::at(files, name, part).await?.is_some() {
        let detail = "This is here already. It does not change any more.";
        return Err(Problem::new(StatusCode::CONFLICT, "AlreadyThere", detail));
    }
    let Some(before) = part.checked_sub(1) else { return Ok(PartialFile::default()) };
    PartialFile::at(files, name, before).await?.ok_or_else(|| {
        let detail = "The part before this one is not here: ask how many are.";
        Problem::new(StatusCode::PRECONDITION_FAILED, "OutOfOrder", detail)
    })
}

/// `GET /transfer/{job}/{lease}/{path}`: how many parts of a file are stored, so that a worker can resume after a
/// failure.
pub(crate) async fn received(
    State(app): State<App>,
    Path(file): Path<(JobId, u64, String)>,
    headers: HeaderMap,
) -> Result<Json<Received>, ApiError> {
    let (.., name) = permitted(&app, file, &headers).await?;
    let complete = parts::present(&app.artifacts, &name).await?.is_some();
    let parts = if complete { 0 } else { parts::count(&app.artifacts, &name).await? };
    Ok(Json(Received { complete, parts }))
}
