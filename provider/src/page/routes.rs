//! The addresses of the page. All but the one-time link begin with the secret of the session.

use askama::Template;
use axum::{
    Form, Router,
    body::Body,
    extract::{DefaultBodyLimit, Path, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Redirect, Response},
    routing::{get, post},
};
use gpubnb_events::{Clock as _, SystemClock, command::MachineChange};
use serde::Deserialize;

use super::{PageContext, url, view};
use crate::owner::{Pause, next_local_time};

/// Longest body of a request, bytes.
const MAX_BODY_BYTES: usize = 1_024;
/// The content security policy: the browser may load files of the page itself, and nothing else.
const CONTENT_POLICY: &str = "default-src 'none'; img-src data:; style-src 'self'; script-src 'self'; \
     connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

pub(super) fn router(context: PageContext) -> Router {
    let session = Router::new()
        .route("/{session}/", get(show))
        .route("/{session}/now", get(now))
        .route("/{session}/pause", post(pause))
        .route("/{session}/resume", post(resume))
        .route("/{session}/style.css", get(|| async { file("text/css", include_str!("style.css")) }))
        .route("/{session}/page.js", get(|| async { file("text/javascript", include_str!("page.js")) }))
        .route_layer(middleware::from_fn_with_state(context.clone(), require_session));
    session
        .route("/open/{link}", get(open))
        .fallback(|| async { refusal() })
        .layer(middleware::from_fn_with_state(context.clone(), guard))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(context)
}

fn file(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// Refuses requests that the page itself would not send: those under another name of this computer, which a foreign
/// page can point here (DNS rebinding), and those of foreign pages.
async fn guard(State(context): State<PageContext>, request: Request, next: Next) -> Response {
    let own = context.access.address.to_string();
    let mut response = if is_from_page(request.headers(), &own) { next.run(request).await } else { refusal() };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_POLICY),
        (header::REFERRER_POLICY, "same-origin"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Returns true if a request was sent to the address `own`, and not by a page from elsewhere.
fn is_from_page(headers: &HeaderMap, own: &str) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("unreadable"));
    let host = text("host") == Some(own);
    let origin = text("origin").is_none_or(|origin| origin == format!("http://{own}"));
    // A browser opens the one-time link from nowhere (`none`).
    let site = text("sec-fetch-site").is_none_or(|site| matches!(site, "same-origin" | "none"));
    host && origin && site
}

async fn require_session(
    State(context): State<PageContext>,
    Path(session): Path<String>,
    request: Request,
    next: Next,
) -> Response {
    if context.access.is_session(&session) { next.run(request).await } else { refusal() }
}

fn refusal() -> Response {
    let text = "This link was used already, or is not valid any more. Run `gpubnb-provider open` for a new one.\n";
    (StatusCode::FORBIDDEN, text).into_response()
}

async fn open(State(context): State<PageContext>, Path(link): Path<String>) -> Response {
    match context.access.redeem(&link) {
        Some(session) => Redirect::to(&url(context.access.address, &format!("/{session}/"))).into_response(),
        None => refusal(),
    }
}

async fn show(State(context): State<PageContext>) -> Response {
    page(&context, None).await
}

/// The page, with the problem that the owner's last order had.
async fn page(context: &PageContext, problem: Option<String>) -> Response {
    let status = if problem.is_some() { StatusCode::BAD_GATEWAY } else { StatusCode::OK };
    (status, html(view::page(&context.control, &context.earnings().await, problem).render())).into_response()
}

/// The parts of the page that change, for its script.
async fn now(State(context): State<PageContext>) -> Response {
    let now = view::now(&context.control, &context.earnings().await).render();
    html(now.and_then(|now| Ok(now + &view::log(&context.control).render()?)))
}

fn html(rendered: askama::Result<String>) -> Response {
    match rendered {
        Ok(html) => Html(html).into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, Body::from(e.to_string())).into_response(),
    }
}

/// The form with which the owner pauses the machine.
#[derive(Deserialize)]
struct PauseForm {
    kind: PauseKind,
    /// The time of day at which the pause ends, such as `18:00`.
    #[serde(default)]
    until: String,
}

#[derive(Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum PauseKind {
    /// No new jobs until the owner says otherwise.
    Pause,
    /// No new jobs until a time.
    Until,
    /// No jobs at all: the running jobs stop at once.
    TakeBack,
}

async fn pause(State(context): State<PageContext>, Form(form): Form<PauseForm>) -> Response {
    let until = match form.kind {
        PauseKind::Until => match next_local_time(&form.until, SystemClock.now()) {
            None => return page(&context, Some("Write the time like 18:00.".to_owned())).await,
            until => until,
        },
        _ => None,
    };
    let done = match form.kind {
        PauseKind::Pause => context.control.change(MachineChange::Pause).await,
        PauseKind::Until => context.control.pause_for(Pause { until, stops_jobs: false }),
        PauseKind::TakeBack => context.control.pause_for(Pause { until, stops_jobs: true }),
    };
    after_order(&context, done).await
}

async fn resume(State(context): State<PageContext>) -> Response {
    let done = context.control.resume().await;
    after_order(&context, done).await
}

/// Shows the page again after an order.
async fn after_order(context: &PageContext, done: anyhow::Result<()>) -> Response {
    match done {
        Ok(()) => Redirect::to("./").into_response(),
        Err(e) => page(context, Some(format!("That did not work: {e:#}."))).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_requests_of_the_page_itself_are_answered() {
        let own = "127.0.0.1:4000";
        let is_answered = |headers: &[(&'static str, &str)]| {
            let pairs = headers
                .iter()
                .map(|(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()));
            is_from_page(&pairs.collect(), own)
        };
        assert!(is_answered(&[("host", own)]));
        assert!(is_answered(&[("host", own), ("origin", "http://127.0.0.1:4000"), ("sec-fetch-site", "same-origin")]));
        assert!(is_answered(&[("host", own), ("sec-fetch-site", "none")]));
        for bad in [
            [("host", "evil.example:4000"), ("sec-fetch-site", "same-origin")],
            [("host", "localhost:4000"), ("sec-fetch-site", "none")],
            [("host", own), ("origin", "http://127.0.0.1:4001")],
            [("host", own), ("origin", "null")],
            [("host", own), ("sec-fetch-site", "same-site")],
            [("host", own), ("sec-fetch-site", "cross-site")],
        ] {
            assert!(!is_answered(&bad), "{bad:?}");
        }
        assert!(!is_answered(&[]));
    }
}
