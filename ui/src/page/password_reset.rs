//! The pages to choose a new password for a forgotten one. Neither tells whether an address has an account.

use askama::Template;
use axum::{
    extract::State,
    http::StatusCode,
    response::{Html, IntoResponse, Redirect, Response},
};
use gpubnb_events::{AccountId, notification::LetterAbout};
use serde::Deserialize;
use tracing::warn;

use super::{Layout, render_page};
use crate::{
    access::{Client, LinkKind, Viewer, check_password},
    app::App,
    error::{PageError, Problem},
    extract::{Form, Path},
};

#[derive(Template)]
#[template(path = "forgot.html")]
struct ForgotPage {
    layout: Layout,
    /// True if this market sends e-mail.
    has_mail: bool,
    /// True after the form was sent.
    is_sent: bool,
}

/// `GET /forgot`
pub(crate) async fn forgot_page(State(app): State<App>, viewer: Viewer) -> Result<Html<String>, PageError> {
    let has_mail = app.notifications.mail_service(app.now()).await?.is_some();
    Ok(render_page(&ForgotPage { layout: Layout::new("Choose a new password", "", viewer), has_mail, is_sent: false })?)
}

/// The form of a person who forgot the password.
#[derive(Deserialize)]
pub(crate) struct Forgotten {
    email: String,
}

/// `POST /forgot`: sends a link if the address has an account. The answer is the same, at the same time, if it has
/// none.
pub(crate) async fn forgot(
    State(app): State<App>,
    client: Client,
    viewer: Viewer,
    Form(form): Form<Forgotten>,
) -> Result<Html<String>, PageError> {
    app.rate_limits.check_sign_up(client.address)?;
    let has_mail = app.notifications.mail_service(app.now()).await?.is_some();
    let page = ForgotPage { layout: Layout::new("Choose a new password", "", viewer), has_mail, is_sent: true };
    if has_mail {
        tokio::spawn(async move {
            if let Err(problem) = send_link(&app, &form.email).await {
                warn!(problem = problem.detail, "a link to choose a new password is not sent");
            }
        });
    }
    Ok(render_page(&page)?)
}

async fn send_link(app: &App, email: &str) -> Result<(), Problem> {
    let now = app.now();
    let Some(account) = app.users.account_of(email).await? else { return Ok(()) };
    // The address as it was signed up with, and not as it was written now.
    let to = app.users.email(account).await?;
    let Some(secret) = app.links.make(LinkKind::Reset, account, &to, now).await? else { return Ok(()) };
    app.notifications.send_letter(to, LetterAbout::ResetPassword { secret }, now, LinkKind::Reset.life()).await
}

#[derive(Template)]
#[template(path = "reset.html")]
struct ResetPage {
    layout: Layout,
    link: String,
    problem: Option<Problem>,
}

fn render(viewer: Viewer, link: String, problem: Option<Problem>) -> Result<Response, Problem> {
    let status = problem.as_ref().map_or(StatusCode::OK, |p| StatusCode::from_u16(p.status).unwrap_or_default());
    let layout = Layout::new("Choose a new password", "", viewer);
    Ok((status, render_page(&ResetPage { layout, link, problem })?).into_response())
}

/// `GET /reset/{link}`, the link in an e-mail.
pub(crate) async fn reset_page(
    State(app): State<App>,
    viewer: Viewer,
    Path(link): Path<String>,
) -> Result<Response, PageError> {
    app.links.check(LinkKind::Reset, &link, app.now()).await?;
    Ok(render(viewer, link, None)?)
}

/// The form with the new password.
#[derive(Deserialize)]
pub(crate) struct NewPassword {
    password: String,
}

/// `POST /reset/{link}`: sets the password, ends every session, revokes every token and removes every webhook.
pub(crate) async fn reset(
    State(app): State<App>,
    client: Client,
    viewer: Viewer,
    Path(link): Path<String>,
    Form(form): Form<NewPassword>,
) -> Result<Response, PageError> {
    app.rate_limits.count_guess(client.address)?;
    let account = app.links.check(LinkKind::Reset, &link, app.now()).await?;
    if let Err(problem) = check_password(&form.password) {
        app.rate_limits.take_back_guess(client.address);
        return Ok(render(viewer, link, Some(problem))?);
    }
    app.rate_limits.take_back_guess(client.address);
    // The steps are taken to their end, also if the browser goes away meanwhile.
    let steps = tokio::spawn(set_password(app, account, link, form.password));
    steps.await.map_err(|e| Problem::internal(&e))??;
    Ok(Redirect::to("/sign-in?reset=1").into_response())
}

/// Uses the link, and sets the password. Whoever had the account before may be signed in, and may have left a webhook
/// that tells of everything: both end first, and sessions once more after the old password has.
async fn set_password(app: App, account: AccountId, link: String, password: String) -> Result<(), Problem> {
    app.sessions.end(account, |_| true).await?;
    app.notifications
        .change(account, |settings| {
            settings.webhooks.clear();
            Ok(())
        })
        .await?;
    app.links.take(LinkKind::Reset, &link, app.now()).await?;
    app.users.set_password(account, &password).await?;
    // An attacker who took over the account may have added a passkey.
    app.passkeys.remove_all(account, app.now()).await?;
    app.sessions.end(account, |_| true).await?;
    app.notifications.tell_of_new_password(app.users.email(account).await?, app.now());
    Ok(())
}
