//! The names of objects in the object stores, and the storing of a request's body as an object.

use std::{future::ready, io, pin::pin};

use async_nats::jetstream::object_store::{ObjectMetadata, ObjectStore};
use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, header},
};
use futures_util::{StreamExt as _, TryStreamExt as _};
use gpubnb_events::{AccountId, Actor, CommandId, JobId, Lease};
use gpubnb_log::stream::store_stream;
use tokio::io::AsyncReadExt as _;
use tokio_util::io::{InspectReader, StreamReader};
use tracing::warn;

use crate::{app::App, error::Problem};

pub(super) fn artifact_name(job: JobId, lease: Lease, path: &str) -> String {
    format!("{job}/{lease}/{path}")
}

pub(super) fn input_name(account: AccountId, input: CommandId) -> String {
    format!("{account}/{input}")
}

pub(super) fn bad_permit(detail: impl std::fmt::Display) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "BadPermit", format!("The transfer is not permitted: {detail}."))
}

/// Refuses a permit of an attempt that is over: a permit ends with what it was for.
pub(super) async fn check_attempt(app: &App, job: JobId, lease: Lease) -> Result<(), Problem> {
    let row = app.queries.job(Actor::Platform, job, lease.0).await?;
    if row.ended_at.is_some() || row.attempts.last().is_none_or(|attempt| attempt.lease != lease) {
        return Err(bad_permit("the attempt is over"));
    }
    Ok(())
}

pub(super) fn unavailable(e: impl std::fmt::Display) -> Problem {
    Problem::from(gpubnb_runtime::rpc::RpcError::Unavailable(format!("the object store does not answer: {e}")))
}

/// The length of a body in bytes, from the header `Content-Length`. The header is required, because the quota is
/// checked before the upload.
pub(super) fn content_length(headers: &HeaderMap, max_bytes: u64) -> Result<u64, Problem> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    let bytes: u64 = length.ok_or_else(|| {
        Problem::new(
            StatusCode::LENGTH_REQUIRED,
            "LengthRequired",
            "Send the length of the file in the header `Content-Length`.",
        )
    })?;
    if bytes > max_bytes { Err(Problem::too_large()) } else { Ok(bytes) }
}

/// Refuses a file of this size if an object store has no room for it. A file that the store refused in the middle would
/// leave its first pieces behind. Returns the size of the store in bytes; `None` if the store has no limit.
pub(super) async fn ensure_room(app: &App, store: &str, bytes: u64) -> Result<Option<u64>, Problem> {
    let stream = app.js.get_stream(store_stream(store)).await.map_err(unavailable)?;
    let info = stream.cached_info();
    // Zero or less means that the store has no limit. Each piece of a file takes a little more than its bytes.
    let Some(most) = u64::try_from(info.config.max_bytes).ok().filter(|most| *most > 0) else { return Ok(None) };
    if info.state.bytes.saturating_add(bytes).saturating_add(bytes / 50 + PIECES_RESERVE) <= most {
        return Ok(Some(most));
    }
    warn!(store, bytes, used = info.state.bytes, most, "the store is full: a file is refused");
    let detail = "The market has no room for more files at the moment. Files are removed by and by: try again later.";
    Err(Problem::new(StatusCode::INSUFFICIENT_STORAGE, "StoreFull", detail))
}

/// Bytes that the descriptions of a file and of its parts take at most.
const PIECES_RESERVE: u64 = 64 * 1024;

/// Stores a body of exactly `bytes` bytes as an object. If the body is shorter, nothing is stored. `on_piece` is called
/// with every piece of the body.
pub(super) async fn store_body(
    files: &ObjectStore,
    object: ObjectMetadata,
    body: Body,
    bytes: u64,
    mut on_piece: impl FnMut(&[u8]) + Send,
) -> Result<(), Problem> {
    // An interrupted body ends without an error here. The number of received bytes shows that it is incomplete.
    let pieces = body.into_data_stream().take_while(|piece| ready(piece.is_ok())).map_err(io::Error::other);
    let mut received = 0_u64;
    let reader = InspectReader::new(StreamReader::new(pieces).take(bytes), |piece| {
        received += piece.len() as u64;
        on_piece(piece);
    });
    let name = object.name.clone();
    files.put(object, &mut pin!(reader)).await.map_err(unavailable)?;
    if received < bytes {
        files.delete(&name).await.map_err(unavailable)?;
        let detail = format!("The upload ended after {received} of {bytes} bytes: upload the file again.");
        return Err(Problem::new(StatusCode::BAD_REQUEST, "Incomplete", detail));
    }
    Ok(())
}

/// Completes `work` even if the client closes the connection. Cancelled work would leave pieces in the object store
/// that belong to no object.
pub(super) async fn run_to_completion<T: Send + 'static>(
    work: impl Future<Output = Result<T, Problem>> + Send + 'static,
) -> Result<T, Problem> {
    tokio::spawn(work).await.map_err(|e| Problem::internal(&e))?
}
