//! Errors in answers. A program gets `application/problem+json` (RFC 9457), and a browser gets an error page.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use gpubnb_events::{Refusal, RefusalKind};
use gpubnb_runtime::rpc::RpcError;
use serde::Serialize;
use tracing::{error, warn};

/// The content of an error, for every form of an answer.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub(crate) struct Problem {
    /// HTTP status code.
    pub(crate) status: u16,
    /// Name of the error, for example `NotFound`.
    pub(crate) title: String,
    /// A sentence that says what happened and what to do.
    pub(crate) detail: String,
    /// Name of the invalid field, if one field caused the error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) field: Option<String>,
    /// Seconds to wait before the next attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retry_after: Option<u64>,
}

/// An error that is answered as JSON (`application/problem+json`).
#[derive(Debug)]
pub(crate) struct ApiError(pub(crate) Problem);

/// An error in place of a page. The response has no body. It carries the [`Problem`] as an extension, from which the
/// middleware `page::error::render_errors` renders the error page.
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

    /// `what` is a noun, for example `job`.
    pub(crate) fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", format!("There is no such {what}."))
    }

    pub(crate) fn sign_in_needed() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "SignInNeeded", "Sign in first.")
    }

    /// The error for an unknown e-mail address and for a wrong password. It does not reveal whether the address has an
    /// account.
    pub(crate) fn bad_credentials() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "BadCredentials", "Wrong e-mail or password.")
    }

    pub(crate) fn bad_token() -> Self {
        let detail = "The token is not known, has expired, or was revoked.";
        Self::new(StatusCode::UNAUTHORIZED, "BadToken", detail)
    }

    pub(crate) fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "Forbidden", detail)
    }

    pub(crate) fn too_large() -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "TooLarge", "The request is too large.")
    }

    /// `sentence` says which limit was exceeded.
    pub(crate) fn too_many(sentence: &str, seconds: u64) -> Self {
        let detail = format!("{sentence} Try again in {seconds} s.");
        Self { retry_after: Some(seconds), ..Self::new(StatusCode::TOO_MANY_REQUESTS, "TooMany", detail) }
    }

    /// Logs `cause`, and hides it from the client.
    pub(crate) fn internal(cause: &dyn std::fmt::Display) -> Self {
        error!(error = %cause, "internal error");
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
        if self.status_code() == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }

    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl From<RpcError> for Problem {
    fn from(failure: RpcError) -> Self {
        match failure {
            RpcError::Refused(refusal) => refusal.into(),
            RpcError::Unavailable(cause) => {
                warn!(cause, "a service is unavailable");
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
        let mut response = (self.0.status_code(), Json(&self.0)).into_response();
        let kind = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        self.0.with_headers(response)
    }
}

impl IntoResponse for PageError {
    fn into_response(self) -> Response {
        let mut response = self.0.with_headers(self.0.status_code().into_response());
        response.extensions_mut().insert(self.0);
        response
    }
}
