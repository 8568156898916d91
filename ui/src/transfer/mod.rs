//! The files of jobs: what they are given and what they leave. Put and got with a permit that is good for one purpose and a
//! short time, or by who owns them. Streamed, capped, hashed; nothing of a job is ever shown as a page.

pub(crate) mod all;
mod deliver;
mod parts;
mod room;

use std::{future::ready, io, pin::pin};

use async_nats::jetstream::object_store::ObjectStore;
use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::Response,
};
use futures_util::{StreamExt as _, TryStreamExt};
use gpubnb_events::{
    AccountId, Actor, CommandId, JobId, Lease, Millis, Seq, Timestamp,
    spec::{Artifact, Input},
    transfer::{PART_BYTES, Received},
};
use gpubnb_query::view::JobView;
use gpubnb_runtime::permit::{Permit, Purpose};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;
use tokio_util::io::{InspectReader, StreamReader};
use utoipa::ToSchema;

use self::deliver::{Show, Stored, deliver, described, picture};
use self::parts::Sum;
pub(crate) use self::room::Room;
use crate::{
    access::SignedIn,
    app::App,
    error::{ApiError, Problem},
    extract::{JsonBody, Path, Query},
};

/// Largest file that a job may be given.
const MAX_INPUT: u64 = 1 << 30;
/// Most that the inputs of one account may take.
const MAX_INPUTS: u64 = 2 << 30;
/// How long it is remembered what the files of an attempt take.
const ROOM_REMEMBERED: Millis = Millis(24 * 3_600_000);
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
    Problem::from(gpubnb_runtime::rpc::Failure::Unavailable(format!("the store of files: {e}")))
}

/// How long a body is, as its sender says. Without that nobody could tell whether there is room for it.
fn length(headers: &HeaderMap, most: u64) -> Result<u64, Problem> {
    let said = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    let bytes: u64 = said.ok_or_else(|| {
        Problem::new(StatusCode::LENGTH_REQUIRED, "LengthRequired", "Say how long the file is (`Content-Length`).")
    })?;
    if bytes > most { Err(Problem::too_large()) } else { Ok(bytes) }
}

/// Stores a body of so many bytes under a name, or nothing of it, and says all of it to `take_in` besides.
async fn store(
    files: &ObjectStore,
    name: &str,
    body: Body,
    bytes: u64,
    mut take_in: impl FnMut(&[u8]) + Send,
) -> Result<(), Problem> {
    // A body that breaks off ends here like one that is whole; how long it was tells them apart.
    let parts = body.into_data_stream().take_while(|part| ready(part.is_ok())).map_err(io::Error::other);
    let mut received = 0_u64;
    let reader = InspectReader::new(StreamReader::new(parts).take(bytes), |part| {
        received += part.len() as u64;
        take_in(part);
    });
    files.put(name, &mut pin!(reader)).await.map_err(unavailable)?;
    if received < bytes {
        files.delete(name).await.map_err(unavailable)?;
        let detail = format!("The file broke off after {received} of {bytes} bytes: put it again.");
        return Err(Problem::new(StatusCode::BAD_REQUEST, "Incomplete", detail));
    }
    Ok(())
}

/// Works on to the end, whether or not anybody still waits: a store that is left in the middle would keep pieces that belong
/// to nothing.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Problem>> + Send + 'static,
) -> Result<T, Problem> {
    tokio::spawn(work).await.map_err(|e| Problem::internal(&e))?
}

/// What a worker may put, by its permit, and the name of the file.
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

/// Which piece of a file is put. None: all of it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Piece {
    /// The part's number, from 0.
    part: Option<u32>,
    /// Whether it is the last part.
    #[serde(default)]
    last: bool,
}

