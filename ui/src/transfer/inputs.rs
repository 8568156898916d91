//! Uploads of files that jobs are given.

use axum::{
    Json,
    extract::{Request, State},
    http::StatusCode,
};
use futures_util::TryStreamExt as _;
use gpubnb_events::{AccountId, CommandId, job_request::InputRequest, spec::Input};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    deliver::described,
    store::{input_name, length, store, to_the_end, unavailable},
};
use crate::{
    access::SignedIn,
    app::App,
    error::{ApiError, Problem},
    extract::Path,
};

/// Most bytes of one input.
const MAX_INPUT: u64 = 1 << 30;
/// Most bytes of all inputs of one account.
const MAX_INPUTS: u64 = 2 << 30;

/// A file that jobs can be given, as it was stored.
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

/// `PUT /api/v1/inputs/{id}`: uploads a file for jobs. A file never changes: a second upload with the same id changes
/// nothing.
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
    // Uploads on their way count too, so that two of them cannot use the same free bytes.
    let Some(reservation) = app.upload_quota.reserve(signed_in.account.to_string(), bytes, free) else {
        let detail = "Your files may take 2 GiB: the oldest are removed after 15 days.";
        return Err(Problem::new(StatusCode::INSUFFICIENT_STORAGE, "NoRoom", detail).into());
    };
    let (files, body) = (app.inputs.clone(), request.into_body());
    let (bytes, sha256) = to_the_end(async move {
        store(&files, &name, body, bytes, |_| ()).await?;
        drop(reservation);
        Ok(described(&files.info(&name).await.map_err(unavailable)?))
    })
    .await?;
    Ok((StatusCode::CREATED, Json(Uploaded { input, bytes, sha256 })))
}

/// The bytes of all inputs of an account.
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

/// The files that a request names, as the store describes them. A file of another account is not found.
pub(crate) async fn describe(app: &App, account: AccountId, inputs: &[InputRequest]) -> Result<Vec<Input>, Problem> {
    let mut files = Vec::with_capacity(inputs.len());
    for InputRequest { input, path } in inputs {
        let missing = |_| Problem::invalid("inputs", format!("There is no file {input}: put it first."));
        let info = app.inputs.info(input_name(account, *input)).await.map_err(missing)?;
        let (bytes, sha256) = described(&info);
        files.push(Input { input: *input, path: path.clone(), bytes, sha256 });
    }
    Ok(files)
}
