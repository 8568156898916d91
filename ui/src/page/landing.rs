//! The landing page: a description of the market and its live figures.

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

use super::{Layout, render_fragment, render_page};
use crate::{
    access::Viewer,
    app::App,
    error::PageError,
    live::parts::{self, PagePart},
};

#[derive(Template)]
#[template(path = "landing.html")]
struct LandingPage {
    layout: Layout,
    figures: String,
}

#[derive(Template)]
#[template(path = "figures.html")]
struct FiguresCard {
    figures: Figures,
}

pub(crate) async fn page(State(app): State<App>, viewer: Viewer) -> Result<Html<String>, PageError> {
    let figures = render_fragment(&FiguresCard { figures: app.queries.figures(viewer.actor()).await? })?;
    let layout = Layout::new("Spare GPUs, as easily as booking a stay", "", viewer);
    Ok(render_page(&LandingPage { layout, figures })?)
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
                let figures = app.queries.figures(viewer.actor()).await?;
                Ok(vec![PagePart::new("figures", render_fragment(&FiguresCard { figures })?)])
            }
        },
    )
}
