//! The page of one account for operators: its balance, the payouts that wait for the operator, and the actions that
//! operators may take.

use std::collections::BTreeSet;

use askama::Template;
use axum::{
    extract::State,
    http::StatusCode,
    response::{Html, IntoResponse, Redirect, Response},
};
use gpubnb_events::{
    AccountId, CommandId, MachineId, MicroUsd, Seq, Timestamp,
    command::{ClosePayout, Done, FundAccount, RevokeMachine, Revoked, SetSuspension},
};
use gpubnb_query::{
    request::{EventsQuery, TrailOf},
    view::{Balance, MachineView, TrailEvent},
};
use serde::{Deserialize, Serialize};

use super::{Layout, render_page};
use crate::{
    access::SignedIn,
    app::App,
    error::{PageError, Problem},
    extract::{Form, MinSeq, Path, Query},
    input::dollars,
};

/// Most payouts that are looked up.
const MAX_PAYOUTS: u32 = 200;
/// Most events on the page.
const MAX_EVENTS: u32 = 20;

/// A payout that was requested, and is neither paid nor failed.
#[derive(Debug, Deserialize)]
struct OpenPayout {
    payout: CommandId,
    amount: MicroUsd,
}

#[derive(Template)]
#[template(path = "console_account.html")]
struct AccountPage {
    layout: Layout,
    account: AccountId,
    balance: Balance,
    payouts: Vec<OpenPayout>,
    machines: Vec<MachineView>,
    events: Vec<TrailEvent>,
    /// The id of the deposit, so that sending the form twice adds the money once.
    deposit: CommandId,
    problem: Option<Problem>,
    now: Timestamp,
}

/// `GET /console/accounts/{account}`
pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(account): Path<AccountId>,
    Query(min_seq): Query<MinSeq>,
) -> Result<Html<String>, PageError> {
    Ok(render(&app, signed_in, account, min_seq.seq(), None).await?)
}

async fn render(
    app: &App,
    signed_in: SignedIn,
    account: AccountId,
    min_seq: Seq,
    problem: Option<Problem>,
) -> Result<Html<String>, Problem> {
    let actor = signed_in.operator_actor();
    let events = |event: Option<&str>, limit| {
        let (of, event) = (Some(TrailOf::Account(account)), event.map(ToOwned::to_owned));
        app.queries.events(actor, EventsQuery { before: None, kind: None, event, of, limit })
    };
    let balance = app.queries.balance(actor, account, min_seq).await?;
    let (requested, paid, failed, newest, machines) = tokio::join!(
        events(Some("PayoutRequested"), MAX_PAYOUTS),
        events(Some("PayoutPaid"), MAX_PAYOUTS),
        events(Some("PayoutFailed"), MAX_PAYOUTS),
        events(None, MAX_EVENTS),
        app.queries.machines_of(actor, account, Seq::ZERO),
    );
    let closed: BTreeSet<CommandId> = [paid?.rows, failed?.rows].concat().iter().filter_map(payout_of).collect();
    let mut payouts: Vec<OpenPayout> =
        requested?.rows.into_iter().filter_map(|event| serde_json::from_value(event.body).ok()).collect();
    payouts.retain(|open| !closed.contains(&open.payout));
    render_page(&AccountPage {
        layout: Layout::new("Account", "console", signed_in.viewer),
        account,
        balance,
        payouts,
        machines: machines?,
        events: newest?.rows,
        deposit: CommandId::generate(),
        problem,
        now: app.now(),
    })
}

/// The payout that an event is about.
fn payout_of(event: &TrailEvent) -> Option<CommandId> {
    event.body["payout"].as_str()?.parse().ok()
}

/// Sends a command about an account, and shows the account's page afterwards, with the problem if there is one.
async fn act<B: Serialize + Sync>(
    app: &App,
    signed_in: SignedIn,
    account: AccountId,
    command: &str,
    body: Result<B, Problem>,
) -> Result<Response, PageError> {
    let done: Result<Done, Problem> = match body {
        Ok(body) => app.command("account", command, signed_in.operator_actor(), &body).await.map_err(Problem::from),
        Err(problem) => Err(problem),
    };
    match done {
        Ok(done) => Ok(Redirect::to(&format!("/console/accounts/{account}?seq={}", done.seq)).into_response()),
        Err(problem) => {
            let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::BAD_REQUEST);
            let page = render(app, signed_in, account, Seq::ZERO, Some(problem)).await?;
            Ok((status, page).into_response())
        }
    }
}

/// The form that suspends an account, or ends its suspension.
#[derive(Debug, Deserialize)]
pub(crate) struct SuspensionForm {
    /// The reason; empty to end the suspension.
    #[serde(default)]
    reason: String,
    /// `suspend` or `resume`: the button that was pressed.
    action: String,
}

/// `POST /console/accounts/{account}/suspension`
pub(crate) async fn suspend(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(account): Path<AccountId>,
    Form(form): Form<SuspensionForm>,
) -> Result<Response, PageError> {
    let reason = form.reason.trim().to_owned();
    let body = match (form.action.as_str(), reason.is_empty()) {
        ("resume", _) => Ok(SetSuspension { account, reason: None }),
        (_, false) => Ok(SetSuspension { account, reason: Some(reason) }),
        (_, true) => Err(Problem::invalid("reason", "Say why: the account's owner reads the reason.")),
    };
    act(&app, signed_in, account, "set_suspension", body).await
}

/// The form that records a deposit.
#[derive(Debug, Deserialize)]
pub(crate) struct DepositForm {
    deposit: CommandId,
    amount: String,
}

/// `POST /console/accounts/{account}/deposits`
pub(crate) async fn fund(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(account): Path<AccountId>,
    Form(form): Form<DepositForm>,
) -> Result<Response, PageError> {
    let body = dollars("amount", &form.amount).map(|amount| FundAccount { account, deposit: form.deposit, amount });
    act(&app, signed_in, account, "fund", body).await
}

/// The form that ends a payout.
#[derive(Debug, Deserialize)]
pub(crate) struct PayoutForm {
    /// Why the payout failed; only read for the button `failed`.
    #[serde(default)]
    reason: String,
    /// `paid` or `failed`: the button that was pressed.
    action: String,
}

/// `POST /console/accounts/{account}/payouts/{payout}`
pub(crate) async fn close_payout(
    State(app): State<App>,
    signed_in: SignedIn,
    Path((account, payout)): Path<(AccountId, CommandId)>,
    Form(form): Form<PayoutForm>,
) -> Result<Response, PageError> {
    let reason = form.reason.trim().to_owned();
    let body = match (form.action.as_str(), reason.is_empty()) {
        ("paid", _) => Ok(ClosePayout { account, payout, failed: None }),
        (_, false) => Ok(ClosePayout { account, payout, failed: Some(reason) }),
        (_, true) => Err(Problem::invalid("reason", "Say why the payout failed: its owner reads the reason.")),
    };
    act(&app, signed_in, account, "close_payout", body).await
}

/// The form that bans a machine: the account whose page is shown afterwards.
#[derive(Debug, Deserialize)]
pub(crate) struct BanForm {
    account: AccountId,
}

/// `POST /console/machines/{machine}/ban`: revokes the credential of a machine.
pub(crate) async fn ban(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(machine): Path<MachineId>,
    Form(form): Form<BanForm>,
) -> Result<Redirect, PageError> {
    let command = RevokeMachine { machine };
    app.command::<Revoked>("enrollment", "revoke", signed_in.operator_actor(), &command).await?;
    Ok(Redirect::to(&format!("/console/accounts/{}", form.account)))
}
