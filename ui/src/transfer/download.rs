//! Downloads of files. A machine downloads with a permit, the owner of a job with a session or a token, and anybody
//! else with a link that the owner created.

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::Response,
};
use gpubnb_events::{Actor, JobId, Lease, Millis, Seq, Timestamp, spec::Artifact};
use gpubnb_query::view::JobView;
use gpubnb_runtime::permit::{Permit, Purpose};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    datasets::{ContentRange, deliver_dataset},
    deliver::{Disposition, StoredFile, deliver, image_type},
    store::{artifact_name, bad_permit, check_attempt, input_name},
};
use crate::{
    access::SignedIn,
    app::App,
    error::{ApiError, Problem},
    extract::{JsonBody, Path, Query},
};

/// The time for which a link to a file is valid: one hour.
const LINK_LIFE: Millis = Millis(3_600_000);

/// `GET /transfer/permit/{permit}`: downloads the file that the permit names. Of a dataset, the query
/// names a range of contents; without it, the answer is the manifest.
pub(crate) async fn by_permit(
    State(app): State<App>,
    Path(permit): Path<String>,
    Query(range): Query<ContentRange>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (store, name, path, sha256) = match app.permit_key.verify(&permit, app.now()).map_err(bad_permit)? {
        // No hash is compared here: an input never changes, and the machine compares the hash after the download.
        Purpose::Input { job, lease, account, input } => {
            check_attempt(&app, job, lease).await?;
            (&app.inputs, input_name(account, input), input.to_string(), None)
        }
        Purpose::Dataset { job, lease, account, dataset } => {
            check_attempt(&app, job, lease).await?;
            return Ok(deliver_dataset(&app, account, &dataset, range, &headers).await?);
        }
        Purpose::Artifact { job, lease, path, sha256 } => {
            check_not_suspended(&app, job).await?;
            (&app.artifacts, artifact_name(job, lease, &path), path, Some(sha256))
        }
        Purpose::Upload { .. } | Purpose::KnownBrowser { .. } | Purpose::Passkey { .. } => {
            return Err(bad_permit("the permit is not for downloading files").into());
        }
    };
    let stored = StoredFile::open(store, &name).await?;
    if sha256.is_some_and(|sha256| sha256 != stored.sha256) {
        return Err(not_as_listed().into());
    }
    Ok(deliver(&headers, stored, &path, Disposition::Attachment))
}

/// Refuses a link to a file of an account that was suspended after it made the link.
async fn check_not_suspended(app: &App, job: JobId) -> Result<(), Problem> {
    let account = app.queries.job(Actor::Platform, job, Seq::ZERO).await?.account;
    let balance = app.queries.balance(Actor::Platform, account, Seq::ZERO).await?;
    if balance.suspended { Err(bad_permit("the account is suspended")) } else { Ok(()) }
}

/// Query parameters of a download.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct DownloadOptions {
    /// If this parameter is present, with any value, the browser shows an image instead of saving it. Other files are
    /// always saved.
    #[serde(default)]
    inline: Option<String>,
}

/// Finds a file in the manifest, the list of output files that the machine sent at the end of a job's last attempt.
/// Returns the manifest's entry and the lease of the attempt.
pub(super) fn manifest_entry<'a>(row: &'a JobView, path: &str) -> Result<(&'a Artifact, Lease), Problem> {
    let artifact = row.outputs.iter().find(|a| a.path == path).ok_or_else(|| Problem::not_found("file"))?;
    let lease = row.attempts.last().map(|a| a.lease).ok_or_else(|| Problem::not_found("file"))?;
    Ok((artifact, lease))
}

/// The problem that the stored file differs from the file that the machine listed in its manifest.
fn not_as_listed() -> Problem {
    let detail = "The file that the machine uploaded is not the file that it listed, so the file cannot be downloaded.";
    Problem::new(StatusCode::BAD_GATEWAY, "NotAsListed", detail)
}

/// `GET /jobs/{job}/artifacts/{path}`: the owner of a job downloads one of its output files.
pub(crate) async fn get(
    State(app): State<App>,
    signed_in: SignedIn,
    Path((job, path)): Path<(JobId, String)>,
    Query(options): Query<DownloadOptions>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let row = app.queries.job(signed_in.actor(), job, Seq::ZERO).await?;
    let (artifact, lease) = manifest_entry(&row, &path)?;
    let stored = StoredFile::open(&app.artifacts, &artifact_name(job, lease, &path)).await?;
    if (stored.bytes, stored.sha256.as_str()) != (artifact.bytes, artifact.sha256.as_str()) {
        return Err(not_as_listed().into());
    }
    let disposition =
        image_type(&path).filter(|_| options.inline.is_some()).map_or(Disposition::Attachment, Disposition::Inline);
    Ok(deliver(&headers, stored, &path, disposition))
}

/// Body of `POST /jobs/{job}/links`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LinkRequest {
    /// Path of the file, as in the job's list of artifacts.
    path: String,
}

/// A link to one file.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Link {
    /// Path of the link on this server.
    path: String,
    /// When the link expires.
    #[schema(value_type = String, format = DateTime)]
    expires: Timestamp,
}

/// `POST /jobs/{job}/links`: creates a link to one output file of a job. Anybody who has the link can download the
/// file.
pub(crate) async fn link(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
    JsonBody(request): JsonBody<LinkRequest>,
) -> Result<Json<Link>, ApiError> {
    let row = app.queries.job(signed_in.actor(), job, Seq::ZERO).await?;
    let (artifact, lease) = manifest_entry(&row, &request.path)?;
    let sha256 = artifact.sha256.clone();
    let expires = app.now().plus(LINK_LIFE);
    let permit = Permit { purpose: Purpose::Artifact { job, lease, path: request.path, sha256 }, expires };
    let permit = app.permit_key.sign(&permit).ok_or_else(|| Problem::internal(&"the permit cannot be signed"))?;
    Ok(Json(Link { path: format!("/transfer/permit/{permit}"), expires }))
}
