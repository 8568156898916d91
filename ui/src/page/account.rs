//! The viewer's account: password, signed-in browsers, tokens for programs.

use askama::Template;
use axum::{
    extract::State,
    http::StatusCode,
    response::{Html, IntoResponse, Redirect, Response},
};
use gpubnb_events::{CommandId, Millis, Timestamp};
use serde::Deserialize;

use super::{Chrome, html};
use crate::{
    access::{NewToken, Scope, SessionInfo, SignedIn, TokenInfo, is_secret},
    accounts::{Role, roles},
    app::App,
    error::{PageError, Problem},
    extract::{Form, Path, Query},
};

#[derive(Template)]
#[template(path = "account.html")]
struct AccountPage {
    chrome: Chrome,
    email: String,
    account: gpubnb_events::AccountId,
    roles: Vec<Role>,
    session: Option<CommandId>,
    sessions: Vec<SessionInfo>,
    tokens: Vec<TokenInfo>,
    scopes: Vec<Scope>,
    /// A token that was just created, which is shown only once.
    new_token: Option<String>,
    done: Option<&'static str>,
    problem: Option<Problem>,
    /// The fields of a new token that was refused.
    typed: Vec<(String, String)>,
    now: Timestamp,
}

impl AccountPage {
    fn typed<'a>(&'a self, name: &str, otherwise: &'a str) -> &'a str {
        self.typed.iter().find(|(n, _)| n == name).map_or(otherwise, |(_, value)| value)
    }

    // Templates pass references.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    fn ticked(&self, scope: &Scope) -> bool {
        self.typed.iter().any(|(name, value)| name == "scope" && *value == scope.to_string())
    }

    /// True for the session of the browser that shows the page.
    fn is_present(&self, session: &SessionInfo) -> bool {
        self.session == Some(session.id)
    }
}

async fn show(
    app: &App,
    signed_in: SignedIn,
    new_token: Option<String>,
    done: Option<&'static str>,
    problem: Option<(Problem, Vec<(String, String)>)>,
) -> Result<Response, Problem> {
    let (account, now) = (signed_in.account, app.now());
    let operator = signed_in.viewer.operator;
    let (problem, typed) = problem.map_or_else(Default::default, |(problem, typed)| (Some(problem), typed));
    let status = problem.as_ref().map_or(StatusCode::OK, |p| StatusCode::from_u16(p.status).unwrap_or_default());
    let page = AccountPage {
        chrome: Chrome::new("Account", "account", signed_in.viewer),
        email: app.users.email(account).await?,
        account,
        roles: roles(app, signed_in).await?,
        session: signed_in.viewer.session,
        sessions: app.sessions.of(account, now).await?,
        tokens: app.users.tokens(account, now).await?,
        scopes: Scope::ALL.into_iter().filter(|s| operator || *s != Scope::Ops).collect(),
        new_token,
        done,
        problem,
        typed,
        now,
    };
    Ok((status, html(&page)?).into_response())
}

/// Shows a problem with a field beside that field. Any other problem gets a page of its own.
async fn show_or(
    app: &App,
    signed_in: SignedIn,
    problem: Problem,
    typed: Vec<(String, String)>,
) -> Result<Response, PageError> {
    if problem.field.is_some() {
        return Ok(show(app, signed_in, None, None, Some((problem, typed))).await?);
    }
    Err(problem.into())
}

/// The change after which the browser was sent here.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct After {
    #[serde(default)]
    done: Option<String>,
}

pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(after): Query<After>,
) -> Result<Response, PageError> {
    let done = after.done.and_then(|done| match done.as_str() {
        "password" => {
            Some("Your password is changed. Every other browser was signed out, and every token was revoked.")
        }
        "session" => Some("That browser is signed out."),
        "token" => Some("The token is revoked."),
        "operator" => Some("You are now an operator."),
        _ => None,
    });
    Ok(show(&app, signed_in, None, done, None).await?)
}

/// The present password and the new one.
#[derive(Deserialize)]
pub(crate) struct Passwords {
    old: String,
    new: String,
}

pub(crate) async fn change_password(
    State(app): State<App>,
    signed_in: SignedIn,
    Form(passwords): Form<Passwords>,
) -> Result<Response, PageError> {
    app.rate_limits.guess(&signed_in.account.to_string())?;
    if let Err(problem) = app.users.change_password(signed_in.account, &passwords.old, &passwords.new).await {
        // The typed passwords are not sent back to the page.
        return show_or(&app, signed_in, problem, Vec::new()).await;
    }
    // Somebody else who is signed in may be the reason for the change.
    app.sessions.end(signed_in.account, |id| Some(id) != signed_in.viewer.session).await?;
    Ok(Redirect::to("/account?done=password").into_response())
}

pub(crate) async fn end_session(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(session): Path<CommandId>,
) -> Result<Redirect, PageError> {
    app.sessions.end(signed_in.account, |id| id == session).await?;
    Ok(Redirect::to("/account?done=session"))
}

const DAY: u64 = 24 * 3_600_000;

/// Reads the form of a new token. All check boxes of scopes have the same name.
fn read_token(fields: &[(String, String)], now: Timestamp) -> Result<NewToken, Problem> {
    let value = |name: &str| fields.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v.as_str());
    let scopes = fields.iter().filter(|(name, _)| name == "scope");
    let days: u64 = value("days")
        .parse()
        .ok()
        .filter(|days| (1..=365).contains(days))
        .ok_or_else(|| Problem::invalid("days", "A token lives from 1 to 365 days."))?;
    Ok(NewToken {
        label: value("label").to_owned(),
        scopes: scopes.filter_map(|(_, scope)| scope.parse().ok()).collect(),
        expires_at: now.plus(Millis(days * DAY)),
    })
}

pub(crate) async fn create_token(
    State(app): State<App>,
    signed_in: SignedIn,
    Form(fields): Form<Vec<(String, String)>>,
) -> Result<Response, PageError> {
    let now = app.now();
    let created = match read_token(&fields, now) {
        Ok(new) => app.users.create_token(signed_in.account, &new, now).await,
        Err(problem) => Err(problem),
    };
    match created {
        Ok((_, token)) => Ok(show(&app, signed_in, Some(token), None, None).await?),
        Err(problem) => show_or(&app, signed_in, problem, fields).await,
    }
}

pub(crate) async fn revoke_token(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(token): Path<CommandId>,
) -> Result<Redirect, PageError> {
    app.users.revoke_token(signed_in.account, token).await?;
    Ok(Redirect::to("/account?done=token"))
}

#[derive(Template)]
#[template(path = "invite.html")]
struct Invite {
    chrome: Chrome,
    secret: String,
}

/// The page of the link that `gpubnb-ui operator-link` prints. Opening the page changes nothing; its button does.
pub(crate) async fn invite(signed_in: SignedIn, Path(secret): Path<String>) -> Result<Html<String>, PageError> {
    if !is_secret(&secret) {
        return Err(Problem::not_found("page").into());
    }
    Ok(html(&Invite { chrome: Chrome::new("Run this platform", "account", signed_in.viewer), secret })?)
}

pub(crate) async fn accept_invite(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(secret): Path<String>,
) -> Result<Redirect, PageError> {
    app.rate_limits.guess(&signed_in.account.to_string())?;
    app.users.accept_invite(&secret, app.now()).await?;
    app.users.make_operator(signed_in.account).await?;
    Ok(Redirect::to("/account?done=operator"))
}
