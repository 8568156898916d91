//! What an account has, and every line of how it came about.

use std::io;

use askama::Template;
use axum::{
    body::Body,
    extract::State,
    http::header,
    response::{Html, IntoResponse, Redirect, Response},
};
use futures_util::stream;
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

/// Lines that are asked for at once.
const AT_ONCE: u32 = 200;

/// `GET /wallet/statement.csv`: all of the statement, newest first, in dollars with six decimals; streamed.
pub(crate) async fn csv(State(app): State<App>, signed_in: SignedIn) -> Response {
    let (actor, account) = (signed_in.actor(), signed_in.account);
    let pages = stream::try_unfold(Some(None), move |at: Option<Option<Seq>>| {
        let queries = app.queries.clone();
        async move {
            let Some(before) = at else { return Ok::<_, io::Error>(None) };
            let query = StatementQuery { account, before, limit: AT_ONCE };
            let page = queries.statement(actor, query, Seq::ZERO).await.map_err(io::Error::other)?;
            let head = if before.is_none() { "seq,time,event,job,available,held,balance\n" } else { "" };
            let lines: String = page.rows.iter().map(csv_line).collect();
            let next = page.next.and_then(|next| next.parse().ok()).map(|seq| Some(Seq(seq)));
            Ok(Some((format!("{head}{lines}"), next)))
        }
    });
    let headers = [
        (header::CONTENT_TYPE, "text/csv; charset=utf-8"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"statement.csv\""),
    ];
    (headers, Body::from_stream(pages)).into_response()
}

/// Numbers, ids and the names of events: nothing that a spreadsheet could take for a formula.
fn csv_line(line: &StatementLine) -> String {
    let job = line.job.map(|job| job.to_string()).unwrap_or_default();
    let [available, held, balance] = [line.available, line.held, line.balance].map(decimal);
    format!("{},{},{},{job},{available},{held},{balance}\n", line.seq, line.at, line.event)
}

/// Dollars with six decimals.
fn decimal(amount: MicroUsd) -> String {
    let micros = amount.0.unsigned_abs();
    let sign = if amount.0 < 0 { "-" } else { "" };
    format!("{sign}{}.{:06}", micros / 1_000_000, micros % 1_000_000)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_in_a_table_is_exact() {
        let decimals = [0, 1, -1, 1_500_000, -12_000_001].map(|micros| decimal(MicroUsd(micros)));
        assert_eq!(decimals, ["0.000000", "0.000001", "-0.000001", "1.500000", "-12.000001"]);
    }
}
