//! Failures as people and programs see them: a page, or `application/problem+json` (RFC 9457).

use askama::Template;
use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use gpubnb_events::{Refusal, RefusalKind};
use gpubnb_runtime::rpc::Failure;
use serde::Serialize;
use tracing::{error, warn};

use crate::{access::Viewer, page::Chrome};

/// What went wrong.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub(crate) struct Problem {
    /// HTTP status.
    pub(crate) status: u16,
    /// The name of the refusal.
    pub(crate) title: String,
    /// What happened and what to do.
    pub(crate) detail: String,
    /// The field at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) field: Option<String>,
    /// When to try again, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retry_after: Option<u64>,
}

/// A problem of the API.
#[derive(Debug)]
pub(crate) struct ApiError(pub(crate) Problem);

/// A problem of a page.
#[derive(Debug)]
pub(crate) struct PageError(pub(crate) Problem);

impl Problem {
    pub(crate) fn new(status: StatusCode, title: &str, detail: impl Into<String>) -> Self {
        Self { status: status.as_u16(), title: title.to_owned(), detail: detail.into(), field: None, retry_after: None }
    }

    pub(crate) fn invalid(field: &str, detail: impl Into<String>) -> Self {
        let problem = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "InvalidField", detail);
        Self { field: Some(field.to_owned()), ..problem }
    }

    pub(crate) fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", format!("There is no such {what}."))
    }

    pub(crate) fn sign_in_needed() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "SignInNeeded", "Sign in first.")
    }

    /// The same for a person that is not there and for a password that is not right.
    pub(crate) fn bad_credentials() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "BadCredentials", "The address or the password is not right.")
    }

    pub(crate) fn bad_token() -> Self {
        let detail = "The token is not known, has run out, or was revoked.";
        Self::new(StatusCode::UNAUTHORIZED, "BadToken", detail)
    }

    pub(crate) fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "Forbidden", detail)
    }

    pub(crate) fn too_large() -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "TooLarge", "The request is too large.")
    }

    pub(crate) fn too_many(what: &str, seconds: u64) -> Self {
        let detail = format!("{what} Try again in {seconds} s.");
        Self { retry_after: Some(seconds), ..Self::new(StatusCode::TOO_MANY_REQUESTS, "TooMany", detail) }
    }

    pub(crate) fn internal(what: &dyn std::fmt::Display) -> Self {
        error!(error = %what, "internal");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "Internal",
            "Something broke on our side. It was noted; try again.",
        )
    }

    fn with_headers(&self, mut response: Response) -> Response {
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.code() == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }

    fn code(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(refusal) => refusal.into(),
            Failure::Unavailable(problem) => {
                warn!(problem, "unavailable");
                let detail = "A part of the market does not answer right now. Nothing is lost: try again in a moment.";
                let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "Unavailable", detail);
                Self { retry_after: Some(2), ..problem }
            }
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal.kind {
            RefusalKind::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            RefusalKind::NotFound => StatusCode::NOT_FOUND,
            RefusalKind::Forbidden => StatusCode::FORBIDDEN,
            RefusalKind::Conflict => StatusCode::CONFLICT,
            RefusalKind::Funds => StatusCode::PAYMENT_REQUIRED,
        };
        Self {
            status: status.as_u16(),
            title: refusal.name,
            detail: refusal.message,
            field: refusal.field,
            retry_after: None,
        }
    }
}

impl<E: Into<Problem>> From<E> for ApiError {
    fn from(problem: E) -> Self {
        Self(problem.into())
    }
}

impl<E: Into<Problem>> From<E> for PageError {
    fn from(problem: E) -> Self {
        Self(problem.into())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.0.code(), Json(&self.0)).into_response();
        let kind = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        self.0.with_headers(response)
    }
}

#[derive(Template)]
#[template(path = "error.html")]
struct ErrorPage<'a> {
    chrome: Chrome,
    problem: &'a Problem,
}

impl IntoResponse for PageError {
    fn into_response(self) -> Response {
        let page = ErrorPage { chrome: Chrome::new("Something is wrong", "", Viewer::present()), problem: &self.0 };
        match page.render() {
            Ok(html) => self.0.with_headers((self.0.code(), Html(html)).into_response()),
            Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
        }
    }
}
