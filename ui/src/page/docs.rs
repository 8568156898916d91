//! The documentation: the guides of `docs/`, with a search; a page with every endpoint of the API and its required
//! access; and the OpenAPI document.

use askama::Template;
use axum::{
    http::header,
    response::{Html, IntoResponse, Response},
};
use serde::Deserialize;

use super::{Layout, render_page};
use crate::{
    access::{Endpoint, Viewer},
    error::{ApiError, PageError, Problem},
    escape,
    extract::{Path, Query},
    openapi::{demand, endpoints, openapi_document},
};

/// A guide, rendered by `build/guides.rs`.
pub(super) struct Guide {
    /// The last part of the page's address.
    name: &'static str,
    /// For whom the guide is.
    group: &'static str,
    pub(super) title: &'static str,
    html: &'static str,
    /// The first section is the guide's beginning.
    sections: &'static [Section],
}

/// A heading of a guide with the text below it.
pub(super) struct Section {
    id: &'static str,
    pub(super) title: &'static str,
    text: &'static str,
}

static GUIDES: &[Guide] = &include!(concat!(env!("OUT_DIR"), "/guides.rs"));

/// Most results of a search.
const MAX_RESULTS: usize = 30;
/// Most characters of a search.
const MAX_SEARCH: usize = 100;
/// Characters of the text that a result shows before and after the word.
const AROUND: usize = 90;

/// A section that has every word of a search.
pub(super) struct Found {
    pub(super) guide: &'static Guide,
    pub(super) section: &'static Section,
    excerpt: String,
}

impl Found {
    pub(super) fn address(&self) -> String {
        format!("/docs/{}#{}", self.guide.name, self.section.id)
    }
}

#[derive(Template)]
#[template(path = "docs.html")]
struct DocsPage {
    layout: Layout,
    /// The guides, by group.
    groups: Vec<(&'static str, Vec<&'static Guide>)>,
    search: String,
    found: Vec<Found>,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct DocsQuery {
    /// The words to search for.
    #[serde(default)]
    q: String,
}

/// `GET /docs`: the index of the guides, or the results of a search.
pub(crate) async fn page(viewer: Viewer, Query(query): Query<DocsQuery>) -> Result<Html<String>, PageError> {
    let search: String = query.q.trim().chars().take(MAX_SEARCH).collect();
    let mut groups: Vec<(&str, Vec<&Guide>)> = Vec::new();
    for guide in GUIDES {
        match groups.iter_mut().find(|(name, _)| *name == guide.group) {
            Some((_, known)) => known.push(guide),
            None => groups.push((guide.group, vec![guide])),
        }
    }
    let found = find(&search);
    Ok(render_page(&DocsPage { layout: Layout::new("Docs", "docs", viewer), groups, search, found })?)
}

/// The sections that have every word, those first whose heading has one.
pub(super) fn find(search: &str) -> Vec<Found> {
    let words: Vec<String> = search.to_lowercase().split_whitespace().map(ToOwned::to_owned).collect();
    let Some(first) = words.first() else { return Vec::new() };
    let sections = GUIDES.iter().flat_map(|guide| guide.sections.iter().map(move |section| (guide, section)));
    let mut found: Vec<_> = sections
        .filter_map(|(guide, section)| {
            let (title, text) = (section.title.to_lowercase(), section.text.to_lowercase());
            let has_all = words.iter().all(|word| title.contains(word) || text.contains(word));
            let is_title = words.iter().any(|word| title.contains(word));
            has_all.then(|| (!is_title, Found { guide, section, excerpt: excerpt(section.text, &text, first) }))
        })
        .collect();
    found.sort_by_key(|(is_text, _)| *is_text);
    found.into_iter().map(|(_, found)| found).take(MAX_RESULTS).collect()
}

/// The text around a word. `lower` is the text in small letters.
fn excerpt(text: &str, lower: &str, word: &str) -> String {
    let before = lower.find(word).map_or(0, |at| lower[..at].chars().count());
    let start = before.saturating_sub(AROUND);
    let part: String = text.chars().skip(start).take(2 * AROUND).collect();
    if start == 0 { format!("{part}…") } else { format!("…{part}…") }
}

#[derive(Template)]
#[template(path = "guide.html")]
struct GuidePage {
    layout: Layout,
    guide: &'static Guide,
}

/// `GET /docs/{guide}`
pub(crate) async fn guide(viewer: Viewer, Path(name): Path<String>) -> Result<Html<String>, PageError> {
    let guide = GUIDES.iter().find(|guide| guide.name == name).ok_or_else(|| Problem::not_found("guide"))?;
    Ok(render_page(&GuidePage { layout: Layout::new(guide.title, "docs", viewer), guide })?)
}

#[derive(Template)]
#[template(path = "endpoints.html")]
struct EndpointsPage {
    layout: Layout,
    /// The endpoints by area. The area of `/api/v1/jobs/{job}` is `jobs`.
    areas: Vec<(String, Vec<&'static Endpoint>)>,
}

impl EndpointsPage {
    fn about(&self, endpoint: &Endpoint) -> String {
        with_code(endpoint.about)
    }

    fn required_access(&self, endpoint: &Endpoint) -> String {
        with_code(&demand(endpoint.access))
    }
}

/// A text of this program with code between backticks, as HTML.
fn with_code(text: &str) -> String {
    let part = |(n, part): (usize, &str)| match n % 2 {
        1 => format!("<code>{}</code>", escape::html(part)),
        _ => escape::html(part),
    };
    text.split('`').enumerate().map(part).collect()
}

/// `GET /docs/endpoints`: every endpoint of the API.
pub(crate) async fn endpoints_page(viewer: Viewer) -> Result<Html<String>, PageError> {
    let mut areas: Vec<(String, Vec<&'static Endpoint>)> = Vec::new();
    for endpoint in endpoints() {
        let area = endpoint.path.split('/').nth(3).unwrap_or_default().to_owned();
        match areas.iter_mut().find(|(name, _)| *name == area) {
            Some((_, known)) => known.push(endpoint),
            None => areas.push((area, vec![endpoint])),
        }
    }
    Ok(render_page(&EndpointsPage { layout: Layout::new("API", "docs", viewer), areas })?)
}

/// `GET /openapi.json`.
pub(crate) async fn document() -> Result<Response, ApiError> {
    let text = openapi_document().map_err(|e| Problem::internal(&e))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_finds_sections_and_puts_headings_first() {
        let found = find("Webhook");
        assert!(found.iter().any(|found| found.guide.name == "consumer"), "nothing about webhooks for consumers");
        assert!(found[0].section.title.to_lowercase().contains("webhook"), "{}", found[0].section.title);
        assert!(find("").is_empty() && find("no such word anywhere").is_empty());
    }

    #[test]
    fn every_link_inside_the_guides_leads_to_a_heading() {
        for guide in GUIDES {
            for address in guide.html.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
                let Some((path, section)) = address.split_once('#') else { continue };
                let target = if path.is_empty() { guide.name } else { path.trim_start_matches("/docs/") };
                let known = GUIDES.iter().find(|guide| guide.name == target);
                let is_known = known.is_some_and(|guide| guide.sections.iter().any(|known| known.id == section));
                assert!(is_known, "{}: {address}", guide.name);
            }
        }
    }
}
