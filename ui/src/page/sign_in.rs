//! The pages to sign up and to sign in, and the endpoint to sign out.

use askama::Template;
use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{AppendHeaders, IntoResponse, Redirect, Response},
};
use gpubnb_events::AccountId;
use serde::Deserialize;

use super::{Layout, render_page};
use crate::{
    access::{Client, SignUp, SignedIn, Viewer, clear_cookie},
    accounts,
    app::App,
    error::{PageError, Problem},
    escape,
    extract::{Form, Query},
};

#[derive(Debug, Default, Deserialize)]
pub(crate) struct SignInQuery {
    /// The path to open after signing in.
    #[serde(default)]
    next: Option<String>,
    /// Set if the user has just signed up.
    #[serde(default)]
    welcome: Option<String>,
    /// Set if the user has just chosen a new password.
    #[serde(default)]
    reset: Option<String>,
    /// Set if the user has just closed an account.
    #[serde(default)]
    closed: Option<String>,
}

#[derive(Template)]
#[template(path = "sign_in.html")]
struct SignInPage {
    layout: Layout,
    /// True for the form to sign up, false for the form to sign in.
    is_sign_up: bool,
    /// What has just happened.
    news: Option<&'static str>,
    /// The path to open afterwards.
    next: String,
    email: String,
    problem: Option<Problem>,
    /// The origin on which passkeys work, if the form is to sign in.
    passkey_origin: Option<String>,
}

impl SignInPage {
    /// The address of the other form, which opens the same path afterwards.
    fn other_form(&self) -> String {
        let path = if self.is_sign_up { "/sign-in" } else { "/sign-up" };
        if self.next.is_empty() { path.to_owned() } else { format!("{path}?next={}", escape::url(&self.next)) }
    }
}

/// The fields of both forms.
#[derive(Deserialize)]
pub(crate) struct Credentials {
    email: String,
    password: String,
    #[serde(default)]
    next: String,
}

fn render(
    app: &App,
    is_sign_up: bool,
    news: Option<&'static str>,
    next: String,
    email: String,
    problem: Option<Problem>,
) -> Result<Response, PageError> {
    let (title, menu_entry) = if is_sign_up { ("Sign up", "sign-up") } else { ("Sign in", "sign-in") };
    let status = problem.as_ref().map_or(StatusCode::OK, |p| StatusCode::from_u16(p.status).unwrap_or_default());
    let layout = Layout::new(title, menu_entry, Viewer::default());
    let passkey_origin = app.passkeys.origin().filter(|_| !is_sign_up);
    let page = render_page(&SignInPage { layout, is_sign_up, news, next, email, problem, passkey_origin })?;
    Ok((status, page).into_response())
}

/// The path to open after signing in: `next` if it is a path on this server, otherwise `/market`. Without this check, a
/// link to the sign-in page could redirect the user to another site (an open redirect).
pub(super) fn safe_redirect(next: &str) -> &str {
    let is_foreign = next.starts_with("//") || next.contains('\\') || next.chars().any(char::is_control);
    if next.starts_with('/') && !is_foreign { next } else { "/market" }
}

/// `GET /sign-up`: the form. Somebody who is signed in goes on to the path `next`.
pub(crate) async fn sign_up_page(
    State(app): State<App>,
    viewer: Viewer,
    Query(query): Query<SignInQuery>,
) -> Result<Response, PageError> {
    let next = query.next.unwrap_or_default();
    if viewer.session.is_some() {
        return Ok(Redirect::to(safe_redirect(&next)).into_response());
    }
    render(&app, true, None, next, String::new(), None)
}

/// `POST /sign-up`: opens an account, and signs in. An address that has an account already keeps its password: whoever
/// knows the password is signed in, and anybody else is asked to sign in.
pub(crate) async fn sign_up(
    State(app): State<App>,
    client: Client,
    Form(form): Form<Credentials>,
) -> Result<Response, PageError> {
    app.rate_limits.check_sign_up(client.address)?;
    let new = SignUp { email: form.email.clone(), password: form.password };
    match accounts::sign_up(&app, &new).await {
        Ok(()) => {
            if let Ok(account) = accounts::check_password(&app, &client, &new.email, &new.password).await {
                return begin_session(&app, &client, account, &form.email, &form.next).await;
            }
            let query = serde_urlencoded::to_string([("welcome", "1"), ("next", &form.next)]);
            Ok(Redirect::to(&format!("/sign-in?{}", query.unwrap_or_default())).into_response())
        }
        Err(problem) if problem.field.is_some() => render(&app, true, None, form.next, form.email, Some(problem)),
        Err(problem) => Err(problem.into()),
    }
}

pub(crate) async fn sign_in_page(
    State(app): State<App>,
    viewer: Viewer,
    Query(query): Query<SignInQuery>,
) -> Result<Response, PageError> {
    if viewer.session.is_some() {
        return Ok(Redirect::to(safe_redirect(query.next.as_deref().unwrap_or_default())).into_response());
    }
    let news = match (query.welcome, query.reset) {
        _ if query.closed.is_some() => Some("Your account is closed. Thank you for having been here."),
        (_, Some(_)) => Some("Your new password is set. Sign in with it."),
        (Some(_), None) => Some("Thanks. Sign in with the password you chose."),
        (None, None) => None,
    };
    render(&app, false, news, query.next.unwrap_or_default(), String::new(), None)
}

pub(crate) async fn sign_in(
    State(app): State<App>,
    client: Client,
    Form(form): Form<Credentials>,
) -> Result<Response, PageError> {
    match accounts::check_password(&app, &client, &form.email, &form.password).await {
        Ok(account) => begin_session(&app, &client, account, &form.email, &form.next).await,
        Err(problem) if matches!(problem.status, 401 | 429) => {
            render(&app, false, None, form.next, form.email, Some(problem))
        }
        Err(problem) => Err(problem.into()),
    }
}

/// Signs the browser in, and sends it to the path `next`.
async fn begin_session(
    app: &App,
    client: &Client,
    account: AccountId,
    email: &str,
    next: &str,
) -> Result<Response, PageError> {
    let cookie = app.sessions.begin(account, &client.name, app.now()).await?;
    let known = accounts::known_browser_cookie(app, email);
    let cookies = [Some(cookie), known].into_iter().flatten().map(|cookie| (header::SET_COOKIE, cookie));
    Ok((AppendHeaders(cookies), Redirect::to(safe_redirect(next))).into_response())
}

pub(crate) async fn sign_out(State(app): State<App>, signed_in: SignedIn) -> Result<Response, PageError> {
    app.sessions.end(signed_in.account, |id| Some(id) == signed_in.viewer.session).await?;
    Ok(([(header::SET_COOKIE, clear_cookie())], Redirect::to("/")).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signing_in_redirects_only_to_paths_of_this_server() {
        assert_eq!(safe_redirect("/jobs/1?seq=2"), "/jobs/1?seq=2");
        for foreign in ["", "https://x.example", "//x.example", "/\\x.example", "javascript:alert(1)", "/a\nb"] {
            assert_eq!(safe_redirect(foreign), "/market", "{foreign:?}");
        }
    }
}
