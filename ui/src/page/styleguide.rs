//! The style guide: a page that shows every visual component with its name. Pages use only these components.

use askama::Template;
use axum::response::Html;

use super::{Layout, render_page};
use crate::{access::Viewer, chart, error::PageError};

#[derive(Template)]
#[template(path = "styleguide.html")]
struct StyleguidePage {
    layout: Layout,
    chart: String,
}

const HOUR_MS: i64 = 3_600_000;

pub(crate) async fn page(viewer: Viewer) -> Result<Html<String>, PageError> {
    let points: Vec<_> = (0_i32..60).map(|i| (i64::from(i) * 60_000, f64::from((i * 37 + i * i) % 100))).collect();
    let chart = chart::line("A chart", "%", &points, (0, HOUR_MS), 100.0);
    Ok(render_page(&StyleguidePage { layout: Layout::new("Styleguide", "", viewer), chart })?)
}
