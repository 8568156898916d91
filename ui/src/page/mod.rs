//! The pages. Each module has the handlers of one page; its template in `ui/templates/` has the same name.
//!
//! The handler `page` renders the whole page. The handler `live` is the connection of an open page: it sends parts of
//! the page again when they change (see [`crate::live::parts`]).
//!
//! Must not come here: the handlers of `/api/v1`, which belong to `api`, or code that both need, such as `accounts`.

pub(crate) mod account;
pub(crate) mod add_machine;
pub(crate) mod batches;
pub(crate) mod close_account;
pub(crate) mod compare;
pub(crate) mod console;
pub(crate) mod console_account;
pub(crate) mod console_fleet;
pub(crate) mod console_ledger;
mod console_tiles;
pub(crate) mod datasets;
pub(crate) mod docs;
pub(crate) mod earn;
pub(crate) mod error;
pub(crate) mod event;
pub(crate) mod export;
pub(crate) mod find;
pub(crate) mod job;
pub(crate) mod jobs;
pub(crate) mod landing;
pub(crate) mod machine;
mod many_tasks;
pub(crate) mod market;
pub(crate) mod new_job;
pub(crate) mod notifications;
pub(crate) mod passkeys;
pub(crate) mod password_reset;
pub(crate) mod prices;
pub(crate) mod provider;
mod resubmit;
pub(crate) mod secrets;
pub(crate) mod sign_in;
pub(crate) mod status;
pub(crate) mod styleguide;
pub(crate) mod templates;
pub(crate) mod terms;
pub(crate) mod travel;
pub(crate) mod wallet;

use askama::Template;
use axum::response::Html;

use crate::{access::Viewer, assets, error::Problem};

/// The layout around every page (`base.html`): title and menu. Every page template has it as the field `layout`.
pub(crate) struct Layout {
    pub(crate) title: String,
    /// The highlighted menu entry, such as `jobs`; empty if none is highlighted.
    pub(crate) menu_entry: &'static str,
    /// `None` if nobody is signed in.
    pub(crate) viewer: Option<Viewer>,
}

impl Layout {
    pub(crate) fn new(title: impl Into<String>, menu_entry: &'static str, viewer: Viewer) -> Self {
        Self { title: title.into(), menu_entry, viewer: Some(viewer).filter(|v| v.account.is_some()) }
    }

    /// The URL of a file in `ui/assets/`.
    pub(crate) fn asset(&self, name: &str) -> String {
        assets::url(name)
    }

    /// The address of an icon or a picture in `ui/assets/icons.svg`.
    pub(crate) fn icon(&self, name: &str) -> String {
        assets::icon(name)
    }

    /// True if the viewer runs the platform.
    pub(crate) fn is_operator(&self) -> bool {
        self.viewer.is_some_and(|viewer| viewer.is_operator)
    }

    /// The hidden field with the session's CSRF token (against cross-site request forgery). Every form that is sent by
    /// POST must contain it.
    pub(crate) fn csrf_field(&self) -> String {
        csrf_field(self.viewer.unwrap_or_default())
    }

    /// The session's CSRF token, which scripts of the page send with uploads.
    fn csrf_token(&self) -> String {
        self.viewer.unwrap_or_default().csrf()
    }
}

/// The hidden field with the CSRF token of the viewer's session, as HTML.
pub(crate) fn csrf_field(viewer: Viewer) -> String {
    format!("<input type=\"hidden\" name=\"{}\" value=\"{}\">", crate::access::CSRF_FIELD, viewer.csrf())
}

fn render_page(page: &impl Template) -> Result<Html<String>, Problem> {
    page.render().map(Html).map_err(|e| Problem::internal(&e))
}

/// Renders a part of a page, which [`render_page`] or a live update inserts.
fn render_fragment(part: &impl Template) -> Result<String, Problem> {
    part.render().map_err(|e| Problem::internal(&e))
}

/// JSON with indentation.
fn pretty_json(body: &serde_json::Value) -> String {
    // Serialising cannot fail: every object of a `Value` has strings as keys.
    serde_json::to_string_pretty(body).unwrap_or_default()
}
