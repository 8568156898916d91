//! Failures as programs and people see them: `application/problem+json` (RFC 9457), or a page that is drawn later.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use gpubnb_events::{Refusal, RefusalKind};
use gpubnb_runtime::rpc::Failure;
use serde::Serialize;
use tracing::{error, warn};

/// A failure, with its HTTP status.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub(crate) struct Problem {
    /// HTTP status.
    pub(crate) status: u16,
    /// The name of the refusal.
    pub(crate) title: String,
    /// A sentence that says what happened and what to do.
    pub(crate) detail: String,
    /// The field at fault, if the fault is in one field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) field: Option<String>,
    /// Seconds after which to try again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retry_after: Option<u64>,
}

/// A problem in an answer of the API.
#[derive(Debug)]
pub(crate) struct ApiError(pub(crate) Problem);

/// A problem in place of a page. The response has no body: it carries the [`Problem`] as an extension, and
/// `page::error::draw` makes a page of it, because only there is known how a page looks.
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

    /// The same answer for an unknown address and for a wrong password, so that nobody learns which addresses have
    /// accounts.
    pub(crate) fn bad_credentials() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "BadCredentials", "Wrong e-mail or password.")
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
            "Something went wrong on our side. We logged it; please try again.",
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

impl IntoResponse for PageError {
    fn into_response(self) -> Response {
        let mut response = self.0.with_headers(self.0.code().into_response());
        response.extensions_mut().insert(self.0);
        response
    }
}
