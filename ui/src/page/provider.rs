//! The viewer's own machines: state, earnings, running jobs, and the buttons of the owner.

use std::{convert::Infallible, sync::Arc, time::Duration};

use askama::Template;
use axum::{
    extract::State,
    http::StatusCode,
    response::{
        Html, IntoResponse, Redirect, Response,
        sse::{Event, Sse},
    },
};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use gpubnb_events::{
    Aggregate, HourlyRate, MachineId, MicroUsd, Seq, Timestamp,
    command::{ChangeMachine, CreateEnrollment, Done, EnrollmentCode, MachineChange, RevokeMachine, Revoked},
};
use gpubnb_query::{
    request::DaysOf,
    view::{Balance, Day, ListedMachine, MachineState, MachineView},
};
use serde::Deserialize;

use super::{Chrome, fragment, html};
use crate::{
    access::SignedIn,
    app::App,
    earnings::{MONTH, this_month},
    error::{PageError, Problem},
    extract::{AtLeast, Form, Origin, Path, Query},
    input::dollars,
    live::parts::{self, PagePart},
    state::Change,
};

#[derive(Template)]
#[template(path = "provider.html")]
struct Provider {
    chrome: Chrome,
    totals: String,
    machines: String,
    empty: bool,
    seq: Seq,
    /// A code that was just created. It is shown once, in the command to paste.
    code: Option<EnrollmentCode>,
    /// The address of this server as the browser reaches it.
    market: String,
}

#[derive(Template)]
#[template(path = "provider_totals.html")]
struct Totals {
    balance: Balance,
    today: MicroUsd,
    month: MicroUsd,
}

/// The cards of the machines.
#[derive(Template)]
#[template(path = "provider_machines.html")]
struct Machines {
    cards: Vec<OwnMachineCard>,
}

#[derive(Template)]
#[template(path = "provider_card.html")]
struct OwnMachineCard {
    m: MachineView,
    today: Day,
    month: MicroUsd,
    /// Metered time per slot today, in percent of the day so far.
    utilisation: u64,
    prices: Option<(HourlyRate, HourlyRate, HourlyRate)>,
    /// The price that was typed and refused, and the reason.
    refused: Option<(String, String)>,
    csrf: String,
    now: Timestamp,
}

/// Most queries for earnings at the same time.
const AT_ONCE: usize = 16;

async fn totals(app: &App, signed_in: SignedIn, seq: Seq) -> Result<String, Problem> {
    let (actor, account) = (signed_in.actor(), signed_in.account);
    let (balance, days) = tokio::join!(
        app.queries.balance(actor, account, seq),
        app.queries.days(actor, DaysOf::Account(account), MONTH, seq),
    );
    let (today, month) = this_month(&days?, app.now());
    fragment(&Totals { balance: balance?, today: today.earned, month: month.iter().map(|d| d.earned).sum() })
}

async fn machines(app: &App, signed_in: SignedIn, seq: Seq) -> Result<Machines, Problem> {
    let mine = app.queries.machines_of(signed_in.actor(), signed_in.account, seq).await?;
    let market = app.machines.machines().await;
    let on_it = mine.into_iter().filter(|m| m.listed.wanted != MachineState::Delisted);
    let cards = stream::iter(on_it).map(|m| card(app, signed_in, m, &market)).buffered(AT_ONCE);
    Ok(Machines { cards: cards.try_collect().await? })
}

async fn card(
    app: &App,
    signed_in: SignedIn,
    m: MachineView,
    market: &[Arc<MachineView>],
) -> Result<OwnMachineCard, Problem> {
    let of = DaysOf::Machine(m.listed.machine);
    let days = app.queries.days(signed_in.actor(), of, MONTH, Seq::ZERO).await?;
    let now = app.now();
    let (today, month) = this_month(&days, now);
    let so_far = u64::try_from(now.millis() % 86_400_000).unwrap_or(1).max(1) * u64::from(m.listed.offer.slots.max(1));
    Ok(OwnMachineCard {
        prices: prices(market, &m.listed),
        refused: None,
        today,
        month: month.iter().map(|d| d.earned).sum(),
        utilisation: (today.metered.0 * 100 / so_far).min(100),
        csrf: super::csrf_field(signed_in.viewer),
        m,
        now,
    })
}

pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(at_least): Query<AtLeast>,
) -> Result<Html<String>, PageError> {
    Ok(show(&app, signed_in, at_least.seq(), None, String::new(), None).await?)
}

/// The parts of the page that changed.
pub(crate) async fn live(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(at_least): Query<AtLeast>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let (changes, machines_known) = (app.changes.clone(), app.machines.clone());
    let matters = move |change: &Change| match change.aggregate {
        Aggregate::Machine(id) => machines_known.machine(id).is_none_or(|m| m.listed.owner == signed_in.account),
        Aggregate::Account(id) => id == signed_in.account,
        Aggregate::Job(_) => false,
    };
    let from = at_least.seq();
    parts::stream(changes, Duration::from_millis(500), matters, move |seq| {
        let app = app.clone();
        async move {
            let seq = seq.max(from);
            let (totals, machines) = (totals(&app, signed_in, seq).await?, machines(&app, signed_in, seq).await?);
            let order: Vec<_> = machines.cards.iter().map(|c| c.m.listed.machine.to_string()).collect();
            let frame = PagePart::frame("machines", order.join(" "), fragment(&machines)?);
            let mut parts = vec![PagePart::new("totals", totals), frame];
            for card in &machines.cards {
                parts.push(PagePart::new(format!("p-{}", card.m.listed.machine), fragment(card)?));
            }
            Ok(parts)
        }
    })
}

