//! The documentation of the API for people: every endpoint and the access that it demands. Programs read
//! `/openapi.json`.

use askama::Template;
use axum::{
    http::header,
    response::{Html, IntoResponse, Response},
};

use super::{Chrome, html};
use crate::{
    access::{Endpoint, Viewer},
    error::{ApiError, PageError, Problem},
    openapi::{demand, endpoints, openapi_document},
};

#[derive(Template)]
#[template(path = "docs.html")]
struct Docs {
    chrome: Chrome,
    areas: Vec<(String, Vec<&'static Endpoint>)>,
}

impl Docs {
    fn demand(&self, endpoint: &Endpoint) -> String {
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
    Ok(html(&Docs { chrome: Chrome::new("API", "docs", viewer), areas })?)
}

pub(crate) async fn document() -> Result<Response, ApiError> {
    let text = openapi_document().map_err(|e| Problem::internal(&e))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
}
