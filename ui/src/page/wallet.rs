//! What an account has, and every line of how it came about.

use askama::Template;
use axum::{
    extract::State,
    response::{Html, IntoResponse, Redirect, Response},
};
use gpubnb_events::{
    CommandId, MicroUsd, Seq, Timestamp,
    command::{Deposit, Done, RequestPayout},
};
use gpubnb_projector::{
    client::StatementQuery,
    view::{Balance, Page, StatementLine},
};
use serde::Deserialize;

use super::{Chrome, html};
use crate::{
    access::SignedIn,
    app::App,
    error::{PageError, Problem},
    extract::{Form, Query},
    input::dollars,
};

/// Which part of the statement.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Part {
    #[serde(default)]
    before: Option<u64>,
    #[serde(default)]
    seq: u64,
}

#[derive(Template)]
#[template(path = "wallet.html")]
struct Wallet {
    chrome: Chrome,
    balance: Balance,
    statement: Page<StatementLine>,
    deposit: CommandId,
    payout: CommandId,
    now: Timestamp,
}

pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(part): Query<Part>,
) -> Result<Html<String>, PageError> {
    let (actor, account) = (signed_in.actor(), signed_in.account);
    let balance = app.queries.balance(actor, account, Seq(part.seq)).await?;
    let query = StatementQuery { account, before: part.before.map(Seq), limit: 50 };
    let statement = app.queries.statement(actor, query, Seq(part.seq)).await?;
    let chrome = Chrome::new("Wallet", "wallet", signed_in.viewer);
    Ok(html(&Wallet {
        chrome,
        balance,
        statement,
        deposit: CommandId::generate(),
        payout: CommandId::generate(),
        now: app.now(),
    })?)
}

/// An amount and the id that makes saying it twice safe.
#[derive(Debug, Deserialize)]
pub(crate) struct Transfer {
    id: CommandId,
    amount: String,
}

impl Transfer {
    fn amount(&self) -> Result<MicroUsd, Problem> {
        dollars("amount", &self.amount)
    }
}

pub(crate) async fn deposit(
    State(app): State<App>,
    signed_in: SignedIn,
    Form(transfer): Form<Transfer>,
) -> Result<Response, PageError> {
    let body = Deposit { deposit: transfer.id, amount: transfer.amount()? };
    let done: Done = app.command("account", "deposit", signed_in.actor(), &body).await?;
    Ok(Redirect::to(&format!("/wallet?seq={}", done.seq)).into_response())
}

pub(crate) async fn payout(
    State(app): State<App>,
    signed_in: SignedIn,
    Form(transfer): Form<Transfer>,
) -> Result<Response, PageError> {
    let body = RequestPayout { payout: transfer.id, amount: transfer.amount()? };
    let done: Done = app.command("account", "request_payout", signed_in.actor(), &body).await?;
    Ok(Redirect::to(&format!("/wallet?seq={}", done.seq)).into_response())
}
