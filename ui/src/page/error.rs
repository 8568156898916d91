//! The error page.

use askama::Template;
use axum::{
    body::Body,
    extract::Request,
    http::{HeaderValue, header},
    middleware::Next,
    response::Response,
};

use super::Layout;
use crate::{access::Viewer, error::Problem};

#[derive(Template)]
#[template(path = "error.html")]
struct ErrorPage<'a> {
    layout: Layout,
    problem: &'a Problem,
}

/// Middleware. [`crate::error::PageError`] becomes a response with a [`Problem`] as extension and without a body; the
/// middleware sets the body to the error page.
pub(crate) async fn render_errors(request: Request, next: Next) -> Response {
    with_error_page(next.run(request).await)
}

fn with_error_page(mut response: Response) -> Response {
    let Some(problem) = response.extensions_mut().remove::<Problem>() else { return response };
    // The access gate adds the viewer to the response. If the request did not pass the gate, for example after a
    // time-out, the page looks as if nobody is signed in.
    let viewer = response.extensions().get::<Viewer>().copied().unwrap_or_default();
    let page = ErrorPage { layout: Layout::new("Something is wrong", "", viewer), problem: &problem };
    let (kind, body) = match page.render() {
        Ok(html) => ("text/html; charset=utf-8", html),
        Err(e) => {
            tracing::error!(error = &e as &dyn std::error::Error, "cannot render the error page");
            ("text/plain; charset=utf-8", problem.detail)
        }
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().remove(header::CONTENT_LENGTH);
    *response.body_mut() = Body::from(body);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::PageError;
    use axum::{body::to_bytes, http::StatusCode, response::IntoResponse as _};

    async fn text(response: Response) -> String {
        String::from_utf8(to_bytes(response.into_body(), 1 << 20).await.unwrap().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_problem_becomes_an_error_page_with_the_same_status_and_headers() {
        let problem = Problem::too_many("Too many <b>requests</b>.", 7);
        let response = with_error_page(PageError(problem).into_response());
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::RETRY_AFTER], "7");
        assert_eq!(response.headers()[header::CONTENT_TYPE], "text/html; charset=utf-8");
        let html = text(response).await;
        assert!(
            html.contains("<html") && html.contains("Try again in 7 s.") && !html.contains("<b>requests"),
            "{html}"
        );
    }

    #[tokio::test]
    async fn a_response_without_a_problem_is_unchanged() {
        let response = with_error_page((StatusCode::NOT_FOUND, "no").into_response());
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert_eq!(text(response).await, "no");
    }
}
