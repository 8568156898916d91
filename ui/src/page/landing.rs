//! The first page: one sentence about the market, its live figures, and two ways in.

use std::{convert::Infallible, time::Duration};

use askama::Template;
use axum::{
    extract::State,
    response::{
        Html,
        sse::{Event, Sse},
    },
};
use futures_util::Stream;
use gpubnb_query::view::Figures;

use super::{Chrome, fragment, html};
use crate::{
    access::Viewer,
    app::App,
    error::PageError,
    live::parts::{self, PagePart},
};

#[derive(Template)]
#[template(path = "landing.html")]
struct Landing {
    chrome: Chrome,
    figures: String,
}

#[derive(Template)]
#[template(path = "figures.html")]
struct FiguresNow {
    f: Figures,
}

pub(crate) async fn page(State(app): State<App>, viewer: Viewer) -> Result<Html<String>, PageError> {
    let figures = fragment(&FiguresNow { f: app.queries.figures(viewer.actor()).await? })?;
    let chrome = Chrome::new("Spare GPUs, as easily as booking a stay", "", viewer);
    Ok(html(&Landing { chrome, figures })?)
}

pub(crate) async fn live(State(app): State<App>, viewer: Viewer) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let changes = app.changes.clone();
    parts::stream(
        changes,
        Duration::from_secs(1),
        |_| true,
        move |_| {
            let app = app.clone();
            async move {
                let f = app.queries.figures(viewer.actor()).await?;
                Ok(vec![PagePart::new("figures", fragment(&FiguresNow { f })?)])
            }
        },
    )
}
