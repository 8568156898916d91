//! The pages to sign up and to sign in, and the endpoint to sign out.

use askama::Template;
use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{AppendHeaders, IntoResponse, Redirect, Response},
};
use serde::Deserialize;

use super::{Layout, render_page};
use crate::{
    access::{Client, SignUp, SignedIn, Viewer, clear_cookie},
    accounts,
    app::App,
    error::{PageError, Problem},
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
}

#[derive(Template)]
#[template(path = "sign_in.html")]
struct SignInPage {
    layout: Layout,
    /// True for the form to sign up, false for the form to sign in.
    is_sign_up: bool,
    /// True if the user has just signed up.
    is_welcome: bool,
    next: String,
    email: String,
    problem: Option<Problem>,
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
    is_sign_up: bool,
    is_welcome: bool,
    next: String,
    email: String,
    problem: Option<Problem>,
) -> Result<Response, PageError> {
    let (title, menu_entry) = if is_sign_up { ("Sign up", "sign-up") } else { ("Sign in", "sign-in") };
    let status = problem.as_ref().map_or(StatusCode::OK, |p| StatusCode::from_u16(p.status).unwrap_or_default());
    let layout = Layout::new(title, menu_entry, Viewer::default());
    let page = render_page(&SignInPage { layout, is_sign_up, is_welcome, next, email, problem })?;
    Ok((status, page).into_response())
}

/// The path to open after signing in: `next` if it is a path on this server, otherwise `/market`. Without this check, a
/// link to the sign-in page could redirect the user to another site (an open redirect).
fn safe_redirect(next: &str) -> &str {
    let is_foreign = next.starts_with("//") || next.contains('\\') || next.chars().any(char::is_control);
    if next.starts_with('/') && !is_foreign { next } else { "/market" }
}

pub(crate) async fn sign_up_page() -> Result<Response, PageError> {
    render(true, false, String::new(), String::new(), None)
}

/// The response is the same whether the e-mail address has an account or not.
pub(crate) async fn sign_up(
    State(app): State<App>,
    client: Client,
    Form(form): Form<Credentials>,
) -> Result<Response, PageError> {
    app.rate_limits.check_sign_up(client.address)?;
    let new = SignUp { email: form.email.clone(), password: form.password };
    match accounts::sign_up(&app, &new).await {
        Ok(()) => Ok(Redirect::to("/sign-in?welcome=1").into_response()),
        Err(problem) if problem.field.is_some() => render(true, false, String::new(), form.email, Some(problem)),
        Err(problem) => Err(problem.into()),
    }
}

pub(crate) async fn sign_in_page(viewer: Viewer, Query(query): Query<SignInQuery>) -> Result<Response, PageError> {
    if viewer.session.is_some() {
        return Ok(Redirect::to(safe_redirect(query.next.as_deref().unwrap_or_default())).into_response());
    }
    render(false, query.welcome.is_some(), query.next.unwrap_or_default(), String::new(), None)
}

pub(crate) async fn sign_in(
    State(app): State<App>,
    client: Client,
    Form(form): Form<Credentials>,
) -> Result<Response, PageError> {
    match accounts::check_password(&app, &client, &form.email, &form.password).await {
        Ok(account) => {
            let cookie = app.sessions.begin(account, &client.name, app.now()).await?;
            let known = accounts::known_browser_cookie(&app, &form.email);
            let cookies = [Some(cookie), known].into_iter().flatten().map(|cookie| (header::SET_COOKIE, cookie));
            Ok((AppendHeaders(cookies), Redirect::to(safe_redirect(&form.next))).into_response())
        }
        Err(problem) if matches!(problem.status, 401 | 429) => {
            render(false, false, form.next, form.email, Some(problem))
        }
        Err(problem) => Err(problem.into()),
    }
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
