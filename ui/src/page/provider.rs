//! My machines: state, earnings, what runs, and what their owner may want of them.

use askama::Template;
use axum::{
    extract::State,
    response::{Html, IntoResponse, Redirect, Response},
};
use gpubnb_events::{
    HourlyRate, MachineId, MicroUsd,
    command::{ChangeMachine, Done, MachineWish},
};
use gpubnb_projector::view::{Balance, MachineView};
use serde::Deserialize;

use super::{Chrome, html};
use crate::{
    app::App,
    error::{PageError, Problem},
    extract::{AtLeast, Form, Path, Query},
    viewer::SignedIn,
};

#[derive(Template)]
#[template(path = "provider.html")]
struct Provider {
    chrome: Chrome,
    machines: Vec<MachineView>,
    balance: Balance,
    prices: Option<(HourlyRate, HourlyRate, HourlyRate)>,
    account: gpubnb_events::AccountId,
}

pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(at_least): Query<AtLeast>,
) -> Result<Html<String>, PageError> {
    let (actor, account, seq) = (signed_in.actor(), signed_in.account, at_least.seq());
    let all = app.queries.machines(actor, seq).await?;
    let balance = app.queries.balance(actor, account, seq).await?;
    let prices = prices(&all);
    let machines = all.into_iter().filter(|m| m.row.owner == account).collect();
    let chrome = Chrome::new("My machines", "provider", signed_in.viewer);
    Ok(html(&Provider { chrome, machines, balance, prices, account })?)
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
        "reprice" => {
            let price: MicroUsd = form
                .price
                .unwrap_or_default()
                .parse()
                .map_err(|e: gpubnb_events::money::BadAmount| Problem::invalid("price", e.to_string()))?;
            MachineWish::Reprice(HourlyRate(price))
        }
        _ => return Err(Problem::invalid("wish", "This is not something a machine can be asked.").into()),
    };
    let done: Done = app.command("market", "machine", signed_in.actor(), &ChangeMachine { machine, wish }).await?;
    Ok(Redirect::to(&format!("/provider?seq={}", done.seq)).into_response())
}
