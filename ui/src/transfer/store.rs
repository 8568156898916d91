//! The names of files in the stores, and the storing of a request's body as a file.

use std::{future::ready, io, pin::pin};

use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, header},
};
use futures_util::{StreamExt as _, TryStreamExt as _};
use gpubnb_events::{AccountId, Actor, CommandId, JobId, Lease, Seq};
use gpubnb_files::{FileInfo, Files, NewFile, Owner};
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

/// Refuses a permit of an attempt that is over, even if the time of the permit is not over. Returns the owner of the
/// job.
pub(super) async fn check_attempt(app: &App, job: JobId, lease: Lease) -> Result<Owner, Problem> {
    let row = app.queries.job(Actor::Platform, job, lease.0).await?;
    if row.ended_at.is_some() || row.attempts.last().is_none_or(|attempt| attempt.lease != lease) {
        return Err(bad_permit("the attempt is over"));
    }
    let has_money = row.hold.0 > 0 || has_money(app, Actor::Platform, row.account).await?;
    Ok(Owner { account: row.account, has_money })
}

/// True if an account has money, also if all of it is held for jobs.
pub(crate) async fn has_money(app: &App, actor: Actor, account: AccountId) -> Result<bool, Problem> {
    let balance = app.queries.balance(actor, account, Seq::ZERO).await?;
    Ok(balance.available.0 > 0 || balance.held.0 > 0)
}

/// The problem for a store that does not answer. The log has the cause.
pub(super) fn unavailable(e: impl std::error::Error + Send + Sync + 'static) -> Problem {
    warn!(error = format!("{:#}", anyhow::Error::new(e)), "a store of files does not answer");
    Problem::from(gpubnb_runtime::rpc::RpcError::Unavailable("the store of files does not answer".to_owned()))
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

/// Stores a body of exactly `bytes` bytes as a file. If the body is shorter, nothing is stored. `on_piece` is called
/// with every piece of the body.
pub(super) async fn store_body(
    files: &Files,
    file: NewFile,
    body: Body,
    bytes: u64,
    mut on_piece: impl FnMut(&[u8]) + Send,
) -> Result<FileInfo, Problem> {
    // An interrupted body ends without an error here. The number of received bytes shows that it is incomplete.
    let pieces = body.into_data_stream().take_while(|piece| ready(piece.is_ok())).map_err(io::Error::other);
    let mut received = 0_u64;
    let reader = InspectReader::new(StreamReader::new(pieces).take(bytes), |piece| {
        received += piece.len() as u64;
        on_piece(piece);
    });
    let name = file.name.clone();
    let stored = files.put(file, pin!(reader)).await.map_err(unavailable)?;
    if received < bytes {
        files.delete(&name).await.map_err(unavailable)?;
        let detail = format!("The upload ended after {received} of {bytes} bytes: upload the file again.");
        return Err(Problem::new(StatusCode::BAD_REQUEST, "Incomplete", detail));
    }
    Ok(stored)
}

/// Completes `work` even if the client closes the connection. Cancelled work would leave pieces in the store that
/// belong to no file.
pub(super) async fn run_to_completion<T: Send + 'static>(
    work: impl Future<Output = Result<T, Problem>> + Send + 'static,
) -> Result<T, Problem> {
    tokio::spawn(work).await.map_err(|e| Problem::internal(&e))?
}
