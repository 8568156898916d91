//! The wallet page: the viewer's balance, statement, deposits and payouts.

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

use super::{Layout, render_fragment, render_page};
use crate::{
    access::SignedIn,
    app::App,
    earnings::{MONTH, this_month},
    error::{PageError, Problem},
    extract::{Form, Query},
    format,
    input::dollars,
    live::parts::{self, PagePart},
    state::Change,
};

/// The shown part of the statement, as query parameters.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct StatementRange {
    /// Shows the newest lines before this sequence; without it, the newest lines of all.
    #[serde(default)]
    before: Option<u64>,
    /// The sequence of the viewer's last command, which the page must reflect.
    #[serde(default)]
    seq: u64,
}

#[derive(Template)]
#[template(path = "wallet.html")]
struct WalletPage {
    layout: Layout,
    balance: String,
    statement: String,
    deposit: AmountForm,
    payout: AmountForm,
    /// The sequence that live updates must reflect; `None` for a page of older lines, which are not updated live.
    live_min_seq: Option<u64>,
}

/// The form of a deposit or a payout.
struct AmountForm {
    /// The id of the command, so that submitting one form twice moves the money once.
    id: CommandId,
    /// Dollars, as the user typed them.
    amount: String,
    problem: Option<Problem>,
}

impl AmountForm {
    fn new(amount: &str) -> Self {
        Self { id: CommandId::generate(), amount: amount.to_owned(), problem: None }
    }

    /// The form again, with the reason of the refusal. A refused command has no effect, so the form gets a new id.
    fn refused(submitted: Transfer, problem: Problem) -> Self {
        Self { problem: Some(problem), ..Self::new(&submitted.amount) }
    }
}

#[derive(Template)]
#[template(path = "wallet_sums.html")]
struct BalanceCard {
    balance: Balance,
    spent_this_month: MicroUsd,
}

#[derive(Template)]
#[template(path = "wallet_statement.html")]
struct StatementCard {
    page: Page<StatementLine>,
    now: Timestamp,
}

/// Lines of the statement on one page.
const PAGE_SIZE: u32 = 50;

/// Renders the balance and the statement.
async fn render_cards(
    app: &App,
    signed_in: SignedIn,
    before: Option<u64>,
    seq: Seq,
) -> Result<(String, String), Problem> {
    let (actor, account) = (signed_in.actor(), signed_in.account);
    let query = StatementQuery { account, before: before.map(Seq), limit: PAGE_SIZE };
    let (balance, days, page) = tokio::join!(
        app.queries.balance(actor, account, seq),
        app.queries.days(actor, DaysOf::Account(account), MONTH, seq),
        app.queries.statement(actor, query, seq),
    );
    let (_, month) = this_month(&days?, app.now());
    let card = BalanceCard { balance: balance?, spent_this_month: month.iter().map(|day| day.spent).sum() };
    Ok((render_fragment(&card)?, render_fragment(&StatementCard { page: page?, now: app.now() })?))
}

pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(range): Query<StatementRange>,
) -> Result<Html<String>, PageError> {
    Ok(render(&app, signed_in, &range, AmountForm::new(SUGGESTED_DEPOSIT), AmountForm::new("")).await?)
}

/// The amount that the deposit form suggests, dollars.
const SUGGESTED_DEPOSIT: &str = "10";

async fn render(
    app: &App,
    signed_in: SignedIn,
    range: &StatementRange,
    deposit: AmountForm,
    payout: AmountForm,
) -> Result<Html<String>, Problem> {
    let (balance, statement) = render_cards(app, signed_in, range.before, Seq(range.seq)).await?;
    let layout = Layout::new("Wallet", "wallet", signed_in.viewer);
    let live_min_seq = range.before.is_none().then_some(range.seq);
    render_page(&WalletPage { layout, balance, statement, deposit, payout, live_min_seq })
}

/// `GET /wallet/balance`: the available money as the menu shows it.
pub(crate) async fn balance(State(app): State<App>, signed_in: SignedIn) -> Result<String, PageError> {
    let balance = app.queries.balance(signed_in.actor(), signed_in.account, Seq::ZERO).await?;
    Ok(format::headline(&balance.available))
}

pub(crate) async fn live(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(range): Query<StatementRange>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let changes = app.changes.clone();
    let is_relevant = move |change: &Change| change.aggregate == Aggregate::Account(signed_in.account);
    parts::stream(changes, Duration::from_millis(200), is_relevant, move |seq| {
        let app = app.clone();
        async move {
            let (balance, statement) = render_cards(&app, signed_in, None, seq.max(Seq(range.seq))).await?;
            Ok(vec![PagePart::new("sums", balance), PagePart::new("statement", statement)])
        }
    })
}

/// Lines in one query for the CSV file.
const CSV_QUERY_SIZE: u32 = 200;

/// `GET /wallet/statement.csv`: the whole statement, newest line first, as a stream. Amounts are dollars with six
/// decimals.
pub(crate) async fn csv(State(app): State<App>, signed_in: SignedIn) -> Response {
    let (actor, account) = (signed_in.actor(), signed_in.account);
    // The state is `Some(before)` for the next query, and `None` after the last one. The first query has no `before`.
    let pages = stream::try_unfold(Some(None), move |next_page: Option<Option<Seq>>| {
        let queries = app.queries.clone();
        async move {
            let Some(before) = next_page else { return Ok::<_, io::Error>(None) };
            let query = StatementQuery { account, before, limit: CSV_QUERY_SIZE };
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

/// A line contains only numbers, ids, times and event names, so a spreadsheet cannot read a field as a formula.
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

/// The submitted form of a deposit or a payout (see [`AmountForm`]).
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
    respond(&app, signed_in, done, |p| (AmountForm::refused(transfer, p), AmountForm::new(""))).await
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
    respond(&app, signed_in, done, |p| (AmountForm::new(SUGGESTED_DEPOSIT), AmountForm::refused(transfer, p))).await
}

/// Redirects to the wallet after a success. A refusal is shown in its form, with the submitted amount. A server error
/// becomes an error page.
async fn respond(
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
    Ok((status, render(app, signed_in, &StatementRange::default(), deposit, payout).await?).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_in_the_csv_file_are_exact() {
        let decimals = [0, 1, -1, 1_500_000, -12_000_001].map(|micros| decimal(MicroUsd(micros)));
        assert_eq!(decimals, ["0.000000", "0.000001", "-0.000001", "1.500000", "-12.000001"]);
    }
}
