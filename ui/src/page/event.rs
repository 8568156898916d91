//! The page of one event of the log, with its unchanged body, and the proof that the log contains the event.

use askama::Template;
use axum::{
    Json,
    extract::State,
    http::header,
    response::{Html, IntoResponse as _, Response},
};
use gpubnb_events::{Seq, Timestamp};
use gpubnb_query::view::TrailEvent;

use super::{Layout, render_page};
use crate::{
    access::SignedIn,
    app::App,
    error::{ApiError, PageError},
    extract::Path,
};

#[derive(Template)]
#[template(path = "event.html")]
struct EventPage {
    layout: Layout,
    event: TrailEvent,
    body: String,
    now: Timestamp,
}

/// `GET /events/{seq}/proof.json`: the Merkle proof that the log contains the event. `gpubnb check-proof` verifies it.
pub(crate) async fn proof(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(seq): Path<u64>,
) -> Result<Response, ApiError> {
    let proof = app.queries.proof(signed_in.reading_actor(), Seq(seq)).await?;
    let file = format!("attachment; filename=\"event-{seq}-proof.json\"");
    Ok(([(header::CONTENT_DISPOSITION, file)], Json(proof)).into_response())
}

pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(seq): Path<u64>,
) -> Result<Html<String>, PageError> {
    let event = app.queries.event(signed_in.reading_actor(), Seq(seq)).await?;
    let body = super::pretty_json(&event.body);
    let layout = Layout::new(format!("Event {seq}"), "", signed_in.viewer);
    Ok(render_page(&EventPage { layout, event, body, now: app.now() })?)
}
