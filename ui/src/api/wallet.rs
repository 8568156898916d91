//! `/api/v1/wallet`: balance, statement, deposits and payouts.

use axum::{Json, extract::State};
use gpubnb_events::{
    CommandId, Seq,
    command::{Deposit, Done, RequestPayout},
};
use gpubnb_query::{
    request::{DaysOf, StatementQuery},
    view::{Balance, Day, Page, StatementLine},
};
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

use crate::{
    access::SignedIn,
    app::App,
    earnings::MONTH,
    error::ApiError,
    extract::{JsonBody, Query},
    input::dollars,
};

/// Answer of `GET /api/v1/wallet`.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Wallet {
    balance: Balance,
    statement: Page<StatementLine>,
}

/// Query parameters that choose a page of the statement.
#[derive(Debug, Default, Deserialize, IntoParams)]
pub(crate) struct StatementPage {
    /// The `next` of the previous page.
    #[serde(default)]
    cursor: Option<u64>,
    /// The most lines of the statement.
    #[serde(default)]
    limit: Option<u32>,
    /// The sequence of your last command, which the answer must include.
    #[serde(default)]
    min_seq: u64,
}

/// `GET /api/v1/wallet`: the balance and a page of the statement.
pub(crate) async fn wallet(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(page): Query<StatementPage>,
) -> Result<Json<Wallet>, ApiError> {
    let (actor, account, seq) = (signed_in.actor(), signed_in.account, Seq(page.min_seq));
    let query = StatementQuery { account, before: page.cursor.map(Seq), limit: page.limit.unwrap_or(100) };
    let statement = app.queries.statement(actor, query, seq).await?;
    // The balance contains at least what the statement shows.
    let newest = statement.rows.iter().map(|line| line.seq).max().unwrap_or(seq);
    let balance = app.queries.balance(actor, account, seq.max(newest)).await?;
    Ok(Json(Wallet { balance, statement }))
}

/// `GET /api/v1/wallet/days`: spending and earnings, one entry for each day.
pub(crate) async fn days(State(app): State<App>, signed_in: SignedIn) -> Result<Json<Vec<Day>>, ApiError> {
    let account = DaysOf::Account(signed_in.account);
    Ok(Json(app.queries.days(signed_in.actor(), account, MONTH, Seq::ZERO).await?))
}

/// Body of `POST /api/v1/wallet/deposits`.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewDeposit {
    /// Id of the deposit. Sending the same id again adds nothing.
    #[schema(value_type = String, format = Uuid)]
    deposit: CommandId,
    /// Amount in dollars, for example `12.50`.
    amount_usd: String,
}

/// `POST /api/v1/wallet/deposits`: adds play money.
pub(crate) async fn deposit(
    State(app): State<App>,
    signed_in: SignedIn,
    JsonBody(new): JsonBody<NewDeposit>,
) -> Result<Json<Done>, ApiError> {
    let body = Deposit { deposit: new.deposit, amount: dollars("amount_usd", &new.amount_usd)? };
    Ok(Json(app.command("account", "deposit", signed_in.actor(), &body).await?))
}

/// Body of `POST /api/v1/wallet/payouts`.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewPayout {
    /// Id of the payout. Sending the same id again requests nothing more.
    #[schema(value_type = String, format = Uuid)]
    payout: CommandId,
    /// Amount in dollars, for example `12.50`.
    amount_usd: String,
}

/// `POST /api/v1/wallet/payouts`: requests a payout.
pub(crate) async fn payout(
    State(app): State<App>,
    signed_in: SignedIn,
    JsonBody(new): JsonBody<NewPayout>,
) -> Result<Json<Done>, ApiError> {
    let body = RequestPayout { payout: new.payout, amount: dollars("amount_usd", &new.amount_usd)? };
    Ok(Json(app.command("account", "request_payout", signed_in.actor(), &body).await?))
}
