//! The page to close an account for ever (docs/adr/0034).

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
use tracing::warn;

use super::{Layout, render_page};
use crate::{
    access::{SignedIn, clear_cookie},
    accounts::count_own_password,
    app::App,
    error::{PageError, Problem},
    extract::Form,
};

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
    // In a task of its own: a browser that goes away must not leave half of this undone.
    let all = app.clone();
    let closed = tokio::spawn(Box::pin(close_and_remove(all, signed_in, form)));
    match closed.await.map_err(|e| Problem::internal(&e))? {
        Ok(()) => Ok(([(header::SET_COOKIE, clear_cookie())], Redirect::to("/sign-in?closed=1")).into_response()),
        Err(problem) if matches!(problem.status, 403 | 409 | 422 | 429) => render(&app, signed_in, Some(problem)).await,
        Err(problem) => Err(problem.into()),
    }
}

async fn close_and_remove(app: App, signed_in: SignedIn, form: CloseForm) -> Result<(), Problem> {
    let account = signed_in.account;
    if signed_in.viewer.is_operator {
        let detail = "You are an operator. Ask another operator to take this right from you first.";
        return Err(Problem::new(StatusCode::CONFLICT, "IsOperator", detail));
    }
    // A request before this one may have removed the user, and not yet the session.
    if app.users.exists(account).await? {
        count_own_password(&app, account, app.users.verify_password(account, &form.password)).await?;
        let close = CloseAccount { given_up: MicroUsd(form.given_up) };
        app.command::<Done>("account", "close", signed_in.actor(), &close).await?;
        app.passkeys.forget(account).await?;
        app.notifications.forget(account).await?;
        app.datasets.forget(account).await?;
        app.users.remove(account).await?;
    }
    app.sessions.forget(account).await?;
    // There may be thousands of files, so nobody waits for this.
    tokio::spawn(async move {
        for files in [&app.artifacts, &app.inputs] {
            if let Err(e) = files.remove_of(account).await {
                warn!(%account, error = &e as &dyn std::error::Error, "files of a closed account stay for now");
            }
        }
    });
    Ok(())
}
