//! Datasets: directories of files that an account has uploaded for its jobs. The files are stored by the hashes of
//! their contents, so a changed directory needs only its changed files.
//!
//! An upload has three steps, each of which can be repeated: the manifest is stored, the missing contents are uploaded,
//! and the manifest is sent once more. The dataset exists when nothing is missing.
//!
//! Belongs here: storing, finding and removing the files of datasets. Must not come here: what a job does with a
//! dataset, and the list of an account's datasets (`state/datasets.rs`).

use std::{
    collections::{HashMap, HashSet},
    future::ready,
    io,
};

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, StatusCode},
    response::Response,
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use gpubnb_events::{
    AccountId, Actor, Millis, Timestamp,
    dataset::{DatasetFile, DatasetId, DatasetManifest, MAX_PACK_BYTES, MAX_PACK_FILES},
    job_request::DatasetRequest,
    spec::DatasetMount,
};
use gpubnb_files::{FileInfo, NewFile, Owner};
use gpubnb_log::stream::{DATASETS_KEPT, INPUTS, INPUTS_KEPT};
use gpubnb_query::request::{BatchesQuery, JobsQuery};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    sync::{Semaphore, SemaphorePermit},
};
use tokio_util::io::StreamReader;
use utoipa::{IntoParams, ToSchema};

use super::{
    deliver::{Disposition, StoredFile, deliver},
    inputs::{MAX_ACCOUNT_BYTES, MAX_FILES, MAX_INPUT_BYTES},
    share::{LEAST_BYTES, NewUpload, Store, claim},
    store::{content_length, has_money, run_to_completion, unavailable},
};
use crate::{
    app::App,
    error::Problem,
    state::{StoredDataset, uploads::Claim},
};

/// Most pages of jobs that are read.
const MAX_PAGES: usize = 20;
/// The shortest beginning of an id that names a dataset.
const MIN_PREFIX: usize = 8;
/// Contents that are looked up at the same time.
const LOOKUPS: usize = 16;
/// The metadata with the time at which a content was stored, milliseconds since 1970.
const STORED_AT: &str = "stored_at";

/// A range of the different contents of a manifest, in the order of its files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, IntoParams)]
pub(crate) struct ContentRange {
    /// Index of the first content.
    #[serde(default)]
    pub(crate) first: usize,
    /// Number of contents.
    #[serde(default)]
    pub(crate) count: usize,
}

/// The manifests that are read, parsed or looked up at the same time: each may have megabytes and thousands of files.
static MANIFESTS: Semaphore = Semaphore::const_new(4);
/// The answers with several contents that are sent at the same time: each takes up to [`MAX_PACK_BYTES`] of memory.
static PACKS: Semaphore = Semaphore::const_new(32);

async fn turn() -> Result<SemaphorePermit<'static>, Problem> {
    MANIFESTS.acquire().await.map_err(|e| Problem::internal(&e))
}

fn manifest_name(account: AccountId, dataset: &DatasetId) -> String {
    format!("{account}/manifest/{dataset}")
}

fn content_name(account: AccountId, sha256: &str) -> String {
    format!("{account}/content/{sha256}")
}

fn invalid(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "InvalidDataset", detail)
}

/// The manifest of a dataset that an account has stored; `None` if there is none.
pub(crate) async fn manifest(
    app: &App,
    account: AccountId,
    dataset: &DatasetId,
) -> Result<Option<DatasetManifest>, Problem> {
    let _turn = turn().await?;
    let Some(reader) = app.inputs.read(&manifest_name(account, dataset), 0).await.map_err(unavailable)? else {
        return Ok(None);
    };
    let mut text = Vec::new();
    reader.take(MAX_INPUT_BYTES).read_to_end(&mut text).await.map_err(unavailable)?;
    Ok(Some(serde_json::from_slice(&text).map_err(unavailable)?))
}

