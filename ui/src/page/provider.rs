//! The page of the viewer's own machines: state, earnings, and the buttons that change a machine.

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
    command::{ChangeMachine, Done, MachineChange, RevokeMachine, Revoked},
    spec::{MachineSettings, Setting},
};
use gpubnb_query::{
    request::DaysOf,
    view::{Balance, Day, ListedMachine, MachineState, MachineView},
};
use serde::Deserialize;

use super::{Layout, render_fragment, render_page};
use crate::{
    access::SignedIn,
    app::App,
    earnings::{self, MONTH, this_month},
    error::{PageError, Problem},
    extract::{Form, MinSeq, Path, Query},
    input::dollars,
    live::parts::{self, PagePart},
    prices::{PriceRange, model},
    state::Change,
};

#[derive(Template)]
#[template(path = "provider.html")]
struct ProviderPage {
    layout: Layout,
    totals: String,
    machines: String,
    has_machines: bool,
    /// The sequence of the viewer's last command, which live updates must reflect.
    seq: Seq,
}

#[derive(Template)]
#[template(path = "provider_totals.html")]
struct TotalsCard {
    balance: Balance,
    earned_today: MicroUsd,
    earned_this_month: MicroUsd,
    /// The earnings of the last days; empty if there are none.
    chart: String,
}

#[derive(Template)]
#[template(path = "provider_machines.html")]
struct OwnMachineList {
    cards: Vec<OwnMachineCard>,
}

#[derive(Template)]
#[template(path = "provider_card.html")]
struct OwnMachineCard {
    machine: MachineView,
    today: Day,
    earned_this_month: MicroUsd,
    /// Metered time today in percent of the slots' time since midnight UTC. One of two slots used all day is 50.
    utilisation: u64,
    /// The prices of machines with the same GPU.
    prices: Option<PriceRange>,
    /// The form of the settings: the present settings, or those that were refused.
    settings: SettingsForm,
    csrf: String,
    now: Timestamp,
}

/// The fields of the form of a machine's settings, as texts.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct SettingsForm {
    /// Dollars per hour.
    price: String,
    slots: String,
    /// Empty for all hours.
    hours: String,
    /// Empty if jobs need not wait for idle GPUs.
    idle_minutes: String,
    /// The reason why the market refused these settings, and the name of the field.
    #[serde(skip)]
    refused: Option<(String, String)>,
}

impl SettingsForm {
    /// The form with the settings that the owner wants now.
    fn of(listed: &ListedMachine) -> Self {
        let settings = listed.requested.clone().unwrap_or_else(|| listed.offer.settings());
        Self {
            price: listed.offer.price.0.to_string().replace('$', ""),
            slots: settings.slots.to_string(),
            hours: settings.hours.unwrap_or_default(),
            idle_minutes: settings.idle_minutes.map(|minutes| minutes.to_string()).unwrap_or_default(),
            refused: None,
        }
    }

    fn read(&self) -> Result<MachineSettings, Problem> {
        let number = |field: &str, text: &str| {
            text.trim().parse::<u32>().map_err(|_| Problem::invalid(field, "This must be a whole number."))
        };
        let set = |text: &str| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
        Ok(MachineSettings {
            price: HourlyRate(dollars("price", &self.price)?),
            slots: number("slots", &self.slots)?,
            hours: set(&self.hours),
            idle_minutes: set(&self.idle_minutes).map(|text| number("idle_minutes", &text)).transpose()?,
        })
    }

    /// The message beside a field; `None` if the field was not refused.
    fn error_of(&self, field: &str) -> Option<&str> {
        self.refused.as_ref().filter(|(refused, _)| refused == field).map(|(_, detail)| detail.as_str())
    }
}

impl OwnMachineCard {
    fn is_pinned(&self, setting: impl std::borrow::Borrow<Setting>) -> bool {
        self.machine.listed.offer.policy.pinned.contains(setting.borrow())
    }
}

/// Maximum number of concurrent queries for earnings.
const CONCURRENT_QUERIES: usize = 16;

async fn render_totals(app: &App, signed_in: SignedIn, seq: Seq) -> Result<String, Problem> {
    let (actor, account) = (signed_in.actor(), signed_in.account);
    let (balance, days) = tokio::join!(
        app.queries.balance(actor, account, seq),
        app.queries.days(actor, DaysOf::Account(account), MONTH, seq),
    );
    let days = days?;
    let (today, month) = this_month(&days, app.now());
    let earned_this_month = month.iter().map(|d| d.earned).sum();
    let chart = earnings::chart(&days, app.now());
    render_fragment(&TotalsCard { balance: balance?, earned_today: today.earned, earned_this_month, chart })
}

async fn load_machines(app: &App, signed_in: SignedIn, seq: Seq) -> Result<OwnMachineList, Problem> {
    let own = app.queries.machines_of(signed_in.actor(), signed_in.account, seq).await?;
    let market = app.machines.machines().await;
    let listed = own.into_iter().filter(|m| m.listed.wanted != MachineState::Delisted);
    let cards = stream::iter(listed).map(|m| load_card(app, signed_in, m, &market)).buffered(CONCURRENT_QUERIES);
    Ok(OwnMachineList { cards: cards.try_collect().await? })
}

