//! One event of the log, as it was written.

use askama::Template;
use axum::{extract::State, response::Html};
use gpubnb_events::{Seq, Timestamp};
use gpubnb_projector::view::TrailEvent;

use super::{Chrome, html};
use crate::{access::SignedIn, app::App, error::PageError, extract::Path};

#[derive(Template)]
#[template(path = "event.html")]
struct EventPage {
    chrome: Chrome,
    e: TrailEvent,
    body: String,
    now: Timestamp,
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
