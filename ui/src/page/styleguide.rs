//! Every component of the pages, beside its name. Pages use no others.

use askama::Template;
use axum::response::Html;

use super::{Chrome, html};
use crate::{access::Viewer, chart, error::PageError};

#[derive(Template)]
#[template(path = "styleguide.html")]
struct Styleguide {
    chrome: Chrome,
    chart: String,
}

const HOUR: i64 = 3_600_000;

pub(crate) async fn page(viewer: Viewer) -> Result<Html<String>, PageError> {
    let points: Vec<_> = (0_i32..60).map(|i| (i64::from(i) * 60_000, f64::from((i * 37 + i * i) % 100))).collect();
    let chart = chart::line("A chart", "%", &points, (0, HOUR), 100.0);
    Ok(html(&Styleguide { chrome: Chrome::new("Styleguide", "", viewer), chart })?)
}
