//! One event of the log, exactly as it was written.

use askama::Template;
use axum::{
    Json,
    extract::State,
    http::header,
    response::{Html, IntoResponse as _, Response},
};
use gpubnb_events::{Seq, Timestamp};
use gpubnb_query::view::TrailEvent;

use super::{Chrome, html};
use crate::{
    access::SignedIn,
    app::App,
    error::{ApiError, PageError},
    extract::Path,
};

#[derive(Template)]
#[template(path = "event.html")]
struct EventPage {
    chrome: Chrome,
    e: TrailEvent,
    body: String,
    now: Timestamp,
}

/// `GET /events/{seq}/proof.json`: the proof that the event is in the log, to keep or to show to others.
pub(crate) async fn proof(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(seq): Path<u64>,
) -> Result<Response, ApiError> {
    let proof = app.queries.proof(signed_in.reader(), Seq(seq)).await?;
    let file = format!("attachment; filename=\"event-{seq}-proof.json\"");
    Ok(([(header::CONTENT_DISPOSITION, file)], Json(proof)).into_response())
}

pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(seq): Path<u64>,
) -> Result<Html<String>, PageError> {
    let e = app.queries.event(signed_in.reader(), Seq(seq)).await?;
    let body = super::json(&e.body);
    let chrome = Chrome::new(format!("Event {seq}"), "", signed_in.viewer);
    Ok(html(&EventPage { chrome, e, body, now: app.now() })?)
}
