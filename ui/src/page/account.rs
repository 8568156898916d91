//! The account page: password, signed-in browsers, API tokens. Also the page of an operator invitation.

use askama::Template;
use axum::{
    extract::State,
    http::StatusCode,
    response::{Html, IntoResponse, Redirect, Response},
};
use gpubnb_events::{CommandId, Millis, Timestamp};
use serde::Deserialize;

use super::{Layout, render_page};
use crate::{
    access::{NewToken, PasskeyInfo, Scope, SessionInfo, SignIn, SignedIn, Source, TokenInfo, is_secret},
    accounts::{Role, count_own_password, roles},
    app::App,
    error::{PageError, Problem},
    extract::{Form, Path, Query},
};

#[derive(Template)]
#[template(path = "account.html")]
struct AccountPage {
    layout: Layout,
    email: String,
    account: gpubnb_events::AccountId,
    roles: Vec<Role>,
    /// The session of the browser that shows the page.
    session: Option<CommandId>,
    sessions: Vec<SessionInfo>,
    sign_ins: Vec<SignIn>,
    passkeys: Vec<PasskeyInfo>,
    /// The origin on which passkeys work; `None` if this market has none.
    passkey_origin: Option<String>,
    tokens: Vec<TokenInfo>,
    scopes: Vec<Scope>,
    /// A token that was just created. The page shows it only this once.
    new_token: Option<String>,
    /// The message after a successful change.
    success: Option<&'static str>,
    problem: Option<Problem>,
    /// The submitted form fields of a new token that was refused, as (name, value).
    fields: Vec<(String, String)>,
    now: Timestamp,
}

impl AccountPage {
    /// The message beside a field that was refused; `None` for every other field.
    fn error_of(&self, field: &str) -> Option<&str> {
        let problem = self.problem.as_ref().filter(|problem| problem.field.as_deref() == Some(field));
        problem.map(|problem| problem.detail.as_str())
    }

    /// The problem, if no field of this page is at fault.
    fn other_problem(&self) -> Option<&Problem> {
        const FIELDS: [&str; 5] = ["label", "scopes", "days", "old", "password"];
        self.problem.as_ref().filter(|problem| problem.field.as_deref().is_none_or(|field| !FIELDS.contains(&field)))
    }

    fn field_or<'a>(&'a self, name: &str, default: &'a str) -> &'a str {
        self.fields.iter().find(|(n, _)| n == name).map_or(default, |(_, value)| value)
    }

    // askama passes references.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    fn is_scope_checked(&self, scope: &Scope) -> bool {
        self.fields.iter().any(|(name, value)| name == "scope" && *value == scope.to_string())
    }

    fn is_current_session(&self, session: &SessionInfo) -> bool {
        self.session == Some(session.id)
    }
}

async fn render(
    app: &App,
    signed_in: SignedIn,
    new_token: Option<String>,
    success: Option<&'static str>,
    problem: Option<(Problem, Vec<(String, String)>)>,
) -> Result<Response, Problem> {
    let (account, now) = (signed_in.account, app.now());
    let operator = signed_in.viewer.is_operator;
    let (problem, fields) = problem.map_or_else(Default::default, |(problem, fields)| (Some(problem), fields));
    let status = problem.as_ref().map_or(StatusCode::OK, |p| StatusCode::from_u16(p.status).unwrap_or_default());
    let page = AccountPage {
        layout: Layout::new("Account", "account", signed_in.viewer),
        email: app.users.email(account).await?,
        account,
        roles: roles(app, signed_in).await?,
        session: signed_in.viewer.session,
        sessions: app.sessions.list(account, now).await?,
        sign_ins: app.sign_ins.list(account).await?,
        passkeys: app.passkeys.list(account).await?,
        passkey_origin: app.passkeys.origin(),
        tokens: app.users.tokens(account, now).await?,
        scopes: Scope::ALL.into_iter().filter(|s| operator || *s != Scope::Ops).collect(),
        new_token,
        success,
        problem,
        fields,
        now,
    };
    Ok((status, render_page(&page)?).into_response())
}

