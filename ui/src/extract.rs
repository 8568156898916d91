//! Extractors: types that read a part of a request. If the part cannot be read, a browser gets an error page, and a
//! program gets `application/problem+json`.

use std::net::IpAddr;

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Request, rejection},
    http::{StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use gpubnb_events::{AccountId, Seq};
use serde::{Deserialize, de::DeserializeOwned};
use utoipa::IntoParams;

use crate::{
    app::App,
    error::{ApiError, PageError, Problem},
};

/// The variable parts of the path, such as the id in `/jobs/{job}`.
pub(crate) struct Path<T>(pub(crate) T);

/// The parameters of the query string.
pub(crate) struct Query<T>(pub(crate) T);

/// A query parameter: the answer must reflect all events up to this sequence. A client sends the sequence that its last
/// command returned, so that the answer shows the effect of this command.
#[derive(Debug, Default, Deserialize, IntoParams)]
pub(crate) struct MinSeq {
    /// The same as `min_seq`, in addresses of pages.
    #[serde(default)]
    #[param(ignore)]
    seq: u64,
    /// The sequence of your last command, which the answer must include.
    #[serde(default)]
    min_seq: u64,
}

impl MinSeq {
    /// The sequence from either parameter.
    pub(crate) fn seq(&self) -> Seq {
        Seq(self.seq.max(self.min_seq))
    }
}

/// A query parameter that chooses a page of the list of accounts: the page begins after this account.
#[derive(Debug, Default, Deserialize, IntoParams)]
pub(crate) struct AfterAccount {
    /// The last account of the previous page.
    #[serde(default)]
    #[param(value_type = Option<String>)]
    pub(crate) after: Option<AccountId>,
}

/// The fields of a submitted HTML form.
pub(crate) struct Form<T>(pub(crate) T);

/// A JSON body. The answer to an invalid body names the line and the column of the error.
pub(crate) struct JsonBody<T>(pub(crate) T);

/// A request that could not be read.
pub(crate) struct Unreadable {
    problem: Problem,
    for_program: bool,
}

impl Unreadable {
    /// An address with an invalid id. A person sees that the address is wrong, and a program what is wrong with it.
    fn no_such_path(path: &str, detail: &str) -> Self {
        if is_api_path(path) {
            return Self::new(StatusCode::NOT_FOUND, path, &detail);
        }
        let detail = "There is nothing at this address. A part of it may be missing.";
        Self { problem: Problem::new(StatusCode::NOT_FOUND, "NotFound", detail), for_program: false }
    }

    fn new(status: StatusCode, path: &str, detail: &dyn std::fmt::Display) -> Self {
        let problem = Problem::new(status, "BadRequest", format!("The request could not be read: {detail}."));
        Self { problem, for_program: is_api_path(path) }
    }
}

impl IntoResponse for Unreadable {
    fn into_response(self) -> Response {
        if self.for_program { ApiError(self.problem).into_response() } else { PageError(self.problem).into_response() }
    }
}

/// True for the paths of the API and of file transfers. They are used by programs, and other paths by browsers.
pub(crate) fn is_api_path(path: &str) -> bool {
    path.starts_with("/api/") || path.starts_with("/transfer/")
}

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Unreadable;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Unreadable> {
        let path = parts.uri.path().to_owned();
        let read = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        // An invalid id, as in `/jobs/nonsense`, is answered like the id of a job that does not exist.
        read.map(|axum::extract::Path(value)| Self(value))
            .map_err(|e: rejection::PathRejection| Unreadable::no_such_path(&path, &e.body_text()))
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

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        if !kind.starts_with("application/json") {
            let detail = "Send JSON, with the header `Content-Type: application/json`.";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "NotJson", detail).into());
        }
        let body = Bytes::from_request(request, state).await.map_err(|_| Problem::too_large())?;
        serde_json::from_slice(&body).map(Self).map_err(|e| {
            Problem::new(StatusCode::BAD_REQUEST, "BadJson", format!("The request could not be read: {e}.")).into()
        })
    }
}

/// The address at which the client reaches this server, for example `https://market.example`. Pages show it in commands
/// that people paste into a terminal, and that send a token there.
pub(crate) struct Origin(pub(crate) String);

impl FromRequestParts<App> for Origin {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Self::Rejection> {
        let text = |name| parts.headers.get(name).and_then(|v: &axum::http::HeaderValue| v.to_str().ok());
        // A browser sends `Origin` with a form. `serve.rs` refuses foreign origins, so this is the server's own origin.
        let origin = text(header::ORIGIN).filter(|origin| origin.contains("://"));
        let host = text(header::HOST).or_else(|| parts.uri.authority().map(axum::http::uri::Authority::as_str));
        Ok(Self(
            origin.or(app.url.as_deref()).map_or_else(|| origin_of_host(host.unwrap_or_default()), ToOwned::to_owned),
        ))
    }
}

/// The origin of a host. Only a host on this computer is reached without TLS: a token must not travel in clear text.
fn origin_of_host(host: &str) -> String {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let is_local =
        name == "localhost" || name.trim_matches(['[', ']']).parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    format!("{}://{host}", if is_local { "http" } else { "https" })
}
