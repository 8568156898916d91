//! Conditional requests. An answer of the API carries an `ETag`, a hash of its body. A client that already has this
//! body gets an empty answer with the status 304. This saves only the transfer; the answer is still computed.

use axum::{
    body::{Body, to_bytes},
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use sha2::{Digest as _, Sha256};

use crate::error::{ApiError, Problem};

/// The maximum size of an answer, in bytes. The answer is held in memory and hashed.
const MAX_BYTES: usize = 8 << 20;

/// True if the header `If-None-Match` contains the `ETag`.
pub(crate) fn matches_etag(headers: &HeaderMap, etag: &str) -> bool {
    let sent = headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok());
    sent.is_some_and(|tags| tags.split(',').any(|tag| tag.trim().trim_start_matches("W/") == etag))
}

/// Middleware that adds an `ETag` to each answer of the API, and answers conditional requests.
pub(crate) async fn add_etags(request: Request, next: Next) -> Response {
    let is_api_read = request.method() == Method::GET && request.uri().path().starts_with("/api/v1/");
    let headers = request.headers().clone();
    let response = next.run(request).await;
    let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if !is_api_read || !is_json || response.status() != StatusCode::OK {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let bytes = match to_bytes(body, MAX_BYTES).await {
        Ok(bytes) => bytes,
        Err(e) => return ApiError(Problem::internal(&e)).into_response(),
    };
    let etag = format!("\"{}\"", gpubnb_events::hex(&Sha256::digest(&bytes)[..16]));
    if let Ok(value) = HeaderValue::from_str(&etag) {
        parts.headers.insert(header::ETAG, value);
        parts.headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    }
    if matches_etag(&headers, &etag) {
        parts.status = StatusCode::NOT_MODIFIED;
        parts.headers.remove(header::CONTENT_LENGTH);
        return Response::from_parts(parts, Body::empty());
    }
    Response::from_parts(parts, Body::from(bytes))
}
