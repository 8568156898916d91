//! What it is in one sentence, live figures of the market, two ways in.

use askama::Template;
use axum::{extract::State, response::Html};
use gpubnb_projector::view::Figures;

use super::{Chrome, html};
use crate::{access::Viewer, app::App, error::PageError};

#[derive(Template)]
#[template(path = "landing.html")]
struct Landing {
    chrome: Chrome,
    figures: Figures,
}

pub(crate) async fn page(State(app): State<App>, viewer: Viewer) -> Result<Html<String>, PageError> {
    let figures = app.queries.figures(viewer.actor()).await?;
    let chrome = Chrome::new("Spare GPUs, as easily as booking a stay", "", viewer);
    Ok(html(&Landing { chrome, figures })?)
}
