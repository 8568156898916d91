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
        Self { problem, for_program: is_for_program(path) }
    }
}

impl IntoResponse for Unreadable {
    fn into_response(self) -> Response {
        if self.for_program { ApiError(self.problem).into_response() } else { PageError(self.problem).into_response() }
    }
}

/// Whether programs ask there, and not people.
pub(crate) fn is_for_program(path: &str) -> bool {
    path.starts_with("/api/") || path.starts_with("/transfer/")
}

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Unreadable;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Unreadable> {
        let path = parts.uri.path().to_owned();
        let read = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        // An address that names nothing there could be is simply not there.
        read.map(|axum::extract::Path(value)| Self(value))
            .map_err(|e: rejection::PathRejection| Unreadable::new(StatusCode::NOT_FOUND, &path, &e.body_text()))
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Unreadable;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Unreadable> {
        let path = parts.uri.path().to_owned();
        let read = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        read.map(|axum::extract::Query(value)| Self(value))
            .map_err(|e| Unreadable::new(StatusCode::BAD_REQUEST, &path, &e.body_text()))
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Form<T> {
    type Rejection = Unreadable;

    async fn from_request(request: Request, state: &S) -> Result<Self, Unreadable> {
        let path = request.uri().path().to_owned();
        let read = axum::extract::Form::<T>::from_request(request, state).await;
        read.map(|axum::extract::Form(value)| Self(value))
            .map_err(|e| Unreadable::new(StatusCode::BAD_REQUEST, &path, &e.body_text()))
    }
}

/// This server, as the client addressed it: for commands that are pasted elsewhere.
pub(crate) struct Origin(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for Origin {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let text = |name| parts.headers.get(name).and_then(|v: &axum::http::HeaderValue| v.to_str().ok());
        // The browser's own word; the gate has seen that it is of this host.
        let origin = text(axum::http::header::ORIGIN).filter(|origin| origin.contains("://")).map(ToOwned::to_owned);
        let authority = || parts.uri.authority().map(axum::http::uri::Authority::as_str);
        let host = || text(axum::http::header::HOST).or_else(authority).map(|host| format!("http://{host}"));
        Ok(Self(origin.or_else(host).unwrap_or_default()))
    }
}
