//! Uploads of inputs: files that a job reads.

use std::collections::HashMap;

use axum::{
    Json,
    extract::{Request, State},
    http::StatusCode,
};
use futures_util::StreamExt as _;
use gpubnb_events::{
    AccountId, CommandId,
    dataset::{MAX_DATASET_BYTES, MAX_DATASET_FILE_BYTES},
    job_request::InputRequest,
    spec::Input,
};
use gpubnb_files::{FileInfo, NewFile, Owner};
use gpubnb_log::stream::INPUTS;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;

use super::{
    share::{NewUpload, Store, claim},
    store::{content_length, has_money, input_name, run_to_completion, store_body, unavailable},
};
use crate::{
    access::SignedIn,
    app::App,
    error::{ApiError, Problem},
    extract::Path,
};

/// The maximum size of one input, in bytes.
pub(super) const MAX_INPUT_BYTES: u64 = MAX_DATASET_FILE_BYTES;
/// The maximum size of all inputs and datasets of one account together, in bytes.
pub(super) const MAX_ACCOUNT_BYTES: u64 = MAX_DATASET_BYTES;
/// Most inputs and files of datasets of one account.
pub(super) const MAX_FILES: usize = 20_000;

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
    if let Some(known) = app.inputs.info(&name).await.map_err(unavailable)? {
        let FileInfo { bytes, sha256, .. } = known;
        if !has_content(request, bytes, &sha256).await? {
            let detail = "This id has another file. A file never changes: upload the new file with a new id.";
            return Err(Problem::new(StatusCode::CONFLICT, "IdReused", detail).into());
        }
        return Ok((StatusCode::OK, Json(StoredInput { input, bytes, sha256 })));
    }
    let bytes = content_length(request.headers(), MAX_INPUT_BYTES)?;
    let store = Store { files: &app.inputs, name: INPUTS, most: MAX_ACCOUNT_BYTES, most_files: MAX_FILES, days: 30 };
    let has_money = has_money(&app, signed_in.actor(), signed_in.account).await?;
    let owner = Owner { account: signed_in.account, has_money };
    let claim =
        claim(&app, store, NewUpload { file: name.clone(), owner, bytes, files: 1, replaced: 0, attempt: None })
            .await?;
    // A second upload must not replace a file that a job already names.
    if app.inputs.info(&name).await.map_err(unavailable)?.is_some() {
        claim.release().await;
        let detail = "A file with this id was stored at this moment: upload the file again.";
        return Err(Problem::new(StatusCode::CONFLICT, "InProgress", detail).into());
    }
    let (files, body) = (app.inputs.clone(), request.into_body());
    let file = NewFile { name, owner, metadata: HashMap::new() };
    let stored =
        run_to_completion(async move { claim.run(bytes, store_body(&files, file, body, bytes, |_| ())).await });
    let FileInfo { bytes, sha256, .. } = Box::pin(stored).await?;
    Ok((StatusCode::CREATED, Json(StoredInput { input, bytes, sha256 })))
}

/// True if the body of a request has this size, bytes, and this SHA-256 in hex.
async fn has_content(request: Request, bytes: u64, sha256: &str) -> Result<bool, Problem> {
    if content_length(request.headers(), MAX_INPUT_BYTES)? != bytes {
        return Ok(false);
    }
    let (mut body, mut hash) = (request.into_body().into_data_stream(), Sha256::new());
    while let Some(piece) = body.next().await {
        // Reading to the end is safe: the length was checked above, and `serve.rs` limits the time of a request.
        let incomplete = |_| Problem::new(StatusCode::BAD_REQUEST, "Incomplete", "The upload broke off: try again.");
        hash.update(piece.map_err(incomplete)?);
    }
    Ok(gpubnb_events::hex(hash.finalize()) == sha256)
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
        let missing = || Problem::invalid("inputs", format!("There is no file {input}: upload it first."));
        let info = app.inputs.info(&input_name(account, *input)).await.map_err(unavailable)?;
        let FileInfo { bytes, sha256, .. } = info.ok_or_else(missing)?;
        files.push(Input { input: *input, path: path.clone(), bytes, sha256 });
    }
    Ok(files)
}
