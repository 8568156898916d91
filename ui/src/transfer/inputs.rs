//! Uploads of inputs: files that a job reads.

use async_nats::jetstream::object_store::ObjectMetadata;
use axum::{
    Json,
    extract::{Request, State},
    http::StatusCode,
};
use futures_util::{StreamExt as _, TryStreamExt as _};
use gpubnb_events::{AccountId, CommandId, Seq, job_request::InputRequest, spec::Input};
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
    state::Reservation,
};

/// The maximum size of one input, in bytes.
const MAX_INPUT_BYTES: u64 = 1 << 30;
/// The maximum size of all inputs of one account together, in bytes.
const MAX_ACCOUNT_BYTES: u64 = 2 << 30;
/// The share of the store that one account may take, and the share that all accounts without money may take together:
/// one part of this many. Accounts cost nothing, so a share for each of them would be no bound.
const SHARES: u64 = 4;
/// The owner of the claims of all accounts without money.
const WITHOUT_MONEY: &str = "accounts without money";
/// The bytes that a file counts at least: each file has a description.
const LEAST_BYTES: u64 = 4 << 10;
/// Most inputs of one account.
const MAX_FILES: usize = 10_000;
/// The metadata of an object: `true` if the account had money when it uploaded the file.
const HAS_MONEY: &str = "has_money";

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
    let share = ensure_room(&app, INPUTS, bytes).await?.map_or(u64::MAX, |store| store / SHARES);
    let balance = app.queries.balance(signed_in.actor(), signed_in.account, Seq::ZERO).await?;
    let has_money = balance.available.0 > 0 || balance.held.0 > 0;
    let own_share = MAX_ACCOUNT_BYTES.min(share);
    let own_full = format!("Your files may take {} MiB together, and be {MAX_FILES}.", own_share >> 20);
    let shared_full = "The room for files of accounts without money is full. Add funds on the page Wallet, or wait.";
    // An upload in progress counts from here on, so that two uploads cannot use the same free bytes.
    let own = Claim::make(&app, signed_in.account.to_string(), bytes, own_share, &own_full)?;
    let without_money = || Claim::make(&app, WITHOUT_MONEY.to_owned(), bytes, share, shared_full);
    let shared = if has_money { None } else { Some(without_money()?) };
    let stored = stored_bytes(&app, signed_in.account).await?;
    if stored.own_files >= MAX_FILES {
        return Err(no_room(&own_full).into());
    }
    own.check(&app, stored.own)?;
    if let Some(shared) = &shared {
        shared.check(&app, stored.without_money)?;
    }
    let (files, body) = (app.inputs.clone(), request.into_body());
    let (bytes, sha256) = run_to_completion(async move {
        let metadata = [(HAS_MONEY.to_owned(), has_money.to_string())].into();
        let object = ObjectMetadata { name: name.clone(), metadata, ..ObjectMetadata::default() };
        store_body(&files, object, body, bytes, |_| ()).await?;
        drop((own, shared));
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

fn no_room(detail: &str) -> Problem {
    let detail = format!("{detail} Each file is removed after 15 days.");
    Problem::new(StatusCode::INSUFFICIENT_STORAGE, "NoRoom", detail)
}

/// The bytes that an upload in progress takes of a share.
struct Claim {
    owner: String,
    share: u64,
    /// The problem if the share is full.
    full: Problem,
    _reservation: Reservation,
}

impl Claim {
    /// Claims bytes. Fails if the uploads in progress alone take more than the share. `full` says so.
    fn make(app: &App, owner: String, bytes: u64, share: u64, full: &str) -> Result<Self, Problem> {
        let reservation = app.upload_quota.reserve(owner.clone(), bytes.max(LEAST_BYTES), share);
        let reservation = reservation.ok_or_else(|| no_room(full))?;
        Ok(Self { owner, share, full: no_room(full), _reservation: reservation })
    }

    /// Fails unless the stored files and all uploads in progress have room in the share.
    fn check(&self, app: &App, stored: u64) -> Result<(), Problem> {
        let used = stored.saturating_add(app.upload_quota.reserved(&self.owner));
        if used <= self.share { Ok(()) } else { Err(self.full.clone()) }
    }
}

/// The stored inputs.
#[derive(Default)]
struct StoredBytes {
    /// The bytes and the number of the inputs of one account.
    own: u64,
    own_files: usize,
    /// The bytes of the inputs of all accounts that had no money at the upload.
    without_money: u64,
}

async fn stored_bytes(app: &App, account: AccountId) -> Result<StoredBytes, Problem> {
    let prefix = format!("{account}/");
    let mut all = app.inputs.list().await.map_err(unavailable)?;
    let mut stored = StoredBytes::default();
    while let Some(info) = all.try_next().await.map_err(unavailable)? {
        let bytes = (info.size as u64).max(LEAST_BYTES);
        if info.name.starts_with(&prefix) {
            stored.own += bytes;
            stored.own_files += 1;
        }
        if info.metadata.get(HAS_MONEY).is_some_and(|has_money| has_money == "false") {
            stored.without_money += bytes;
        }
    }
    Ok(stored)
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