/// Stores a manifest. Returns the ranges of the contents that must be uploaded; none if the dataset is complete.
pub(crate) async fn store_manifest(
    app: &App,
    account: AccountId,
    dataset: &DatasetId,
    manifest: &DatasetManifest,
) -> Result<Vec<ContentRange>, Problem> {
    manifest.check().map_err(|e| invalid(format!("The dataset is refused: {e}.")))?;
    let text = manifest.canonical().map_err(|e| Problem::internal(&e))?;
    if manifest.id().map_err(|e| Problem::internal(&e))? != *dataset {
        return Err(invalid("The id is not the SHA-256 of the manifest in canonical form."));
    }
    let contents = manifest.contents();
    if let Some(reason) = manifest.too_large() {
        return Err(invalid(reason));
    }
    let stored = look_up(app, account, &contents).await?;
    let lacking = Lacking::of(&stored, &contents);
    let owner = Owner { account, has_money: has_money(app, Actor::Account(account), account).await? };
    let (name, bytes) = (manifest_name(account, dataset), text.len() as u64);
    let new = |file: String, bytes, files, replaced| NewUpload { file, owner, bytes, files, replaced, attempt: None };
    // A dataset that has no room is refused before its first byte is sent.
    let all = new(format!("{name}/all"), lacking.bytes + bytes, lacking.files + 1, lacking.replaced);
    claim_room(app, all).await?.release().await;
    // The manifest is stored again each time, so that it stays as long as the contents.
    let known = app.inputs.info(&name).await.map_err(unavailable)?.map_or(0, |known| known.bytes.max(LEAST_BYTES));
    let claim = claim_room(app, new(name.clone(), bytes, 1, known)).await?;
    let (files, file) = (app.inputs.clone(), NewFile { name, owner, metadata: HashMap::new() });
    run_to_completion(async move {
        claim.run(bytes, async move { files.put(file, text.as_slice()).await.map_err(unavailable) }).await
    })
    .await?;
    Ok(missing(&stored))
}

/// Claims room in the store of inputs. A client that tries again gets its turn after the other upload.
async fn claim_room(app: &App, new: NewUpload) -> Result<Claim, Problem> {
    let store = Store { files: &app.inputs, name: INPUTS, most: MAX_ACCOUNT_BYTES, most_files: MAX_FILES, days: 30 };
    claim(app, store, new).await.map_err(|problem| match problem.status {
        409 => {
            let detail = "Another upload of yours runs: try again when it has ended.";
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "InProgress", detail)
        }
        _ => problem,
    })
}

/// How a content is stored.
#[derive(Clone, Copy)]
enum Stored {
    /// The content stays as long as a dataset that is uploaded now.
    Fresh,
    /// The content would be removed before the dataset, or a file with other bytes has its place: so many bytes count
    /// in the share of its owner.
    Stale(u64),
    No,
}

/// The contents that an upload would store, and what they replace.
#[derive(Default)]
struct Lacking {
    files: usize,
    /// Bytes, as they count in a share.
    bytes: u64,
    /// The bytes of stored files that would be replaced, as they count in a share.
    replaced: u64,
}

impl Lacking {
    fn of(stored: &[Stored], contents: &[&DatasetFile]) -> Self {
        let mut lacking = Self::default();
        for (stored, content) in stored.iter().zip(contents) {
            match stored {
                Stored::Fresh => continue,
                Stored::Stale(bytes) => lacking.replaced += bytes,
                Stored::No => {}
            }
            lacking.files += 1;
            lacking.bytes += content.bytes.max(LEAST_BYTES);
        }
        lacking
    }
}

/// The ranges of the contents that must be uploaded.
fn missing(stored: &[Stored]) -> Vec<ContentRange> {
    let mut ranges: Vec<ContentRange> = Vec::new();
    for (index, _) in stored.iter().enumerate().filter(|(_, stored)| !matches!(stored, Stored::Fresh)) {
        match ranges.last_mut().filter(|last| last.first + last.count == index) {
            Some(last) => last.count += 1,
            None => ranges.push(ContentRange { first: index, count: 1 }),
        }
    }
    ranges
}

/// Looks up how each content is stored.
async fn look_up(app: &App, account: AccountId, contents: &[&DatasetFile]) -> Result<Vec<Stored>, Problem> {
    let _turn = turn().await?;
    let lookups: Vec<_> = contents.iter().map(|content| stored(app, account, (*content).clone())).collect();
    stream::iter(lookups).buffered(LOOKUPS).try_collect().await
}

