//! The page to close an account for ever (docs/adr/0034).

use std::time::Duration;

use askama::Template;
use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Redirect, Response},
};
use gpubnb_events::{
    MicroUsd, Seq,
    command::{CloseAccount, Done},
};
use gpubnb_query::view::Balance;
use serde::Deserialize;

use super::{Layout, render_page};
use crate::{
    access::{SignedIn, Source, clear_cookie},
    app::App,
    error::{PageError, Problem},
    extract::Form,
};

/// The longest time for the removal of the account's files. After it, the person is asked to press the button again.
const MAX_REMOVAL: Duration = Duration::from_secs(20);

#[derive(Template)]
#[template(path = "close_account.html")]
struct ClosePage {
    layout: Layout,
    balance: Balance,
    problem: Option<Problem>,
}

async fn render(app: &App, signed_in: SignedIn, problem: Option<Problem>) -> Result<Response, PageError> {
    let balance = app.queries.balance(signed_in.actor(), signed_in.account, Seq::ZERO).await?;
    let status = problem.as_ref().map_or(StatusCode::OK, |p| StatusCode::from_u16(p.status).unwrap_or_default());
    let layout = Layout::new("Close your account", "account", signed_in.viewer);
    Ok((status, render_page(&ClosePage { layout, balance, problem })?).into_response())
}

/// `GET /account/close`.
pub(crate) async fn page(State(app): State<App>, signed_in: SignedIn) -> Result<Response, PageError> {
    render(&app, signed_in, None).await
}

/// The form of the page.
#[derive(Deserialize)]
pub(crate) struct CloseForm {
    password: String,
    /// The available money in micro-dollars, if the owner ticked that it is given up.
    #[serde(default)]
    given_up: i64,
}

/// `POST /account/close`. If this fails in the middle, the person can still sign in and repeat the request.
pub(crate) async fn close(
    State(app): State<App>,
    signed_in: SignedIn,
    Form(form): Form<CloseForm>,
) -> Result<Response, PageError> {
    match close_and_remove(&app, signed_in, &form).await {
        Ok(()) => Ok(([(header::SET_COOKIE, clear_cookie())], Redirect::to("/?closed=1")).into_response()),
        Err(problem) if matches!(problem.status, 403 | 409 | 422 | 429) => render(&app, signed_in, Some(problem)).await,
        Err(problem) => Err(problem.into()),
    }
}

async fn close_and_remove(app: &App, signed_in: SignedIn, form: &CloseForm) -> Result<(), Problem> {
    let account = signed_in.account;
    let guess = app.rate_limits.count_password(&account.to_string(), &Source::Session)?;
    app.users.verify_password(account, &form.password).await?;
    app.rate_limits.take_back_password(&guess);
    let close = CloseAccount { given_up: MicroUsd(form.given_up) };
    app.command::<Done>("account", "close", signed_in.actor(), &close).await?;
    let removal = async {
        app.notifications.forget(account).await?;
        for files in [&app.artifacts, &app.inputs] {
            files.remove_of(account).await.map_err(|e| Problem::internal(&e))?;
        }
        // The session goes last: with it, and with the password, the person can repeat a request that failed.
        app.passkeys.forget(account).await?;
        app.users.remove(account).await?;
        app.sessions.forget(account).await
    };
    let late = |_| {
        Problem::new(
            StatusCode::CONFLICT,
            "NotRemoved",
            "The account is closed. Not all of its files are removed yet: press the button again.",
        )
    };
    tokio::time::timeout(MAX_REMOVAL, removal).await.map_err(late)?
}
