//! The parts of a request. What cannot be read is said in the form of the asker: a page, or problem+json.

use axum::{
    extract::{FromRequest, FromRequestParts, Request, rejection},
    http::{StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use gpubnb_events::Seq;
use serde::{Deserialize, de::DeserializeOwned};

use crate::error::{ApiError, PageError, Problem};

/// The variable parts of the address.
pub(crate) struct Path<T>(pub(crate) T);

/// What follows the question mark.
pub(crate) struct Query<T>(pub(crate) T);

/// What to have seen before answering: the sequence that the last command came back with.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct AtLeast {
    /// In addresses of pages.
    #[serde(default)]
    seq: u64,
    /// In the API.
    #[serde(default)]
    min_seq: u64,
}

impl AtLeast {
    /// The sequence.
    pub(crate) fn seq(&self) -> Seq {
        Seq(self.seq.max(self.min_seq))
    }
}

/// A form.
pub(crate) struct Form<T>(pub(crate) T);

/// A request that could not be read.
pub(crate) struct Unreadable {
    problem: Problem,
    for_program: bool,
}

impl Unreadable {
    fn new(status: StatusCode, path: &str, detail: &dyn std::fmt::Display) -> Self {
        let problem = Problem::new(status, "BadRequest", format!("The request could not be read: {detail}."));
        Self { problem, for_program: path.starts_with("/api/") || path.starts_with("/transfer/") }
    }
}

impl IntoResponse for Unreadable {
    fn into_response(self) -> Response {
        if self.for_program { ApiError(self.problem).into_response() } else { PageError(self.problem).into_response() }
    }
}

/// The address as the client wrote it, also below a nested router.
fn path_of(parts: &Parts) -> String {
    parts.extensions.get::<axum::extract::OriginalUri>().map_or_else(|| parts.uri.path(), |uri| uri.path()).to_owned()
}

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Unreadable;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Unreadable> {
        let path = path_of(parts);
        let read = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        // An address that names nothing there could be is simply not there.
        read.map(|axum::extract::Path(value)| Self(value))
            .map_err(|e: rejection::PathRejection| Unreadable::new(StatusCode::NOT_FOUND, &path, &e.body_text()))
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Unreadable;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Unreadable> {
        let path = path_of(parts);
        let read = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        read.map(|axum::extract::Query(value)| Self(value))
            .map_err(|e| Unreadable::new(StatusCode::BAD_REQUEST, &path, &e.body_text()))
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Form<T> {
    type Rejection = Unreadable;

    async fn from_request(request: Request, state: &S) -> Result<Self, Unreadable> {
        let (parts, body) = request.into_parts();
        let path = path_of(&parts);
        let request = Request::from_parts(parts, body);
        let read = axum::extract::Form::<T>::from_request(request, state).await;
        read.map(|axum::extract::Form(value)| Self(value))
            .map_err(|e| Unreadable::new(StatusCode::BAD_REQUEST, &path, &e.body_text()))
    }
}
