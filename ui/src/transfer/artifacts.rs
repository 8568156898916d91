//! Uploads of artifacts: the output files of a job, sent by the worker on the machine that ran the job.

use std::collections::HashMap;

use axum::{
    Json,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
};
use gpubnb_events::{
    JobId, Lease, Seq,
    transfer::{PART_BYTES, Received},
};
use gpubnb_files::{Files, NewFile, Owner};
use gpubnb_log::stream::ARTIFACTS;
use gpubnb_runtime::permit::Purpose;
use serde::Deserialize;

use super::{
    parts::{self, PartialFile},
    share::{NewUpload, Store, claim},
    store::{artifact_name, bad_permit, check_attempt, content_length, run_to_completion, store_body, unavailable},
};
use crate::{
    app::App,
    error::{ApiError, Problem},
    extract::{Path, Query},
};

/// Verifies a worker's permit to upload a file of its attempt. Returns the maximum number of bytes that the attempt may
/// upload, the lease, the owner of the job, and the file's name in the store.
async fn verify_permit(
    app: &App,
    (job, lease, path): (JobId, u64, String),
    headers: &HeaderMap,
) -> Result<(u64, Lease, Owner, String), Problem> {
    let lease = Lease(Seq(lease));
    let authorization = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let permit =
        authorization.and_then(|v| v.strip_prefix("Bearer ")).ok_or_else(|| bad_permit("the request has no permit"))?;
    let max_bytes = match app.permit_key.verify(permit, app.now()).map_err(bad_permit)? {
        Purpose::Upload { job: for_job, lease: for_lease, max_bytes } if (for_job, for_lease) == (job, lease) => {
            max_bytes
        }
        _ => return Err(bad_permit("the permit is for something else")),
    };
    if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") || path.len() > 512 {
        return Err(Problem::invalid(
            "path",
            "The path must be relative, without empty segments, `.` or `..`, and have at most 512 bytes.",
        ));
    }
    let owner = check_attempt(app, job, lease).await?;
    Ok((max_bytes, lease, owner, artifact_name(job, lease, &path)))
}

/// Query parameters that tell which part of a file the body is. Without a number, the body is the whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PartQuery {
    /// The number of the part, from 0.
    part: Option<u32>,
    /// True for the last part.
    #[serde(default)]
    last: bool,
    /// The size of the whole file, bytes.
    #[serde(default)]
    total: Option<u64>,
}

/// `PUT /transfer/{job}/{lease}/{path}`: a worker uploads a file of its attempt, or the next part of a file. A stored
/// file or part never changes.
pub(crate) async fn put(
    State(app): State<App>,
    Path(file): Path<(JobId, u64, String)>,
    Query(query): Query<PartQuery>,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let (max_bytes, lease, owner, name) = verify_permit(&app, file, request.headers()).await?;
    let (part, is_last) = (query.part.unwrap_or(0), query.last || query.part.is_none());
    let bytes = content_length(request.headers(), max_bytes)?;
    let before = parts_before(&app.artifacts, &name, part, bytes, is_last).await?;
    // Each part claims room for the whole rest of the file, so that no file is begun that cannot be completed.
    let whole = query.total.unwrap_or(bytes).max(before.bytes().saturating_add(bytes));
    if whole > max_bytes {
        return Err(Problem::too_large().into());
    }
    let store = Store { files: &app.artifacts, name: ARTIFACTS, most: u64::MAX, most_files: usize::MAX, days: 30 };
    let (remaining, attempt) = (whole - before.bytes(), Some((lease, max_bytes)));
    let claim = match claim(
        &app,
        store,
        NewUpload { file: name.clone(), owner, bytes: remaining, files: 1, replaced: 0, attempt },
    )
    .await
    {
        Err(problem) if problem.status == StatusCode::INSUFFICIENT_STORAGE.as_u16() => {
            before.remove(&app.artifacts, &name).await?;
            return Err(problem.into());
        }
        claimed => claimed?,
    };
    let files = app.artifacts.clone();
    let body = request.into_body();
    let upload = async move {
        let (mut partial, object) = (before, parts::new_object(&name, part));
        let file = NewFile { name: object.clone(), owner, metadata: HashMap::new() };
        store_body(&files, file, body, bytes, |piece| partial.update(piece)).await?;
        partial.add_object(object);
        if is_last {
            partial.complete(&files, owner, &name).await
        } else {
            partial.save(&files, owner, &name, part).await
        }
    };
    run_to_completion(claim.run(bytes, upload)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Reads what is stored about the parts before `part`: their objects, size and hash state, but not their bytes. Refuses
/// a part that has the wrong size or is not the next part of the file.
async fn parts_before(files: &Files, name: &str, part: u32, bytes: u64, is_last: bool) -> Result<PartialFile, Problem> {
    if part >= parts::MAX_PARTS || bytes > PART_BYTES || (!is_last && bytes != PART_BYTES) {
        let detail = format!(
            "A part has {PART_BYTES} bytes, the last part may have fewer, and a file has at most {} parts.",
            parts::MAX_PARTS
        );
        return Err(Problem::invalid("part", detail));
    }
    if files.info(name).await.map_err(unavailable)?.is_some() || PartialFile::read(files, name, part).await?.is_some() {
        let detail = "This part or file is already stored and cannot be changed.";
        return Err(Problem::new(StatusCode::CONFLICT, "AlreadyThere", detail));
    }
    let Some(before) = part.checked_sub(1) else { return Ok(PartialFile::default()) };
    PartialFile::read(files, name, before).await?.ok_or_else(|| {
        let detail = "The part before this part is missing: send a GET request to learn how many parts are stored.";
        Problem::new(StatusCode::PRECONDITION_FAILED, "OutOfOrder", detail)
    })
}

/// `GET /transfer/{job}/{lease}/{path}`: tells a worker how many parts of a file are stored, so that the worker can
/// resume an interrupted upload.
pub(crate) async fn upload_status(
    State(app): State<App>,
    Path(file): Path<(JobId, u64, String)>,
    headers: HeaderMap,
) -> Result<Json<Received>, ApiError> {
    let (.., name) = verify_permit(&app, file, &headers).await?;
    let complete = app.artifacts.info(&name).await.map_err(unavailable)?.is_some();
    // A worker sends no part of a complete file, so nobody needs the number of its parts.
    let parts = if complete { 0 } else { parts::count(&app.artifacts, &name).await? };
    Ok(Json(Received { complete, parts }))
}
