//! `/.well-known/gpubnb.json`: the document that the market publishes for anybody.

use axum::{
    Json,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::{access::Viewer, app::App, error::ApiError};

/// A copy may be kept for 300 seconds. A new key comes only with a restart of the projector, and is used for years.
const CACHING: &str = "public, max-age=300";

/// The document that the market publishes.
#[derive(Serialize)]
struct Published {
    /// The public keys with which the market signs the heads of its log.
    head_keys: Vec<String>,
}

/// `GET /.well-known/gpubnb.json`.
pub(crate) async fn page(State(app): State<App>, viewer: Viewer) -> Result<Response, ApiError> {
    let head_keys = app.queries.head_keys(viewer.actor()).await?;
    Ok(([(header::CACHE_CONTROL, CACHING)], Json(Published { head_keys })).into_response())
}
