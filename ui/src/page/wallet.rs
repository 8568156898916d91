//! The viewer's money: balance, statement, deposits and payouts.

use std::{convert::Infallible, io, time::Duration};

use askama::Template;
use axum::{
    body::Body,
    extract::State,
    http::{StatusCode, header},
    response::{
        Html, IntoResponse, Redirect, Response,
        sse::{Event, Sse},
    },
};
use futures_util::{Stream, stream};
use gpubnb_events::{
    Aggregate, CommandId, MicroUsd, Seq, Timestamp,
    command::{Deposit, Done, RequestPayout},
};
use gpubnb_query::{
    request::{DaysOf, StatementQuery},
    view::{Balance, Page, StatementLine},
};
use serde::Deserialize;

use super::{Chrome, fragment, html};
use crate::{
    access::SignedIn,
    app::App,
    earnings::{MONTH, this_month},
    error::{PageError, Problem},
    extract::{Form, Query},
    input::dollars,
    live::parts::{self, PagePart},
    state::Change,
};

/// A page of the statement: the lines before a sequence.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct StatementRange {
    #[serde(default)]
    before: Option<u64>,
    #[serde(default)]
    seq: u64,
}

#[derive(Template)]
#[template(path = "wallet.html")]
struct Wallet {
    chrome: Chrome,
    sums: String,
    statement: String,
    deposit: AmountForm,
    payout: AmountForm,
    /// Set on the first page, to which new lines are added: the sequence that it must show.
    live: Option<u64>,
}

/// One of the two forms: the amount that was typed, and the problem with it.
struct AmountForm {
    id: CommandId,
    amount: String,
    problem: Option<Problem>,
}

impl AmountForm {
    fn new(amount: &str) -> Self {
        Self { id: CommandId::generate(), amount: amount.to_owned(), problem: None }
    }

    /// The form that was refused. A refused command left nothing behind, so the next try gets a new id.
    fn refused(sent: Transfer, problem: Problem) -> Self {
        Self { problem: Some(problem), ..Self::new(&sent.amount) }
    }
}

#[derive(Template)]
#[template(path = "wallet_sums.html")]
struct Sums {
    balance: Balance,
    month: MicroUsd,
}

#[derive(Template)]
#[template(path = "wallet_statement.html")]
struct Statement {
    page: Page<StatementLine>,
    now: Timestamp,
}

/// Lines on one page.
const ON_PAGE: u32 = 50;

async fn contents(app: &App, signed_in: SignedIn, before: Option<u64>, seq: Seq) -> Result<(String, String), Problem> {
    let (actor, account) = (signed_in.actor(), signed_in.account);
    let query = StatementQuery { account, before: before.map(Seq), limit: ON_PAGE };
    let (balance, days, page) = tokio::join!(
        app.queries.balance(actor, account, seq),
        app.queries.days(actor, DaysOf::Account(account), MONTH, seq),
        app.queries.statement(actor, query, seq),
    );
    let (_, month) = this_month(&days?, app.now());
    let sums = Sums { balance: balance?, month: month.iter().map(|day| day.spent).sum() };
    Ok((fragment(&sums)?, fragment(&Statement { page: page?, now: app.now() })?))
}

pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(range): Query<StatementRange>,
) -> Result<Html<String>, PageError> {
    Ok(show(&app, signed_in, &range, AmountForm::new(DEPOSIT), AmountForm::new("")).await?)
}

/// The amount in the form before somebody types another, dollars.
const DEPOSIT: &str = "10";

async fn show(
    app: &App,
    signed_in: SignedIn,
    range: &StatementRange,
    deposit: AmountForm,
    payout: AmountForm,
) -> Result<Html<String>, Problem> {
    let (sums, statement) = contents(app, signed_in, range.before, Seq(range.seq)).await?;
    let chrome = Chrome::new("Wallet", "wallet", signed_in.viewer);
    let live = range.before.is_none().then_some(range.seq);
    html(&Wallet { chrome, sums, statement, deposit, payout, live })
}

pub(crate) async fn live(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(range): Query<StatementRange>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let changes = app.changes.clone();
    let matters = move |change: &Change| change.aggregate == Aggregate::Account(signed_in.account);
    parts::stream(changes, Duration::from_millis(200), matters, move |seq| {
        let app = app.clone();
        async move {
            let (sums, statement) = contents(&app, signed_in, None, seq.max(Seq(range.seq))).await?;
            Ok(vec![PagePart::new("sums", sums), PagePart::new("statement", statement)])
        }
    })
}

/// Lines in one query.
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

/// A line has only numbers, ids and names of events, so a spreadsheet cannot take any of it for a formula.
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

/// An amount, and the id that makes sending the form twice safe.
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
    let done = async {
        let body = Deposit { deposit: transfer.id, amount: transfer.amount()? };
        Ok(app.command::<Done>("account", "deposit", signed_in.actor(), &body).await?)
    };
    let done = done.await;
    answered(&app, signed_in, done, |p| (AmountForm::refused(transfer, p), AmountForm::new(""))).await
}

pub(crate) async fn payout(
    State(app): State<App>,
    signed_in: SignedIn,
    Form(transfer): Form<Transfer>,
) -> Result<Response, PageError> {
    let done = async {
        let body = RequestPayout { payout: transfer.id, amount: transfer.amount()? };
        Ok(app.command::<Done>("account", "request_payout", signed_in.actor(), &body).await?)
    };
    let done = done.await;
    answered(&app, signed_in, done, |p| (AmountForm::new(DEPOSIT), AmountForm::refused(transfer, p))).await
}

/// Leads on to the wallet after a success. A refusal is shown in its form, with the amount that was typed. A failure of
/// ours gets a page of its own.
async fn answered(
    app: &App,
    signed_in: SignedIn,
    done: Result<Done, Problem>,
    forms: impl FnOnce(Problem) -> (AmountForm, AmountForm),
) -> Result<Response, PageError> {
    let problem = match done {
        Ok(done) => return Ok(Redirect::to(&format!("/wallet?seq={}", done.seq)).into_response()),
        Err(problem) if problem.status >= 500 => return Err(problem.into()),
        Err(problem) => problem,
    };
    let status = StatusCode::from_u16(problem.status).unwrap_or_default();
    let (deposit, payout) = forms(problem);
    Ok((status, show(app, signed_in, &StatementRange::default(), deposit, payout).await?).into_response())
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
