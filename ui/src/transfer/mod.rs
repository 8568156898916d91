//! The files of jobs: what they are given and what they leave. Put and got with a permit that is good for one purpose and a
//! short time, or by who owns them. Streamed, capped, hashed; nothing of a job is ever shown as a page.

mod deliver;

use std::{io, pin::pin};

use async_nats::jetstream::object_store::ObjectStore;
use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::Response,
};
use futures_util::TryStreamExt;
use gpubnb_events::{
    AccountId, CommandId, JobId, Lease, Millis, Seq, Timestamp,
    spec::{Artifact, Input},
    transfer::{Permit, Purpose},
};
use gpubnb_projector::view::JobRow;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;
use tokio_util::io::{InspectReader, StreamReader};
use utoipa::ToSchema;

use self::deliver::{Show, Stored, deliver, described, picture};
use crate::{
    access::SignedIn,
    api::jobs::Input as Json_,
    app::App,
    error::{ApiError, Problem},
    extract::{Path, Query},
};

/// Largest file that a job may leave.
const MAX_ARTIFACT: u64 = 8 << 30;
/// Largest file that a job may be given.
const MAX_INPUT: u64 = 1 << 30;
/// Most that the inputs of one account may take.
const MAX_INPUTS: u64 = 2 << 30;
/// How long a link to a file is good.
const LINK_LIFE: Millis = Millis(3_600_000);

fn artifact_name(job: JobId, lease: Lease, path: &str) -> String {
    format!("{job}/{lease}/{path}")
}

fn input_name(account: AccountId, input: CommandId) -> String {
    format!("{account}/{input}")
}

/// One part of a path, safe in a URL.
pub(crate) fn escape(part: &str) -> String {
    part.bytes().fold(String::new(), |mut url, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            url.push(char::from(byte));
        } else {
            url.push('%');
            url.push_str(&gpubnb_events::hex([byte]).to_uppercase());
        }
        url
    })
}

fn bad_permit(detail: impl std::fmt::Display) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "BadPermit", format!("The transfer is not permitted: {detail}."))
}

fn unavailable(e: impl std::fmt::Display) -> Problem {
    Problem::from(gpubnb_events::rpc::Failure::Unavailable(format!("the store of files: {e}")))
}

/// Stores a body under a name; refuses what is larger than `most`, and leaves nothing of it.
async fn store(files: &ObjectStore, name: &str, body: Body, most: u64) -> Result<(), Problem> {
    let body = body.into_data_stream().map_err(io::Error::other);
    let mut received = 0_u64;
    let reader = InspectReader::new(StreamReader::new(body).take(most + 1), |part| received += part.len() as u64);
    let stored = files.put(name, &mut pin!(reader)).await;
    stored.map_err(unavailable)?;
    if received > most {
        files.delete(name).await.map_err(unavailable)?;
        return Err(Problem::too_large());
    }
    Ok(())
}

