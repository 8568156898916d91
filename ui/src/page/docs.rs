//! The documentation of the API: a page with every endpoint and its required access, and the OpenAPI document.

use askama::Template;
use axum::{
    http::header,
    response::{Html, IntoResponse, Response},
};

use super::{Layout, render_page};
use crate::{
    access::{Endpoint, Viewer},
    error::{ApiError, PageError, Problem},
    openapi::{demand, endpoints, openapi_document},
};

#[derive(Template)]
#[template(path = "docs.html")]
struct DocsPage {
    layout: Layout,
    /// The endpoints by area. The area of `/api/v1/jobs/{job}` is `jobs`.
    areas: Vec<(String, Vec<&'static Endpoint>)>,
}

impl DocsPage {
    fn required_access(&self, endpoint: &Endpoint) -> String {
        demand(endpoint.access)
    }
}

pub(crate) async fn page(viewer: Viewer) -> Result<Html<String>, PageError> {
    let mut areas: Vec<(String, Vec<&'static Endpoint>)> = Vec::new();
    for endpoint in endpoints() {
        let area = endpoint.path.split('/').nth(3).unwrap_or_default().to_owned();
        match areas.iter_mut().find(|(name, _)| *name == area) {
            Some((_, known)) => known.push(endpoint),
            None => areas.push((area, vec![endpoint])),
        }
    }
    Ok(render_page(&DocsPage { layout: Layout::new("API", "docs", viewer), areas })?)
}

/// `GET /openapi.json`.
pub(crate) async fn document() -> Result<Response, ApiError> {
    let text = openapi_document().map_err(|e| Problem::internal(&e))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
}