async fn stored(app: &App, account: AccountId, content: DatasetFile) -> Result<Stored, Problem> {
    let found = app.inputs.info(&content_name(account, &content.sha256)).await.map_err(unavailable)?;
    let Some(info) = found else { return Ok(Stored::No) };
    let stored_at = info.metadata.get(STORED_AT).and_then(|at| at.parse().ok()).map(Timestamp::from_millis);
    let reserve = Millis(INPUTS_KEPT.saturating_sub(DATASETS_KEPT).as_millis().try_into().unwrap_or(0));
    let is_new = stored_at.is_some_and(|at| app.now().since(at) < reserve);
    let is_fresh = is_new && info.sha256 == content.sha256 && info.bytes == content.bytes;
    Ok(if is_fresh { Stored::Fresh } else { Stored::Stale(info.bytes.max(LEAST_BYTES)) })
}

/// The contents of a range. Refuses a range outside of the manifest, and one that is too large for one request.
fn contents_of(manifest: &DatasetManifest, range: ContentRange) -> Result<Vec<&DatasetFile>, Problem> {
    let contents = manifest.contents();
    let end = range.first.saturating_add(range.count);
    let chosen = contents.get(range.first..end).filter(|chosen| !chosen.is_empty());
    let chosen = chosen.ok_or_else(|| invalid("The dataset has no such range of contents."))?;
    let bytes: u64 = chosen.iter().map(|content| content.bytes).sum();
    if chosen.len() > MAX_PACK_FILES || (chosen.len() > 1 && bytes > MAX_PACK_BYTES) {
        let mib = MAX_PACK_BYTES >> 20;
        let most = MAX_PACK_FILES;
        return Err(invalid(format!("One request has at most {most} contents and {mib} MiB, or one content.")));
    }
    Ok(chosen.to_vec())
}

/// Stores the contents of a range: the body has their bytes one after the other. Each content is compared with its
/// hash.
pub(crate) async fn store_contents(
    app: &App,
    account: AccountId,
    dataset: &DatasetId,
    range: ContentRange,
    request: Request,
) -> Result<(), Problem> {
    let manifest = manifest(app, account, dataset).await?.ok_or_else(|| Problem::not_found("manifest"))?;
    let contents = contents_of(&manifest, range)?;
    let bytes: u64 = contents.iter().map(|content| content.bytes).sum();
    if content_length(request.headers(), MAX_INPUT_BYTES)? != bytes {
        return Err(invalid(format!("These contents have {bytes} bytes.")));
    }
    let owner = Owner { account, has_money: has_money(app, Actor::Account(account), account).await? };
    // Two uploads of one account at the same time could store one content twice, and keep the bytes of only one in
    // view.
    let file = format!("{account}/contents");
    let stored = look_up(app, account, &contents).await?;
    let lacking = Lacking::of(&stored, &contents);
    let new = NewUpload {
        file,
        owner,
        bytes: lacking.bytes,
        files: lacking.files,
        replaced: lacking.replaced,
        attempt: None,
    };
    let claim = claim_room(app, new).await?;
    let contents: Vec<_> = contents.into_iter().cloned().zip(stored).collect();
    let (app, body) = (app.clone(), request.into_body());
    let work = async move { claim.run(lacking.bytes, store_each(&app, owner, contents, body)).await };
    Box::pin(run_to_completion(work)).await
}

async fn store_each(app: &App, owner: Owner, contents: Vec<(DatasetFile, Stored)>, body: Body) -> Result<(), Problem> {
    // An error of the connection ends the bytes: a store that gets the error would keep the pieces before it.
    let pieces = body.into_data_stream().take_while(|piece| ready(piece.is_ok())).map_err(io::Error::other);
    let mut body = StreamReader::new(pieces);
    for (DatasetFile { sha256, bytes, .. }, stored) in contents {
        let mut content = (&mut body).take(bytes);
        if matches!(stored, Stored::Fresh) {
            tokio::io::copy(&mut content, &mut tokio::io::sink()).await.map_err(|_| incomplete())?;
        } else if bytes <= MAX_PACK_BYTES {
            // Wrong bytes are noticed before they are stored.
            let mut all = Vec::new();
            content.read_to_end(&mut all).await.map_err(|_| incomplete())?;
            if (all.len() as u64) < bytes {
                return Err(incomplete());
            }
            if gpubnb_events::hex(Sha256::digest(&all)) != sha256 {
                return Err(other_bytes(&sha256));
            }
            put(app, owner, &sha256, all.as_slice()).await?;
        } else {
            let info = put(app, owner, &sha256, &mut content).await?;
            if info.sha256 != sha256 {
                app.inputs.delete(&content_name(owner.account, &sha256)).await.map_err(unavailable)?;
                return Err(if info.bytes < bytes { incomplete() } else { other_bytes(&sha256) });
            }
        }
    }
    Ok(())
}