/// `PUT /transfer/{job}/{lease}/{path}`: a worker puts a file of its attempt.
pub(crate) async fn put(
    State(app): State<App>,
    Path((job, lease, path)): Path<(JobId, u64, String)>,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let lease = Lease(Seq(lease));
    let authorization = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let permit = authorization.and_then(|v| v.strip_prefix("Bearer ")).ok_or_else(|| bad_permit("there is none"))?;
    let purpose = app.transfer.verify(permit, app.now()).map_err(bad_permit)?;
    if purpose != (Purpose::Upload { job, lease }) {
        return Err(bad_permit("it is for something else").into());
    }
    if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") || path.len() > 512 {
        return Err(Problem::invalid("path", "The path must be relative and plain.").into());
    }
    store(&app.artifacts, &artifact_name(job, lease, &path), request.into_body(), MAX_ARTIFACT).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /transfer/permit/{permit}`: whoever holds a permit gets the one file that it is for.
pub(crate) async fn by_permit(
    State(app): State<App>,
    Path(permit): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (store, name, path) = match app.transfer.verify(&permit, app.now()).map_err(bad_permit)? {
        Purpose::Input { account, input } => (&app.inputs, input_name(account, input), input.to_string()),
        Purpose::Artifact { job, lease, path } => (&app.artifacts, artifact_name(job, lease, &path), path),
        Purpose::Upload { .. } => return Err(bad_permit("it is for putting files").into()),
    };
    let stored = Stored::open(store, &name).await?;
    Ok(deliver(&headers, stored, &path, Show::Saved).await)
}

/// How a file is to be shown.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct How {
    /// `inline` shows pictures in the page; everything else is downloaded.
    #[serde(default)]
    inline: Option<String>,
}

/// The file of a job's last attempt, as its manifest lists it.
fn listed<'a>(row: &'a JobRow, path: &str) -> Result<(&'a Artifact, Lease), Problem> {
    let artifact = row.outputs.iter().find(|a| a.path == path).ok_or_else(|| Problem::not_found("file"))?;
    let lease = row.attempts.last().map(|a| a.lease).ok_or_else(|| Problem::not_found("file"))?;
    Ok((artifact, lease))
}

/// `GET /jobs/{job}/artifacts/{path}`: the owner reads a file.
pub(crate) async fn get(
    State(app): State<App>,
    signed_in: SignedIn,
    Path((job, path)): Path<(JobId, String)>,
    Query(how): Query<How>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let row = app.queries.job(signed_in.actor(), job, Seq::ZERO).await?;
    let (artifact, lease) = listed(&row, &path)?;
    let stored = Stored::open(&app.artifacts, &artifact_name(job, lease, &path)).await?;
    if (stored.bytes, stored.sha256.as_str()) != (artifact.bytes, artifact.sha256.as_str()) {
        let detail = "What the machine put here is not what it listed: it is not given out.";
        return Err(Problem::new(StatusCode::BAD_GATEWAY, "NotAsListed", detail).into());
    }
    let show = picture(&path).filter(|_| how.inline.is_some()).map_or(Show::Saved, Show::Picture);
    Ok(deliver(&headers, stored, &path, show).await)
}

/// Which file.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AskLink {
    /// Path of the file, as the list of artifacts has it.
    path: String,
}

/// A link to one file.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Link {
    /// Address, below this server's.
    path: String,
    /// Until when it is good.
    #[schema(value_type = String, format = DateTime)]
    expires: Timestamp,
}

/// `POST /jobs/{job}/links`: a link to one file, to hand on. Whoever has it needs nothing else.
pub(crate) async fn link(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(job): Path<JobId>,
    Json_(ask): Json_<AskLink>,
) -> Result<Json<Link>, ApiError> {
    let row = app.queries.job(signed_in.actor(), job, Seq::ZERO).await?;
    let (_, lease) = listed(&row, &ask.path)?;
    let expires = app.now().plus(LINK_LIFE);
    let permit = Permit { purpose: Purpose::Artifact { job, lease, path: ask.path }, expires };
    let permit = app.transfer.sign(&permit).ok_or_else(|| Problem::internal(&"signing a permit"))?;
    Ok(Json(Link { path: format!("/transfer/permit/{permit}"), expires }))
}

/// A file that jobs can be given.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Uploaded {
    /// Its id.
    #[schema(value_type = String, format = Uuid)]
    input: CommandId,
    /// Size.
    bytes: u64,
    /// SHA-256, in hex.
    sha256: String,
}

/// `PUT /api/v1/inputs/{id}`: a file for jobs. The same id again is the same file: it never changes.
pub(crate) async fn put_input(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(input): Path<CommandId>,
    request: Request,
) -> Result<(StatusCode, Json<Uploaded>), ApiError> {
    let name = input_name(signed_in.account, input);
    if let Ok(known) = app.inputs.info(name.as_str()).await {
        let (bytes, sha256) = described(&known);
        return Ok((StatusCode::OK, Json(Uploaded { input, bytes, sha256 })));
    }
    let room = MAX_INPUTS.saturating_sub(taken(&app, signed_in.account).await?);
    if room == 0 {
        let detail = "Your files take 2 GiB: the oldest are removed after 15 days.";
        return Err(Problem::new(StatusCode::INSUFFICIENT_STORAGE, "NoRoom", detail).into());
    }
    store(&app.inputs, &name, request.into_body(), MAX_INPUT.min(room)).await?;
    let (bytes, sha256) = described(&app.inputs.info(name.as_str()).await.map_err(unavailable)?);
    Ok((StatusCode::CREATED, Json(Uploaded { input, bytes, sha256 })))
}

/// How much the inputs of an account take.
async fn taken(app: &App, account: AccountId) -> Result<u64, Problem> {
    let own = format!("{account}/");
    let mut all = app.inputs.list().await.map_err(unavailable)?;
    let mut taken = 0;
    while let Some(info) = all.try_next().await.map_err(unavailable)? {
        if info.name.starts_with(&own) {
            taken += info.size as u64;
        }
    }
    Ok(taken)
}

/// Adds what only the store knows of the files that a job is to be given. Another account's look like none.
pub(crate) async fn describe(app: &App, account: AccountId, inputs: &mut [Input]) -> Result<(), Problem> {
    for input in inputs {
        let info = app
            .inputs
            .info(input_name(account, input.input))
            .await
            .map_err(|_| Problem::invalid("inputs", format!("There is no file {}: put it first.", input.input)))?;
        (input.bytes, input.sha256) = described(&info);
    }
    Ok(())
}
