//! Signing up, signing in, signing out.

use askama::Template;
use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Redirect, Response},
};
use gpubnb_events::{
    AccountId, Actor,
    command::{Done, OpenAccount},
};
use serde::Deserialize;

use super::{Chrome, html};
use crate::{
    access::{Client, SignUp, SignedIn, Viewer, clear_cookie, login_of},
    app::App,
    error::{PageError, Problem},
    extract::{Form, Query},
};

/// Where to go afterwards, and whether somebody has just signed up.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Way {
    #[serde(default)]
    next: Option<String>,
    #[serde(default)]
    welcome: Option<String>,
}

#[derive(Template)]
#[template(path = "entry.html")]
struct Entry {
    chrome: Chrome,
    /// Signing up; else signing in.
    new: bool,
    welcome: bool,
    next: String,
    email: String,
    problem: Option<Problem>,
}

/// What is typed into either form.
#[derive(Deserialize)]
pub(crate) struct Typed {
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
    let page = html(&Entry { chrome, new, welcome, next, email, problem })?;
    Ok((status, page).into_response())
}

/// Only a page of ours: an address of another site would make this one its accomplice.
fn own(next: &str) -> &str {
    let elsewhere = next.starts_with("//") || next.contains('\\') || next.chars().any(char::is_control);
    if next.starts_with('/') && !elsewhere { next } else { "/market" }
}

pub(crate) async fn sign_up_page() -> Result<Response, PageError> {
    show(true, false, String::new(), String::new(), None)
}

/// The answer is the same whether the address was free or not.
pub(crate) async fn sign_up(
    State(app): State<App>,
    client: Client,
    Form(typed): Form<Typed>,
) -> Result<Response, PageError> {
    app.paces.sign_up(client.address)?;
    let new = SignUp { email: typed.email.clone(), password: typed.password };
    match join(&app, &new).await {
        Ok(()) => Ok(Redirect::to("/sign-in?welcome=1").into_response()),
        Err(problem) if problem.field.is_some() => show(true, false, String::new(), typed.email, Some(problem)),
        Err(problem) => Err(problem.into()),
    }
}

/// Makes a person and opens their account.
pub(crate) async fn join(app: &App, new: &SignUp) -> Result<(), Problem> {
    if let Some(account) = app.people.sign_up(new, app.now()).await? {
        open_account(app, account).await?;
    }
    Ok(())
}

/// Opens the account of a person; the same said again changes nothing.
async fn open_account(app: &App, account: AccountId) -> Result<(), Problem> {
    app.command::<Done>("account", "open", Actor::Account(account), &OpenAccount {}).await?;
    Ok(())
}

pub(crate) async fn sign_in_page(viewer: Viewer, Query(way): Query<Way>) -> Result<Response, PageError> {
    if viewer.session.is_some() {
        return Ok(Redirect::to(own(way.next.as_deref().unwrap_or_default())).into_response());
    }
    show(false, way.welcome.is_some(), way.next.unwrap_or_default(), String::new(), None)
}

pub(crate) async fn sign_in(
    State(app): State<App>,
    client: Client,
    Form(typed): Form<Typed>,
) -> Result<Response, PageError> {
    match prove(&app, &client, &typed.email, &typed.password).await {
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

/// Who has this address and password. Guessing is slowed down, by address and by person.
pub(crate) async fn prove(app: &App, client: &Client, email: &str, password: &str) -> Result<AccountId, Problem> {
    app.paces.sign_in(client.address)?;
    app.paces.guess(&login_of(email))?;
    let account = app.people.sign_in(email, password).await?;
    // Where signing up was interrupted, this makes up for it.
    open_account(app, account).await?;
    Ok(account)
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
