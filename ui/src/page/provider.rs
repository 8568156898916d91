//! My machines: state, earnings, what runs, and what their owner may want of them.

use askama::Template;
use axum::{
    extract::State,
    response::{Html, IntoResponse, Redirect, Response},
};
use gpubnb_events::{
    HourlyRate, MachineId, Timestamp,
    command::{ChangeMachine, CreateEnrollment, Done, EnrollmentCode, MachineWish, RevokeMachine, Revoked},
};
use gpubnb_projector::view::{Balance, MachineView};
use serde::Deserialize;

use super::{Chrome, html};
use crate::{
    access::SignedIn,
    app::App,
    error::{PageError, Problem},
    extract::{AtLeast, Form, Origin, Path, Query},
    input::dollars,
};

#[derive(Template)]
#[template(path = "provider.html")]
struct Provider {
    chrome: Chrome,
    machines: Vec<MachineView>,
    balance: Balance,
    prices: Option<(HourlyRate, HourlyRate, HourlyRate)>,
    /// A code that was just made: shown once, in the command to paste.
    code: Option<EnrollmentCode>,
    /// This server, as the browser reaches it.
    market: String,
    now: Timestamp,
}

pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(at_least): Query<AtLeast>,
) -> Result<Html<String>, PageError> {
    Ok(show(&app, signed_in, at_least.seq(), None, String::new()).await?)
}

/// A code for one more machine, in the command that is pasted there.
pub(crate) async fn enroll(
    State(app): State<App>,
    signed_in: SignedIn,
    Origin(market): Origin,
) -> Result<Html<String>, PageError> {
    let code = app.command("enrollment", "create", signed_in.actor(), &CreateEnrollment {}).await?;
    Ok(show(&app, signed_in, gpubnb_events::Seq::ZERO, Some(code), market).await?)
}

/// Takes a machine its right to speak: for one that was stolen, or whose key was.
pub(crate) async fn revoke(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(machine): Path<MachineId>,
) -> Result<Redirect, PageError> {
    app.command::<Revoked>("enrollment", "revoke", signed_in.actor(), &RevokeMachine { machine }).await?;
    Ok(Redirect::to("/provider"))
}

async fn show(
    app: &App,
    signed_in: SignedIn,
    seq: gpubnb_events::Seq,
    code: Option<EnrollmentCode>,
    market: String,
) -> Result<Html<String>, Problem> {
    let (actor, account) = (signed_in.actor(), signed_in.account);
    let all = app.queries.machines(actor, seq).await?;
    let balance = app.queries.balance(actor, account, seq).await?;
    let prices = prices(&all);
    let machines = all.into_iter().filter(|m| m.row.owner == account).collect();
    let chrome = Chrome::new("My machines", "provider", signed_in.viewer);
    html(&Provider { chrome, machines, balance, prices, code, market, now: app.now() })
}

/// P10, median and P90 of the prices on the market.
fn prices(machines: &[MachineView]) -> Option<(HourlyRate, HourlyRate, HourlyRate)> {
    let mut prices: Vec<_> = machines.iter().map(|m| m.row.offer.price).collect();
    prices.sort_unstable();
    let at = |percent: usize| prices.get(prices.len().saturating_sub(1) * percent / 100).copied();
    Some((at(10)?, at(50)?, at(90)?))
}

/// A button of the page.
#[derive(Debug, Deserialize)]
pub(crate) struct Wish {
    wish: String,
    #[serde(default)]
    price: Option<String>,
}

pub(crate) async fn change(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(machine): Path<MachineId>,
    Form(form): Form<Wish>,
) -> Result<Response, PageError> {
    let wish = match form.wish.as_str() {
        "pause" => MachineWish::Pause,
        "resume" => MachineWish::Resume,
        "drain" => MachineWish::Drain,
        "delist" => MachineWish::Delist,
        "reprice" => MachineWish::Reprice(HourlyRate(dollars("price", &form.price.unwrap_or_default())?)),
        _ => return Err(Problem::invalid("wish", "This is not something a machine can be asked.").into()),
    };
    let done: Done = app.command("market", "machine", signed_in.actor(), &ChangeMachine { machine, wish }).await?;
    Ok(Redirect::to(&format!("/provider?seq={}", done.seq)).into_response())
}
