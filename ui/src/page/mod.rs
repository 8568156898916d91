//! The pages. Page, handler and template share one name.

pub(crate) mod account;
pub(crate) mod console;
pub(crate) mod console_fleet;
pub(crate) mod console_ledger;
pub(crate) mod docs;
pub(crate) mod error;
pub(crate) mod event;
pub(crate) mod job;
pub(crate) mod jobs;
pub(crate) mod landing;
pub(crate) mod machine;
pub(crate) mod market;
pub(crate) mod new_job;
pub(crate) mod provider;
mod resubmit;
pub(crate) mod sign_in;
pub(crate) mod styleguide;
pub(crate) mod travel;
pub(crate) mod wallet;

use askama::Template;
use axum::response::Html;

use crate::{access::Viewer, assets, error::Problem};

/// The frame around every page: title, menu, and the viewer's name.
pub(crate) struct Chrome {
    pub(crate) title: String,
    /// The entry of the menu that is highlighted.
    pub(crate) here: &'static str,
    /// The viewer, if one is signed in.
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

    /// True if the viewer runs the platform.
    pub(crate) fn operator(&self) -> bool {
        self.viewer.is_some_and(|viewer| viewer.operator)
    }

    /// The hidden field that every form that changes something must contain.
    pub(crate) fn csrf(&self) -> String {
        csrf_field(self.viewer.unwrap_or_default())
    }

    /// The token that scripts of this page send with requests that change something.
    fn token(&self) -> String {
        self.viewer.unwrap_or_default().csrf()
    }
}

/// The hidden field with the session's token against cross-site requests.
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

/// JSON, indented for people.
fn json(body: &serde_json::Value) -> String {
    // Writing cannot fail: the value was read from JSON.
    serde_json::to_string_pretty(body).unwrap_or_default()
}
