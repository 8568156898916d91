//! The terms of use, which the operator writes.

use askama::Template;
use axum::{extract::State, response::Html};

use super::{Layout, render_page};
use crate::{access::Viewer, app::App, error::PageError};

#[derive(Template)]
#[template(path = "terms.html")]
struct TermsPage {
    layout: Layout,
    /// The paragraphs, which have empty lines between them. None if the operator wrote no terms.
    paragraphs: Vec<String>,
}

/// `GET /terms`
pub(crate) async fn page(State(app): State<App>, viewer: Viewer) -> Result<Html<String>, PageError> {
    let paragraphs = paragraphs(&app.terms);
    Ok(render_page(&TermsPage { layout: Layout::new("Terms of use", "", viewer), paragraphs })?)
}

fn paragraphs(text: &str) -> Vec<String> {
    let lines = text.replace("\r\n", "\n");
    lines.split("\n\n").map(str::trim).filter(|paragraph| !paragraph.is_empty()).map(ToOwned::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_lines_separate_paragraphs() {
        assert_eq!(paragraphs("One\nline.\r\n\r\nTwo.\n\n\n\nThree.\n"), ["One\nline.", "Two.", "Three."]);
        assert!(paragraphs(" \n\n").is_empty());
    }
}
