//! Signing up, signing in, signing out.

use askama::Template;
use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Redirect, Response},
};
use serde::Deserialize;

use super::{Chrome, html};
use crate::{
    access::{Client, SignUp, SignedIn, Viewer, clear_cookie},
    accounts,
    app::App,
    error::{PageError, Problem},
    extract::{Form, Query},
};

/// The page to open afterwards, and a mark for somebody who has just signed up.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Next {
    #[serde(default)]
    next: Option<String>,
    #[serde(default)]
    welcome: Option<String>,
}

#[derive(Template)]
#[template(path = "sign_in.html")]
struct SignInPage {
    chrome: Chrome,
    /// True for signing up, false for signing in.
    new: bool,
    welcome: bool,
    next: String,
    email: String,
    problem: Option<Problem>,
}

/// The fields of either form.
#[derive(Deserialize)]
pub(crate) struct Credentials {
    email: String,
    password: String,
    #[serde(default)]
    next: String,
}

fn show(
    new: bool,
    welcome: bool,
    next: String,
    email: String,
    problem: Option<Problem>,
) -> Result<Response, PageError> {
    let (title, here) = if new { ("Sign up", "sign-up") } else { ("Sign in", "sign-in") };
    let status = problem.as_ref().map_or(StatusCode::OK, |p| StatusCode::from_u16(p.status).unwrap_or_default());
    let chrome = Chrome::new(title, here, Viewer::default());
    let page = html(&SignInPage { chrome, new, welcome, next, email, problem })?;
    Ok((status, page).into_response())
}

/// The page to open, if it is one of ours. With a foreign address, a link to our sign-in page would lead to another
/// site.
fn own(next: &str) -> &str {
    let elsewhere = next.starts_with("//") || next.contains('\\') || next.chars().any(char::is_control);
    if next.starts_with('/') && !elsewhere { next } else { "/market" }
}

pub(crate) async fn sign_up_page() -> Result<Response, PageError> {
    show(true, false, String::new(), String::new(), None)
}

/// The answer is the same for a free and for a taken address.
pub(crate) async fn sign_up(
    State(app): State<App>,
    client: Client,
    Form(typed): Form<Credentials>,
) -> Result<Response, PageError> {
    app.rate_limits.sign_up(client.address)?;
    let new = SignUp { email: typed.email.clone(), password: typed.password };
    match accounts::sign_up(&app, &new).await {
        Ok(()) => Ok(Redirect::to("/sign-in?welcome=1").into_response()),
        Err(problem) if problem.field.is_some() => show(true, false, String::new(), typed.email, Some(problem)),
        Err(problem) => Err(problem.into()),
    }
}

pub(crate) async fn sign_in_page(viewer: Viewer, Query(next): Query<Next>) -> Result<Response, PageError> {
    if viewer.session.is_some() {
        return Ok(Redirect::to(own(next.next.as_deref().unwrap_or_default())).into_response());
    }
    show(false, next.welcome.is_some(), next.next.unwrap_or_default(), String::new(), None)
}

pub(crate) async fn sign_in(
    State(app): State<App>,
    client: Client,
    Form(typed): Form<Credentials>,
) -> Result<Response, PageError> {
    match accounts::check_password(&app, &client, &typed.email, &typed.password).await {
        Ok(account) => {
            let cookie = app.sessions.begin(account, &client.name, app.now()).await?;
            Ok(([(header::SET_COOKIE, cookie)], Redirect::to(own(&typed.next))).into_response())
        }
        Err(problem) if matches!(problem.status, 401 | 429) => {
            show(false, false, typed.next, typed.email, Some(problem))
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
    fn signing_in_leads_to_pages_of_ours_only() {
        assert_eq!(own("/jobs/1?seq=2"), "/jobs/1?seq=2");
        for elsewhere in ["", "https://x.example", "//x.example", "/\\x.example", "javascript:alert(1)", "/a\nb"] {
            assert_eq!(own(elsewhere), "/market", "{elsewhere:?}");
        }
    }
}
