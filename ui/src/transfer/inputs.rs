//! Uploads of inputs: files that a job reads.

use axum::{
    Json,
    extract::{Request, State},
    http::StatusCode,
};
use futures_util::{StreamExt as _, TryStreamExt as _};
use gpubnb_events::{AccountId, CommandId, job_request::InputRequest, spec::Input};
use gpubnb_log::stream::INPUTS;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;

use super::{
    deliver::size_and_hash,
    store::{content_length, ensure_room, input_name, run_to_completion, store_body, unavailable},
};
use crate::{
    access::SignedIn,
    app::App,
    error::{ApiError, Problem},
    extract::Path,
};

/// The maximum size of one input, in bytes.
const MAX_INPUT_BYTES: u64 = 1 << 30;
/// The maximum size of all inputs of one account together, in bytes.
const MAX_ACCOUNT_BYTES: u64 = 2 << 30;

/// A stored input.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct StoredInput {
    /// Id of the input.
    #[schema(value_type = String, format = Uuid)]
    input: CommandId,
    /// Size in bytes.
    bytes: u64,
    /// SHA-256, in hex.
    sha256: String,
}

/// `PUT /api/v1/inputs/{id}`: uploads an input. A stored input never changes: a second upload with the same id has no
/// effect if it has the same content, and is refused otherwise.
pub(crate) async fn put_input(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(input): Path<CommandId>,
    request: Request,
) -> Result<(StatusCode, Json<StoredInput>), ApiError> {
    let name = input_name(signed_in.account, input);
    if let Some(known) = app.inputs.info(name.as_str()).await.ok().filter(|known| !known.deleted) {
        let (bytes, sha256) = size_and_hash(&known);
        if !has_content(request, bytes, &sha256).await? {
            let detail = "This id has another file. A file never changes: upload the new file with a new id.";
            return Err(Problem::new(StatusCode::CONFLICT, "IdReused", detail).into());
        }
        return Ok((StatusCode::OK, Json(StoredInput { input, bytes, sha256 })));
    }
    let bytes = content_length(request.headers(), MAX_INPUT_BYTES)?;
    let free = MAX_ACCOUNT_BYTES.saturating_sub(stored_bytes(&app, signed_in.account).await?);
    // Uploads in progress also count, so that two uploads cannot use the same free bytes.
    let Some(reservation) = app.upload_quota.reserve(signed_in.account.to_string(), bytes, free) else {
        let detail = "Your files may take 2 GiB together. Each file is removed after 15 days.";
        return Err(Problem::new(StatusCode::INSUFFICIENT_STORAGE, "NoRoom", detail).into());
    };
    ensure_room(&app, INPUTS, bytes).await?;
    let (files, body) = (app.inputs.clone(), request.into_body());
    let (bytes, sha256) = run_to_completion(async move {
        store_body(&files, &name, body, bytes, |_| ()).await?;
        drop(reservation);
        Ok(size_and_hash(&files.info(&name).await.map_err(unavailable)?))
    })
    .await?;
    Ok((StatusCode::CREATED, Json(StoredInput { input, bytes, sha256 })))
}

/// True if the body of a request has this size, bytes, and this SHA-256 in hex.
async fn has_content(request: Request, bytes: u64, sha256: &str) -> Result<bool, Problem> {
    if content_length(request.headers(), MAX_INPUT_BYTES)? != bytes {
        return Ok(false);
    }
    let (mut body, mut hash) = (request.into_body().into_data_stream(), Sha256::new());
    while let Some(piece) = body.next().await {
        // The server limits the time of a request, and its length is known.
        let incomplete = |_| Problem::new(StatusCode::BAD_REQUEST, "Incomplete", "The upload broke off: try again.");
        hash.update(piece.map_err(incomplete)?);
    }
    Ok(gpubnb_events::hex(hash.finalize()) == sha256)
}

/// The size of all stored inputs of an account, in bytes.
async fn stored_bytes(app: &App, account: AccountId) -> Result<u64, Problem> {
    let prefix = format!("{account}/");
    let mut all = app.inputs.list().await.map_err(unavailable)?;
    let mut bytes = 0;
    while let Some(info) = all.try_next().await.map_err(unavailable)? {
        if info.name.starts_with(&prefix) {
            bytes += info.size as u64;
        }
    }
    Ok(bytes)
}

/// Looks up the inputs that a job request names, and adds their sizes and hashes. An input of another account is not
/// found.
pub(crate) async fn resolve_inputs(
    app: &App,
    account: AccountId,
    inputs: &[InputRequest],
) -> Result<Vec<Input>, Problem> {
    let mut files = Vec::with_capacity(inputs.len());
    for InputRequest { input, path } in inputs {
        let missing = |_| Problem::invalid("inputs", format!("There is no file {input}: upload it first."));
        let info = app.inputs.info(input_name(account, *input)).await.map_err(missing)?;
        let (bytes, sha256) = size_and_hash(&info);
        files.push(Input { input: *input, path: path.clone(), bytes, sha256 });
    }
    Ok(files)
}
