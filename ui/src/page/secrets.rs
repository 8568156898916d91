//! The page *Secrets*: the named secrets of an account. A value can be stored and replaced, and never read.

use askama::Template;
use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use gpubnb_events::{
    Timestamp,
    command::{DeleteSecret, ListSecrets, Secret, SetSecret, StoredSecret},
};
use serde::Deserialize;

use super::{Layout, render_page};
use crate::{
    access::SignedIn,
    app::App,
    error::{PageError, Problem},
    extract::{Form, Path, Query},
};

#[derive(Template)]
#[template(path = "secrets.html")]
struct SecretsPage {
    layout: Layout,
    secrets: Vec<StoredSecret>,
    success: Option<&'static str>,
    /// Why a secret was not stored, and the name that was given.
    refused: Option<(Problem, String)>,
    now: Timestamp,
}

impl SecretsPage {
    /// The message beside a field that was refused.
    fn error_of(&self, field: &str) -> Option<&str> {
        let (problem, _) = self.refused.as_ref()?;
        (problem.field.as_deref() == Some(field)).then_some(problem.detail.as_str())
    }

    fn given_name(&self) -> &str {
        self.refused.as_ref().map_or("", |(_, name)| name.as_str())
    }
}

async fn render(
    app: &App,
    signed_in: SignedIn,
    success: Option<&'static str>,
    refused: Option<(Problem, String)>,
) -> Result<Response, Problem> {
    let status = refused.as_ref().map_or(StatusCode::OK, |(p, _)| StatusCode::from_u16(p.status).unwrap_or_default());
    let secrets = app.command("account", "secrets", signed_in.actor(), &ListSecrets {}).await?;
    let layout = Layout::new("Secrets", "account", signed_in.viewer);
    let page = SecretsPage { layout, secrets, success, refused, now: app.now() };
    Ok((status, render_page(&page)?).into_response())
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct SecretsQuery {
    /// The change that succeeded before a redirect to this page.
    #[serde(default)]
    done: Option<String>,
}

pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(query): Query<SecretsQuery>,
) -> Result<Response, PageError> {
    let success = query.done.and_then(|done| match done.as_str() {
        "stored" => Some("The secret is stored."),
        "deleted" => Some("The secret is deleted."),
        _ => None,
    });
    Ok(render(&app, signed_in, success, None).await?)
}

/// The form of a secret.
#[derive(Deserialize)]
pub(crate) struct SecretForm {
    name: String,
    value: String,
}

/// `POST /account/secrets`: stores a secret. Browsers send `\r\n` at the end of a line.
pub(crate) async fn set(
    State(app): State<App>,
    signed_in: SignedIn,
    Form(SecretForm { name, value }): Form<SecretForm>,
) -> Result<Response, PageError> {
    let set = SetSecret { name: name.trim().to_owned(), value: Secret(value.replace("\r\n", "\n")) };
    let stored: Result<StoredSecret, _> = app.command("account", "set_secret", signed_in.actor(), &set).await;
    match stored.map_err(Problem::from) {
        Ok(_) => Ok(Redirect::to("/account/secrets?done=stored").into_response()),
        Err(problem) if problem.field.is_some() => Ok(render(&app, signed_in, None, Some((problem, name))).await?),
        Err(problem) => Err(problem.into()),
    }
}

/// `POST /account/secrets/{name}/delete`
pub(crate) async fn delete(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(name): Path<String>,
) -> Result<Redirect, PageError> {
    app.command::<()>("account", "delete_secret", signed_in.actor(), &DeleteSecret { name }).await?;
    Ok(Redirect::to("/account/secrets?done=deleted"))
}