async fn load_card(
    app: &App,
    signed_in: SignedIn,
    m: MachineView,
    market: &[Arc<MachineView>],
) -> Result<OwnMachineCard, Problem> {
    let of = DaysOf::Machine(m.listed.machine);
    let days = app.queries.days(signed_in.actor(), of, MONTH, Seq::ZERO).await?;
    let now = app.now();
    let (today, month) = this_month(&days, now);
    let day_ms = u64::try_from(now.millis() % 86_400_000).unwrap_or(1).max(1);
    let slots_ms = day_ms * u64::from(m.listed.offer.slots.max(1));
    Ok(OwnMachineCard {
        prices: PriceRange::of(
            market.iter().map(|other| &other.listed).filter(|other| model(other) == model(&m.listed)),
        ),
        settings: SettingsForm::of(&m.listed),
        today,
        earned_this_month: month.iter().map(|d| d.earned).sum(),
        utilisation: (today.metered.0 * 100 / slots_ms).min(100),
        csrf: super::csrf_field(signed_in.viewer),
        machine: m,
        now,
    })
}

pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(min_seq): Query<MinSeq>,
) -> Result<Html<String>, PageError> {
    Ok(render(&app, signed_in, min_seq.seq(), None).await?)
}

pub(crate) async fn live(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(min_seq): Query<MinSeq>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let (changes, cached_machines) = (app.changes.clone(), app.machines.clone());
    let is_relevant = move |change: &Change| match change.aggregate {
        // A machine that is not in the cache may be the viewer's.
        Aggregate::Machine(id) => cached_machines.machine(id).is_none_or(|m| m.listed.owner == signed_in.account),
        Aggregate::Account(id) => id == signed_in.account,
        Aggregate::Job(_) | Aggregate::Batch(_) => false,
    };
    let min_seq = min_seq.seq();
    parts::stream(changes, Duration::from_millis(500), is_relevant, move |seq| {
        let app = app.clone();
        async move {
            let seq = seq.max(min_seq);
            let totals = render_totals(&app, signed_in, seq).await?;
            let machines = load_machines(&app, signed_in, seq).await?;
            let order: Vec<_> = machines.cards.iter().map(|c| c.machine.listed.machine.to_string()).collect();
            let list = PagePart::container("machines", order.join(" "), render_fragment(&machines)?);
            let mut parts = vec![PagePart::new("totals", totals), list];
            for card in &machines.cards {
                parts.push(PagePart::new(format!("p-{}", card.machine.listed.machine), render_fragment(card)?));
            }
            Ok(parts)
        }
    })
}

/// `POST /machines/{machine}/revoke`: revokes the credential of a machine, for example after the machine was stolen.
pub(crate) async fn revoke(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(machine): Path<MachineId>,
) -> Result<Redirect, PageError> {
    app.command::<Revoked>("enrollment", "revoke", signed_in.actor(), &RevokeMachine { machine }).await?;
    Ok(Redirect::to("/provider"))
}

async fn render(
    app: &App,
    signed_in: SignedIn,
    seq: Seq,
    refused: Option<(MachineId, SettingsForm)>,
) -> Result<Html<String>, Problem> {
    let (totals, machines) = tokio::join!(render_totals(app, signed_in, seq), load_machines(app, signed_in, seq));
    let (totals, mut machines) = (totals?, machines?);
    if let Some((machine, form)) = refused
        && let Some(card) = machines.cards.iter_mut().find(|card| card.machine.listed.machine == machine)
    {
        card.settings = form;
    }
    let layout = Layout::new("My machines", "provider", signed_in.viewer);
    let (has_machines, machines) = (!machines.cards.is_empty(), render_fragment(&machines)?);
    render_page(&ProviderPage { layout, totals, machines, has_machines, seq })
}

/// The form of a button that changes a machine.
#[derive(Debug, Deserialize)]
pub(crate) struct MachineChangeForm {
    /// `pause`, `resume`, `drain`, `maintain`, `delist` or `configure`.
    #[serde(rename = "wish")]
    change: String,
    /// The new settings for `configure`.
    #[serde(flatten)]
    settings: SettingsForm,
}

pub(crate) async fn change(
    State(app): State<App>,
    signed_in: SignedIn,
    Path(machine): Path<MachineId>,
    Form(form): Form<MachineChangeForm>,
) -> Result<Response, PageError> {
    match send_change(&app, signed_in, machine, &form).await {
        Ok(done) => Ok(Redirect::to(&format!("/provider?seq={}", done.seq)).into_response()),
        // The error message is shown beside its field, and all fields keep what was submitted.
        Err(Problem { field: Some(field), detail, status, .. }) if field.parse::<Setting>().is_ok() => {
            let status = StatusCode::from_u16(status).unwrap_or_default();
            let refused = Some((machine, SettingsForm { refused: Some((field, detail)), ..form.settings }));
            Ok((status, render(&app, signed_in, Seq::ZERO, refused).await?).into_response())
        }
        Err(problem) => Err(problem.into()),
    }
}

async fn send_change(
    app: &App,
    signed_in: SignedIn,
    machine: MachineId,
    form: &MachineChangeForm,
) -> Result<Done, Problem> {
    let wish = match form.change.as_str() {
        "pause" => MachineChange::Pause,
        "resume" => MachineChange::Resume,
        "drain" => MachineChange::Drain,
        "maintain" => MachineChange::Maintain,
        "delist" => MachineChange::Delist,
        "configure" => MachineChange::Configure(form.settings.read()?),
        _ => {
            return Err(Problem::invalid("wish", "A machine cannot be changed in this way. Use a button of the page."));
        }
    };
    Ok(app.command("market", "machine", signed_in.actor(), &ChangeMachine { machine, change: wish }).await?)
}
