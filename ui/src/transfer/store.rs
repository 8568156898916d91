//! The object stores: names of objects, and how a body becomes an object.

use std::{future::ready, io, pin::pin};

use async_nats::jetstream::object_store::ObjectStore;
use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, header},
};
use futures_util::{StreamExt as _, TryStreamExt as _};
use gpubnb_events::{AccountId, CommandId, JobId, Lease};
use tokio::io::AsyncReadExt as _;
use tokio_util::io::{InspectReader, StreamReader};

use crate::error::Problem;

pub(super) fn artifact_name(job: JobId, lease: Lease, path: &str) -> String {
    format!("{job}/{lease}/{path}")
}

pub(super) fn input_name(account: AccountId, input: CommandId) -> String {
    format!("{account}/{input}")
}

pub(super) fn bad_permit(detail: impl std::fmt::Display) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "BadPermit", format!("The transfer is not permitted: {detail}."))
}

pub(super) fn unavailable(e: impl std::fmt::Display) -> Problem {
    Problem::from(gpubnb_runtime::rpc::Failure::Unavailable(format!("the store of files: {e}")))
}

/// The length of a body, from its `Content-Length`. It is required, because the quota is checked before the upload.
pub(super) fn length(headers: &HeaderMap, most: u64) -> Result<u64, Problem> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    let bytes: u64 = length.ok_or_else(|| {
        Problem::new(StatusCode::LENGTH_REQUIRED, "LengthRequired", "Say how long the file is (`Content-Length`).")
    })?;
    if bytes > most { Err(Problem::too_large()) } else { Ok(bytes) }
}

/// Stores a body of exactly `bytes` bytes under a name, or nothing. `take_in` sees every piece of the body as it
/// passes.
pub(super) async fn store(
    files: &ObjectStore,
    name: &str,
    body: Body,
    bytes: u64,
    mut take_in: impl FnMut(&[u8]) + Send,
) -> Result<(), Problem> {
    // A body that breaks off ends like a complete one. The number of bytes received tells them apart.
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

/// Completes the work even if the client has gone. If it were cancelled half-way, the object store would keep pieces
/// that belong to no object.
pub(super) async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Problem>> + Send + 'static,
) -> Result<T, Problem> {
    tokio::spawn(work).await.map_err(|e| Problem::internal(&e))?
}