/// `PUT /transfer/{job}/{lease}/{path}`: a worker puts a file of its attempt, or the next part of it. What is there stays as
/// it is.
pub(crate) async fn put(
    State(app): State<App>,
    Path(file): Path<(JobId, u64, String)>,
    Query(piece): Query<Piece>,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let (most, lease, name) = permitted(&app, file, request.headers()).await?;
    let (part, last) = (piece.part.unwrap_or(0), piece.last || piece.part.is_none());
    let bytes = length(request.headers(), most)?;
    let before = next(&app.artifacts, &name, part, bytes, last).await?;
    let Some(room) = app.room.take(lease.to_string(), bytes, most) else {
        return Err(Problem::too_large().into());
    };
    let (files, until) = (app.artifacts.clone(), app.now().plus(ROOM_REMEMBERED));
    let body = request.into_body();
    to_the_end(async move {
        let (mut sum, object) = (before, parts::new_object(&name, part));
        store(&files, &object, body, bytes, |piece| sum.take_in(piece)).await?;
        sum.add(object);
        if last { sum.seal(&files, &name).await } else { sum.keep(&files, &name, part).await }?;
        room.keep_until(until);
        Ok(())
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What comes before a part, if that is the next one and as large as it must be.
async fn next(files: &ObjectStore, name: &str, part: u32, bytes: u64, last: bool) -> Result<Sum, Problem> {
    if part >= parts::MOST_PARTS || bytes > PART_BYTES || (!last && bytes != PART_BYTES) {
        let detail = format!("A part has {PART_BYTES} bytes, the last one has no more, and there are few enough.");
        return Err(Problem::invalid("part", detail));
    }
    if parts::present(files, name).await?.is_some() || Sum::at(files, name, part).await?.is_some() {
        let detail = "This is here already. It does not change any more.";
        return Err(Problem::new(StatusCode::CONFLICT, "AlreadyThere", detail));
    }
    let Some(before) = part.checked_sub(1) else { return Ok(Sum::default()) };
    Sum::at(files, name, before).await?.ok_or_else(|| {
        let detail = "The part before this one is not here: ask how many are.";
        Problem::new(StatusCode::PRECONDITION_FAILED, "OutOfOrder", detail)
    })
}

/// `GET /transfer/{job}/{lease}/{path}`: how far a file has been put, for a worker to go on from there.
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

/// `GET /transfer/permit/{permit}`: whoever holds a permit gets the one file that it is for.
pub(crate) async fn by_permit(
    State(app): State<App>,
    Path(permit): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (store, name, path, sha256) = match app.transfer.verify(&permit, app.now()).map_err(bad_permit)? {
        // An input never changes, and its machine compares hashes itself.
        Purpose::Input { account, input } => (&app.inputs, input_name(account, input), input.to_string(), None),
        Purpose::Artifact { job, lease, path, sha256 } => {
            (&app.artifacts, artifact_name(job, lease, &path), path, Some(sha256))
        }
        Purpose::Upload { .. } => return Err(bad_permit("it is for putting files").into()),
    };
    let stored = Stored::open(store, &name).await?;
    if sha256.is_some_and(|sha256| sha256 != stored.sha256) {
        return Err(not_as_listed().into());
    }
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
fn listed<'a>(row: &'a JobView, path: &str) -> Result<(&'a Artifact, Lease), Problem> {
    let artifact = row.outputs.iter().find(|a| a.path == path).ok_or_else(|| Problem::not_found("file"))?;
    let lease = row.attempts.last().map(|a| a.lease).ok_or_else(|| Problem::not_found("file"))?;
    Ok((artifact, lease))
}

fn not_as_listed() -> Problem {
    let detail = "What the machine put here is not what it listed: it is not given out.";
    Problem::new(StatusCode::BAD_GATEWAY, "NotAsListed", detail)
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
        return Err(not_as_listed().into());
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
    JsonBody(ask): JsonBody<AskLink>,
) -> Result<Json<Link>, ApiError> {
    let row = app.queries.job(signed_in.actor(), job, Seq::ZERO).await?;
    let (artifact, lease) = listed(&row, &ask.path)?;
    let sha256 = artifact.sha256.clone();
    let expires = app.now().plus(LINK_LIFE);
    let permit = Permit { purpose: Purpose::Artifact { job, lease, path: ask.path, sha256 }, expires };
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
    if let Some(known) = app.inputs.info(name.as_str()).await.ok().filter(|known| !known.deleted) {
        let (bytes, sha256) = described(&known);
        return Ok((StatusCode::OK, Json(Uploaded { input, bytes, sha256 })));
    }
    let bytes = length(request.headers(), MAX_INPUT)?;
    let free = MAX_INPUTS.saturating_sub(taken(&app, signed_in.account).await?);
    // What is on its way counts too: two at once do not get the same room.
    let Some(room) = app.room.take(signed_in.account.to_string(), bytes, free) else {
        let detail = "Your files may take 2 GiB: the oldest are removed after 15 days.";
        return Err(Problem::new(StatusCode::INSUFFICIENT_STORAGE, "NoRoom", detail).into());
    };
    let (files, body) = (app.inputs.clone(), request.into_body());
    let (bytes, sha256) = to_the_end(async move {
        store(&files, &name, body, bytes, |_| ()).await?;
        drop(room);
        Ok(described(&files.info(&name).await.map_err(unavailable)?))
    })
    .await?;
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
