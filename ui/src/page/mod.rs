//! The pages. Page, handler and template share one name.

pub(crate) mod account;
mod again;
pub(crate) mod console;
pub(crate) mod console_fleet;
pub(crate) mod console_ledger;
pub(crate) mod docs;
pub(crate) mod entry;
pub(crate) mod event;
pub(crate) mod job;
pub(crate) mod jobs;
pub(crate) mod landing;
pub(crate) mod machine;
pub(crate) mod market;
pub(crate) mod new_job;
pub(crate) mod provider;
pub(crate) mod styleguide;
pub(crate) mod travel;
pub(crate) mod wallet;

use askama::Template;
use axum::response::Html;

use crate::{access::Viewer, assets, error::Problem};

/// What surrounds every page.
pub(crate) struct Chrome {
    pub(crate) title: String,
    /// Which entry of the menu is lit.
    pub(crate) here: &'static str,
    /// Whether somebody is signed in, and in which role.
    pub(crate) viewer: Option<Viewer>,
}

impl Chrome {
    pub(crate) fn new(title: impl Into<String>, here: &'static str, viewer: Viewer) -> Self {
        Self { title: title.into(), here, viewer: Some(viewer).filter(|v| v.account.is_some()) }
    }

    /// The address of an asset.
    pub(crate) fn asset(&self, name: &str) -> String {
        assets::url(name)
    }

    /// Whether the viewer runs the platform.
    pub(crate) fn operator(&self) -> bool {
        self.viewer.is_some_and(|viewer| viewer.operator)
    }

    /// The field that every form which changes something carries.
    pub(crate) fn csrf(&self) -> String {
        csrf_field(self.viewer.unwrap_or_default())
    }

    /// What scripts of this page send with what they change.
    fn token(&self) -> String {
        self.viewer.unwrap_or_default().csrf()
    }
}

/// The hidden field that says which session a form belongs to.
pub(crate) fn csrf_field(viewer: Viewer) -> String {
    format!("<input type=\"hidden\" name=\"{}\" value=\"{}\">", crate::access::CSRF_FIELD, viewer.csrf())
}

/// Renders a page.
fn html(page: &impl Template) -> Result<Html<String>, Problem> {
    page.render().map(Html).map_err(|e| Problem::internal(&e))
}

/// Renders a part of a page.
fn fragment(part: &impl Template) -> Result<String, Problem> {
    part.render().map_err(|e| Problem::internal(&e))
}

/// A body as people read it.
fn json(body: &serde_json::Value) -> String {
    // What was read as JSON can be written as JSON.
    serde_json::to_string_pretty(body).unwrap_or_default()
}
