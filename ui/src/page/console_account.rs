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
    AccountId, Actor, CommandId, MachineId, MicroUsd, Seq, Timestamp,
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

/// Most pages of a search for payouts. Each page searches some thousand events.
const MAX_PAGES: u32 = 20;
/// Most events on the page, and in one answer to a search.
const MAX_EVENTS: u32 = 50;

/// A payout that was requested, and is neither paid nor failed.
#[derive(Debug, Deserialize)]
struct OpenPayout {
    payout: CommandId,
    amount: MicroUsd,
}

impl AccountPage {
    /// True if payouts wait that the search did not find.
    fn has_older_payouts(&self) -> bool {
        self.payouts.iter().map(|payout| payout.amount).sum::<MicroUsd>() < self.balance.payable
    }
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
    is_operator: bool,
    /// True if this is the account of the operator who looks at the page.
    is_own: bool,
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
    let balance = app.queries.balance(actor, account, min_seq).await?;
    let (payouts, newest, machines) = tokio::join!(
        find_open_payouts(app, actor, account, &balance),
        app.queries.events(actor, search(account, None, None)),
        app.queries.machines_of(actor, account, Seq::ZERO),
    );
    render_page(&AccountPage {
        layout: Layout::new("Account", "console", signed_in.viewer),
        account,
        balance,
        payouts: payouts?,
        machines: machines?,
        events: newest?.rows,
        is_operator: app.users.is_operator(account).await?,
        is_own: account == signed_in.account,
        deposit: CommandId::generate(),
        problem,
        now: app.now(),
    })
}

/// The payouts that wait for the operator. Without money that is to be paid out there are none.
async fn find_open_payouts(
    app: &App,
    actor: Actor,
    account: AccountId,
    balance: &Balance,
) -> Result<Vec<OpenPayout>, Problem> {
    if balance.payable == MicroUsd::ZERO {
        return Ok(Vec::new());
    }
    let (requested, paid, failed) = tokio::try_join!(
        find_payouts(app, actor, account, "PayoutRequested"),
        find_payouts(app, actor, account, "PayoutPaid"),
        find_payouts(app, actor, account, "PayoutFailed"),
    )?;
    let closed: BTreeSet<CommandId> = [paid, failed].concat().iter().filter_map(payout_of).collect();
    let mut payouts: Vec<OpenPayout> =
        requested.into_iter().filter_map(|event| serde_json::from_value(event.body).ok()).collect();
    payouts.retain(|open| !closed.contains(&open.payout));
    Ok(payouts)
}

/// A search through the newest events of an account.
fn search(account: AccountId, event: Option<&str>, before: Option<Seq>) -> EventsQuery {
    let event = event.map(ToOwned::to_owned);
    EventsQuery { before, kind: None, event, of: Some(TrailOf::Account(account)), limit: MAX_EVENTS }
}

/// The events of an account with this name, newest first.
async fn find_payouts(app: &App, actor: Actor, account: AccountId, event: &str) -> Result<Vec<TrailEvent>, Problem> {
    let (mut found, mut before) = (Vec::new(), None);
    for _ in 0..MAX_PAGES {
        let page = app.queries.events(actor, search(account, Some(event), before)).await?;
        found.extend(page.rows);
        before = page.next.and_then(|next| next.parse().ok()).map(Seq);
        if before.is_none() {
            break;
        }
    }
    Ok(found)
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
        // The command may have taken effect. The browser can send the same form again, with the same id.
        Err(problem) if problem.status >= 500 => Err(problem.into()),
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

/// `POST /console/accounts/{account}/operator`: takes the operator right from another person. Nobody can take it from
/// himself, so that a market keeps an operator.
pub(crate) async fn remove_operator(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(account): Path<AccountId>,
) -> Result<Redirect, PageError> {
    if account == signed_in.account {
        return Err(Problem::forbidden("Another operator must take this right from you.").into());
    }
    app.users.remove_operator(account).await?;
    tracing::info!(%account, by = %signed_in.account, "an operator's right was removed");
    Ok(Redirect::to(&format!("/console/accounts/{account}")))
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
        ("paid", true) => Ok(ClosePayout { account, payout, failed: None }),
        ("paid", false) => Err(Problem::invalid("reason", "A payout that was paid has no reason for a failure.")),
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