/// Creates a code to enroll a machine, and shows it in the command to paste there.
pub(crate) async fn enroll(
    State(app): State<App>,
    signed_in: SignedIn,
    Origin(market): Origin,
) -> Result<Html<String>, PageError> {
    let code = app.command("enrollment", "create", signed_in.actor(), &CreateEnrollment {}).await?;
    Ok(show(&app, signed_in, Seq::ZERO, Some(code), market, None).await?)
}

/// Revokes the credential of a machine, for example of one that was stolen.
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
    seq: Seq,
    code: Option<EnrollmentCode>,
    market: String,
    refused: Option<(MachineId, (String, String))>,
) -> Result<Html<String>, Problem> {
    let (totals, machines) = tokio::join!(totals(app, signed_in, seq), machines(app, signed_in, seq));
    let (totals, mut machines) = (totals?, machines?);
    if let Some((machine, refused)) = refused
        && let Some(card) = machines.cards.iter_mut().find(|card| card.m.listed.machine == machine)
    {
        card.refused = Some(refused);
    }
    let chrome = Chrome::new("My machines", "provider", signed_in.viewer);
    let (empty, machines) = (machines.cards.is_empty(), fragment(&machines)?);
    html(&Provider { chrome, totals, machines, empty, seq, code, market })
}

/// P10, median and P90 of the prices of machines with the same GPU, or of machines without a GPU.
fn prices(market: &[Arc<MachineView>], row: &ListedMachine) -> Option<(HourlyRate, HourlyRate, HourlyRate)> {
    let model = |row: &ListedMachine| row.offer.hardware.gpus.first().map(|g| g.model.clone());
    let wanted = model(row);
    let mut prices: Vec<_> =
        market.iter().filter(|m| model(&m.listed) == wanted).map(|m| m.listed.offer.price).collect();
    prices.sort_unstable();
    // The nearest-rank method: P90 of a few prices is the highest one.
    let at = |percent: usize| prices.get((prices.len() * percent).div_ceil(100).saturating_sub(1)).copied();
    Some((at(10)?, at(50)?, at(90)?))
}

/// The form of a button.
#[derive(Debug, Deserialize)]
pub(crate) struct OwnerAction {
    wish: String,
    #[serde(default)]
    price: Option<String>,
}

pub(crate) async fn change(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(machine): Path<MachineId>,
    Form(form): Form<OwnerAction>,
) -> Result<Response, PageError> {
    let typed = form.price.clone().unwrap_or_default();
    match send_wish(&app, signed_in, machine, form).await {
        Ok(done) => Ok(Redirect::to(&format!("/provider?seq={}", done.seq)).into_response()),
        // The problem is shown beside the field, with the price that was typed.
        Err(problem) if problem.field.is_some() => {
            let status = StatusCode::from_u16(problem.status).unwrap_or_default();
            let refused = Some((machine, (typed, problem.detail)));
            Ok((status, show(&app, signed_in, Seq::ZERO, None, String::new(), refused).await?).into_response())
        }
        Err(problem) => Err(problem.into()),
    }
}

async fn send_wish(app: &App, signed_in: SignedIn, machine: MachineId, form: OwnerAction) -> Result<Done, Problem> {
    let wish = match form.wish.as_str() {
        "pause" => MachineChange::Pause,
        "resume" => MachineChange::Resume,
        "drain" => MachineChange::Drain,
        "maintain" => MachineChange::Maintain,
        "delist" => MachineChange::Delist,
        "reprice" => MachineChange::Reprice(HourlyRate(dollars("price", &form.price.unwrap_or_default())?)),
        _ => return Err(Problem::invalid("wish", "This is not something a machine can be asked.")),
    };
    Ok(app.command("market", "machine", signed_in.actor(), &ChangeMachine { machine, wish }).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::machine;

    #[test]
    fn prices_are_those_of_machines_with_the_same_gpu() {
        let own = machine("own", "RTX 4090", 5);
        let market: Vec<_> = (1..=10).map(|price| Arc::new(machine("x", "RTX 4090", price))).collect();
        let rate = |micros| HourlyRate(MicroUsd(micros));
        assert_eq!(prices(&market, &own.listed), Some((rate(1), rate(5), rate(9))));
        assert_eq!(prices(&market[..1], &own.listed), Some((rate(1), rate(1), rate(1))));
        assert_eq!(prices(&market, &machine("other", "A100", 5).listed), None);
        let mut without = machine("cpu", "", 5);
        without.listed.offer.hardware.gpus.clear();
        assert_eq!(prices(&market, &without.listed), None);
        assert_eq!(prices(&[Arc::new(without.clone())], &without.listed), Some((rate(5), rate(5), rate(5))));
    }
}