async fn put(
    app: &App,
    owner: Owner,
    sha256: &str,
    content: impl AsyncRead + Send + Unpin,
) -> Result<FileInfo, Problem> {
    let metadata = HashMap::from([(STORED_AT.to_owned(), app.now().millis().to_string())]);
    let file = NewFile { name: content_name(owner.account, sha256), owner, metadata };
    app.inputs.put(file, content).await.map_err(unavailable)
}

fn other_bytes(sha256: &str) -> Problem {
    invalid(format!("The bytes do not have the hash {sha256}: the file has changed."))
}

fn incomplete() -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "Incomplete", "The upload broke off: try again.")
}

/// Looks up the datasets that a job request names. A dataset of another account is not found.
pub(crate) async fn resolve_datasets(
    app: &App,
    account: AccountId,
    requested: &[DatasetRequest],
    until: Timestamp,
) -> Result<Vec<DatasetMount>, Problem> {
    if requested.is_empty() {
        return Ok(Vec::new());
    }
    let known = app.datasets.of(account, app.now()).await?;
    let resolve = |request: &DatasetRequest| {
        let wanted = request.dataset.trim();
        let found = find(&known, wanted).ok_or_else(|| {
            let detail = format!("You have no dataset {wanted}: upload one with `gpubnb data push`.");
            Problem::invalid("datasets", detail)
        })?;
        if found.kept_until < until {
            let detail = format!("The dataset {wanted} may be removed before this job ends: upload it again.");
            return Err(Problem::invalid("datasets", detail));
        }
        let directory = request.directory.clone().or_else(|| found.name.clone());
        Ok(DatasetMount {
            dataset: found.dataset.clone(),
            directory: directory.unwrap_or_else(|| found.dataset.short().to_owned()),
            writable: request.writable,
            files: found.files,
            bytes: found.bytes,
        })
    };
    requested.iter().map(resolve).collect()
}

/// The newest dataset with this name, or the one whose id begins so. Several ids that begin so are none.
fn find<'a>(known: &'a [StoredDataset], wanted: &str) -> Option<&'a StoredDataset> {
    if let Some(named) = known.iter().find(|dataset| dataset.name.as_deref() == Some(wanted)) {
        return Some(named);
    }
    let is_long = wanted.len() >= MIN_PREFIX;
    let mut found = known.iter().filter(|dataset| is_long && dataset.dataset.as_str().starts_with(wanted));
    let first = found.next()?;
    found.all(|other| other.dataset == first.dataset).then_some(first)
}

/// Removes a dataset that no open job has, and the contents that no other dataset of the account has.
pub(crate) async fn remove_dataset(app: &App, account: AccountId, dataset: &DatasetId) -> Result<(), Problem> {
    let removed = manifest(app, account, dataset).await?.ok_or_else(|| Problem::not_found("dataset"))?;
    let mut open = datasets_of_open_jobs(app, account).await?;
    open.extend(datasets_of_open_batches(app, account).await?);
    if let Some(needed_by) = open.get(dataset) {
        let detail = format!("{needed_by} has not ended, and needs this dataset: cancel it, or wait.");
        return Err(Problem::new(StatusCode::CONFLICT, "InUse", detail));
    }
    let (app, dataset) = (app.clone(), dataset.clone());
    // Whoever asked may have gone, and the contents of a dataset without a list could not be found again.
    let work = async move {
        app.datasets.remove(account, &dataset).await?;
        let listed = app.datasets.of(account, app.now()).await?.into_iter().map(|other| other.dataset);
        let mut kept = HashSet::new();
        for other in listed.chain(open.into_keys()) {
            let other = manifest(&app, account, &other).await?.unwrap_or_default();
            kept.extend(other.files.into_iter().map(|file| file.sha256));
        }
        let unused = removed.contents().into_iter().filter(|content| !kept.contains(&content.sha256));
        let names: Vec<_> = unused.map(|content| content_name(account, &content.sha256)).collect();
        let files = &app.inputs;
        let removals = names.into_iter().map(|name| async move { files.delete(&name).await.map_err(unavailable) });
        stream::iter(removals).buffer_unordered(LOOKUPS).try_collect::<()>().await?;
        files.delete(&manifest_name(account, &dataset)).await.map_err(unavailable)
    };
    Box::pin(run_to_completion(work)).await
}