/// Shows a problem with a form field on the account page, with the submitted `fields`. Any other problem becomes an
/// error page.
async fn render_refusal(
    app: &App,
    signed_in: SignedIn,
    problem: Problem,
    fields: Vec<(String, String)>,
) -> Result<Response, PageError> {
    if problem.field.is_some() {
        return Ok(render(app, signed_in, None, None, Some((problem, fields))).await?);
    }
    Err(problem.into())
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct AccountQuery {
    /// The change that succeeded before a redirect to this page: `password`, `session`, `token` or `operator`.
    #[serde(default)]
    done: Option<String>,
}

pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(query): Query<AccountQuery>,
) -> Result<Response, PageError> {
    let success = query.done.and_then(|done| match done.as_str() {
        "password" => Some(
            "Your password is changed. Every other browser was signed out, and every token and passkey was removed.",
        ),
        "session" => Some("The other browser is signed out."),
        "token" => Some("The token is revoked."),
        "operator" => Some("You are now an operator."),
        "passkey" => Some("The passkey is added. You can sign in with it."),
        "passkey-removed" => Some("The passkey is removed."),
        _ => None,
    });
    Ok(render(&app, signed_in, None, success, None).await?)
}

/// The current password and the new one.
#[derive(Deserialize)]
pub(crate) struct PasswordChange {
    old: String,
    new: String,
}

pub(crate) async fn change_password(
    State(app): State<App>,
    signed_in: SignedIn,
    Form(passwords): Form<PasswordChange>,
) -> Result<Response, PageError> {
    // In a task of its own: a browser that goes away must not leave half of this undone.
    let (all, account, session) = (app.clone(), signed_in.account, signed_in.viewer.session);
    let steps = Box::pin(async move {
        all.users.change_password(account, &passwords.old, &passwords.new).await?;
        // All other sessions end, because somebody else may know the old password and may have added a passkey.
        all.sessions.end(account, |id| Some(id) != session).await?;
        all.passkeys.remove_all(account, all.now()).await
    });
    let finished = async { tokio::spawn(steps).await.map_err(|e| Problem::internal(&e))? };
    if let Err(problem) = count_own_password(&app, account, finished).await {
        // The page must not contain the submitted passwords, so no fields are passed on.
        return render_refusal(&app, signed_in, problem, Vec::new()).await;
    }
    // An address that nobody confirmed may be foreign.
    if let Some(address) = app.notifications.settings(signed_in.account).await?.address {
        app.notifications.tell_of_new_password(address, app.now());
    }
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

const DAY_MS: u64 = 24 * 3_600_000;

/// Reads the form of a new token. Each checked scope is a field with the name `scope`.
fn read_token(fields: &[(String, String)], now: Timestamp) -> Result<NewToken, Problem> {
    let value = |name: &str| fields.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v.as_str());
    let days: u64 = value("days")
        .parse()
        .ok()
        .filter(|days| (1..=365).contains(days))
        .ok_or_else(|| Problem::invalid("days", "A token can be valid for 1 to 365 days."))?;
    Ok(NewToken {
        label: value("label").to_owned(),
        scopes: fields.iter().filter(|(name, _)| name == "scope").filter_map(|(_, s)| s.parse().ok()).collect(),
        expires_at: now.plus(Millis(days * DAY_MS)),
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
        Ok((_, token)) => Ok(render(&app, signed_in, Some(token), None, None).await?),
        Err(problem) => render_refusal(&app, signed_in, problem, fields).await,
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
struct OperatorInvite {
    layout: Layout,
    secret: String,
}

/// `GET /operator/{secret}`, the link that `gpubnb-ui operator-link` prints. Only the button on the page makes the
/// viewer an operator ([`accept_invite`]).
pub(crate) async fn invite(signed_in: SignedIn, Path(secret): Path<String>) -> Result<Html<String>, PageError> {
    if !is_secret(&secret) {
        return Err(Problem::not_found("page").into());
    }
    Ok(render_page(&OperatorInvite { layout: Layout::new("Run this platform", "account", signed_in.viewer), secret })?)
}

pub(crate) async fn accept_invite(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(secret): Path<String>,
) -> Result<Redirect, PageError> {
    let login = signed_in.account.to_string();
    // Guesses of the secret are limited as guesses of a password are.
    let guess = app.rate_limits.count_password(&login, &Source::Session)?;
    app.users.accept_invite(&secret, app.now()).await?;
    app.rate_limits.take_back_password(&guess);
    app.users.make_operator(signed_in.account).await?;
    Ok(Redirect::to("/account?done=operator"))
}
