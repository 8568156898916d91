//! `/api/v1/datasets`: the datasets of an account, which are directories of files for its jobs.

use axum::{
    Json,
    body::to_bytes,
    extract::{Request, State},
    http::StatusCode,
};
use gpubnb_events::dataset::{DatasetId, DatasetManifest, is_dataset_name};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{
    access::SignedIn,
    app::App,
    error::{ApiError, Problem},
    extract::{Path, Query},
    state::StoredDataset,
    transfer::{self, ContentRange},
};

/// Largest manifest, bytes.
const MAX_MANIFEST: usize = 8 << 20;

/// `GET /datasets`: the caller's datasets, newest first.
pub(crate) async fn list(State(app): State<App>, signed_in: SignedIn) -> Result<Json<Vec<StoredDataset>>, ApiError> {
    Ok(Json(app.datasets.of(signed_in.account, app.now()).await?))
}

/// `GET /datasets/{dataset}`: the manifest of a dataset.
pub(crate) async fn manifest(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(dataset): Path<DatasetId>,
) -> Result<Json<DatasetManifest>, ApiError> {
    let manifest = transfer::manifest(&app, signed_in.account, &dataset).await?;
    Ok(Json(manifest.ok_or_else(|| Problem::not_found("dataset"))?))
}

/// Query parameters of `PUT /datasets/{dataset}`.
#[derive(Debug, Default, Deserialize, IntoParams)]
pub(crate) struct NewDataset {
    /// A name for the dataset. A name stands for the newest dataset with this name.
    #[serde(default)]
    name: Option<String>,
}

/// The state of an upload.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DatasetUpload {
    /// The dataset; `null` while contents are missing.
    stored: Option<StoredDataset>,
    /// The contents that must be uploaded: ranges of the manifest's different contents, in the order of the files.
    missing: Vec<ContentRange>,
}

/// `PUT /datasets/{dataset}`: stores the manifest, and tells which contents are missing. If none is, the dataset is
/// complete.
pub(crate) async fn put(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(dataset): Path<DatasetId>,
    Query(NewDataset { name }): Query<NewDataset>,
    request: Request,
) -> Result<Json<DatasetUpload>, ApiError> {
    if name.as_deref().is_some_and(|name| !is_dataset_name(name)) {
        let detail = "The name of a dataset has at most 64 letters, digits, `.`, `_` and `-`.";
        return Err(Problem::invalid("name", detail).into());
    }
    let body = to_bytes(request.into_body(), MAX_MANIFEST).await.map_err(|_| Problem::too_large())?;
    let manifest: DatasetManifest = serde_json::from_slice(&body).map_err(|e| {
        Problem::new(StatusCode::BAD_REQUEST, "BadRequest", format!("The manifest could not be read: {e}."))
    })?;
    let missing = transfer::store_manifest(&app, signed_in.account, &dataset, &manifest).await?;
    if !missing.is_empty() {
        return Ok(Json(DatasetUpload { stored: None, missing }));
    }
    let files = u32::try_from(manifest.files.len() + manifest.links.len()).unwrap_or(u32::MAX);
    let added = StoredDataset::new(dataset, name, files, manifest.bytes(), app.now());
    let stored = Some(app.datasets.add(signed_in.account, &added).await?);
    Ok(Json(DatasetUpload { stored, missing }))
}

/// `PUT /datasets/{dataset}/contents`: uploads the contents of a range, one after the other in one body.
pub(crate) async fn put_contents(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(dataset): Path<DatasetId>,
    Query(range): Query<ContentRange>,
    request: Request,
) -> Result<StatusCode, ApiError> {
    Box::pin(transfer::store_contents(&app, signed_in.account, &dataset, range, request)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `DELETE /datasets/{dataset}`: removes a dataset that no waiting or running job needs.
pub(crate) async fn delete(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(dataset): Path<DatasetId>,
) -> Result<StatusCode, ApiError> {
    Box::pin(transfer::remove_dataset(&app, signed_in.account, &dataset)).await?;
    Ok(StatusCode::NO_CONTENT)
}