/// The datasets of the batches of an account that are not over, with the name of one batch of each.
async fn datasets_of_open_batches(app: &App, account: AccountId) -> Result<HashMap<DatasetId, String>, Problem> {
    let mut open = HashMap::new();
    let newest = app.datasets.newest_submission(account);
    let mut query = BatchesQuery { account, cursor: None, limit: 50 };
    for _ in 0..MAX_PAGES {
        let page = app.queries.batches(Actor::Account(account), query.clone(), newest).await?;
        for batch in page.rows.iter().filter(|batch| !batch.is_over()) {
            let name = format!("The batch {}", batch.batch);
            open.extend(batch.spec.datasets.iter().map(|mount| (mount.dataset.clone(), name.clone())));
        }
        query.cursor = page.next;
        if query.cursor.is_none() {
            break;
        }
    }
    Ok(open)
}

/// The datasets of the jobs of an account that have not ended, with the name of one job of each.
async fn datasets_of_open_jobs(app: &App, account: AccountId) -> Result<HashMap<DatasetId, String>, Problem> {
    let mut open = HashMap::new();
    let mut query = JobsQuery { account: Some(account), limit: Some(100), ..JobsQuery::default() };
    let newest = app.datasets.newest_submission(account);
    // A page of jobs has the newest first, and an account may have some hundred open jobs.
    for _ in 0..MAX_PAGES {
        let page = app.queries.jobs(Actor::Account(account), query.clone(), newest).await?;
        for job in page.rows.iter().filter(|job| job.ended_at.is_none()) {
            let name = format!("The job {}", job.job);
            open.extend(job.spec.datasets.iter().map(|mount| (mount.dataset.clone(), name.clone())));
        }
        query.cursor = page.next;
        if query.cursor.is_none() {
            break;
        }
    }
    Ok(open)
}

/// The answer to a machine with a permit: the manifest, or the bytes of some contents, one after the other. A single
/// content can be asked for in ranges.
pub(super) async fn deliver_dataset(
    app: &App,
    account: AccountId,
    dataset: &DatasetId,
    range: ContentRange,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let manifest = manifest(app, account, dataset).await?.ok_or_else(not_stored)?;
    if range.count == 0 {
        let text = manifest.canonical().map_err(|e| Problem::internal(&e))?;
        return Ok(Response::new(Body::from(text)));
    }
    let contents = contents_of(&manifest, range)?;
    let names: Vec<_> = contents.iter().map(|content| content_name(account, &content.sha256)).collect();
    if let [name] = names.as_slice() {
        return Ok(deliver(headers, StoredFile::open(&app.inputs, name).await?, name, Disposition::Attachment));
    }
    // A content that is gone stays gone, so the machine need not try again.
    if app.inputs.info(&names[0]).await.map_err(unavailable)?.is_none() {
        return Err(not_stored());
    }
    let busy = |_| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "Busy", "Too many datasets are sent now: try again.");
    let permit = PACKS.try_acquire().map_err(busy)?;
    // The contents are small, and each takes the store some time: several are read at the same time.
    let files = app.inputs.clone();
    let contents = names.into_iter().map(move |name| {
        let files = files.clone();
        async move {
            let gone = || io::Error::new(io::ErrorKind::NotFound, "a file of the dataset is not stored");
            let reader = files.read(&name, 0).await.map_err(io::Error::other)?.ok_or_else(gone)?;
            let mut content = Vec::new();
            reader.take(MAX_PACK_BYTES).read_to_end(&mut content).await?;
            Ok::<_, io::Error>(content)
        }
    });
    let body = stream::iter(contents).buffered(LOOKUPS).inspect(move |_| _ = &permit);
    Ok(Response::new(Body::from_stream(body)))
}

fn not_stored() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "NotStored", "This dataset is not stored, or it was deleted.")
}
