//! The market: machines like stays, with filters in the address and live rows.

use std::{convert::Infallible, sync::Arc, time::Duration};

use askama::Template;
use axum::{
    extract::State,
    response::{
        Html,
        sse::{Event, Sse},
    },
};
use futures_util::Stream;
use gpubnb_events::{Aggregate, MicroUsd, spec::Mebibytes};
use gpubnb_query::view::{MachineState, MachineView};
use serde::{Deserialize, Serialize};

use super::{Chrome, fragment, html};
use crate::{
    access::Viewer,
    app::App,
    error::{PageError, Problem},
    extract::Query,
    format,
    live::parts::{self, Part},
};

/// Filters and order, as in the address.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Filters {
    #[serde(default)]
    text: String,
    /// `gpu`, `cpu` or empty.
    #[serde(default)]
    kind: String,
    #[serde(default)]
    region: String,
    #[serde(default)]
    max_price: String,
    /// GiB.
    #[serde(default)]
    min_vram: String,
    /// `free`: only machines that would take a job now.
    #[serde(default)]
    only: String,
    /// Part of the GPU's name.
    #[serde(default)]
    gpu: String,
    /// Percent.
    #[serde(default)]
    min_reliability: String,
    /// `finishes`: owners that do not take the machine back under a job; `egress`: jobs may use the network.
    #[serde(default)]
    owner: String,
    /// `online`, `paused`, … or empty.
    #[serde(default)]
    state: String,
    /// GPUs at least.
    #[serde(default)]
    min_gpus: String,
    /// Part of the driver's or CUDA's version.
    #[serde(default)]
    driver: String,
    /// CPU cores at least.
    #[serde(default)]
    min_cores: String,
    /// GiB.
    #[serde(default)]
    min_ram: String,
    /// GiB.
    #[serde(default)]
    min_disk: String,
    /// Mbit/s from the market, at least.
    #[serde(default)]
    min_down: String,
    /// Mbit/s to the market, at least.
    #[serde(default)]
    min_up: String,
    /// Measured speed per dollar, at least.
    #[serde(default)]
    min_score: String,
    /// `real`: without simulated GPUs.
    #[serde(default)]
    simulated: String,
    /// `price`, `score`, `vram`, `reliability`, `name`.
    #[serde(default)]
    sort: String,
    /// Which part of the list, from 1.
    #[serde(default)]
    page: String,
}

impl Filters {
    fn wants(&self, m: &MachineView) -> bool {
        let offer = &m.listed.offer;
        let text = self.text.to_lowercase();
        let named =
            [&offer.name, &offer.region, &offer.hardware.cpu_model].iter().any(|s| s.to_lowercase().contains(&text))
                || offer.hardware.gpus.iter().any(|g| g.model.to_lowercase().contains(&text));
        let kind = match self.kind.as_str() {
            "gpu" => !offer.hardware.gpus.is_empty(),
            "cpu" => offer.hardware.gpus.is_empty(),
            _ => true,
        };
        let vram = offer.hardware.gpus.iter().map(|g| g.memory.0).max().unwrap_or(0);
        let model = self.gpu.to_lowercase();
        let owner = match self.owner.as_str() {
            "finishes" => !offer.policy.may_evict,
            "egress" => offer.policy.egress,
            _ => true,
        };
        let reliability = self.min_reliability.parse::<u32>().ok();
        named
            && kind
            && owner
            && (model.is_empty() || offer.hardware.gpus.iter().any(|g| g.model.to_lowercase().contains(&model)))
            && reliability.is_none_or(|least| m.listed.reliability().is_some_and(|(percent, _)| percent >= least))
            && (self.region.is_empty() || self.region == offer.region)
            && self.max_price.parse::<MicroUsd>().map_or(true, |most| offer.price.0 <= most)
            && self.min_vram.parse::<u64>().map_or(true, |gib| vram >= gib * 1_024)
            && self.wants_hardware(m)
            && (self.state.is_empty() || m.listed.state().name().eq_ignore_ascii_case(&self.state))
            && match self.only.as_str() {
                "free" => m.listed.state() == MachineState::Online && m.listed.free_slots() > 0,
                "verified" => format::verified(&m.listed),
                _ => true,
            }
    }

    /// The filters of what a machine is made of. One that cannot be read filters nothing.
    // Compared with what people type.
    #[allow(clippy::cast_precision_loss)]
    fn wants_hardware(&self, m: &MachineView) -> bool {
        let hardware = &m.listed.offer.hardware;
        let least = |filter: &str, has: f64| filter.trim().parse::<f64>().map_or(true, |least| has >= least);
        let gib = |size: Mebibytes| size.0 as f64 / 1_024.0;
        let (down, up) = format::speed(&m.listed);
        let version = self.driver.trim();
        let versions = [hardware.driver.as_deref(), hardware.cuda.as_deref()];
        least(&self.min_gpus, hardware.gpus.len() as f64)
            && (version.is_empty() || versions.iter().flatten().any(|v| v.contains(version)))
            && least(&self.min_cores, f64::from(hardware.cpu_cores))
            && least(&self.min_ram, gib(hardware.memory))
            && least(&self.min_disk, gib(hardware.disk))
            && least(&self.min_down, down)
            && least(&self.min_up, up)
            && least(&self.min_score, format::score(&m.listed).map_or(0.0, |score| score.per_dollar))
            && (self.simulated != "real" || !hardware.simulated)
    }

    fn order(&self, machines: &mut [Arc<MachineView>]) {
        let vram = |m: &Arc<MachineView>| m.listed.offer.hardware.gpus.iter().map(|g| g.memory.0).max().unwrap_or(0);
        match self.sort.as_str() {
            "vram" => machines.sort_by_key(|m| std::cmp::Reverse(vram(m))),
            "reliability" => machines.sort_by_key(|m| std::cmp::Reverse(m.listed.reliability())),
            "score" => machines.sort_by(|a, b| {
                let per_dollar = |m: &MachineView| format::score(&m.listed).map_or(0.0, |s| s.per_dollar);
                per_dollar(b).total_cmp(&per_dollar(a))
            }),
            "name" => machines.sort_by(|a, b| a.listed.offer.name.cmp(&b.listed.offer.name)),
            _ => machines.sort_by_key(|m| m.listed.offer.price),
        }
    }

    /// An address with these filters.
    fn address(&self, path: &str, page: usize) -> String {
        let filters = Self { page: page.to_string(), ..self.clone() };
        serde_urlencoded::to_string(&filters).map(|q| format!("{path}?{q}")).unwrap_or_default()
    }

    fn page(&self) -> usize {
        self.page.parse().unwrap_or(1).max(1)
    }

    /// The states a machine on the market can be in.
    fn states(&self) -> [&'static str; 7] {
        STATES.map(MachineState::name)
    }

    /// What is further than the first row of filters.
    fn has_more(&self) -> bool {
        let offer = [&self.gpu, &self.region, &self.min_vram, &self.min_reliability, &self.owner, &self.state];
        let hardware = [&self.min_gpus, &self.driver, &self.min_cores, &self.min_ram, &self.min_disk];
        let measured = [&self.min_down, &self.min_up, &self.min_score, &self.simulated];
        offer.iter().chain(&hardware).chain(&measured).any(|f| !f.is_empty())
    }
}

/// The states in which a machine is on the market.
pub(super) const STATES: [MachineState; 7] = [
    MachineState::Online,
    MachineState::Suspect,
    MachineState::Lost,
    MachineState::Paused,
    MachineState::Away,
    MachineState::Draining,
    MachineState::Maintenance,
];

/// Machines on one page.
const AT_ONCE: usize = 48;

#[derive(Template)]
#[template(path = "market.html")]
struct Market {
    chrome: Chrome,
    filters: Filters,
    regions: Vec<String>,
    list: String,
}

/// The cards of one page of the list, and how many match.
#[derive(Template)]
#[template(path = "market_list.html")]
struct List {
    filters: Filters,
    cards: Vec<Card>,
    matching: usize,
    all: usize,
}

/// One machine as a card.
#[derive(Template)]
#[template(path = "market_card.html")]
struct Card {
    m: Arc<MachineView>,
}

impl List {
    fn pages(&self) -> usize {
        self.matching.div_ceil(AT_ONCE)
    }
}

/// The machines that match, in order, cut to the page; and the regions there are.
async fn list(app: &App, filters: &Filters) -> (List, Vec<String>) {
    let mut machines = app.board.machines().await;
    let all = machines.len();
    let mut regions: Vec<_> = machines.iter().map(|m| m.listed.offer.region.clone()).collect();
    regions.sort_unstable();
    regions.dedup();
    machines.retain(|m| filters.wants(m));
    filters.order(&mut machines);
    let matching = machines.len();
    let shown = machines.into_iter().skip((filters.page() - 1) * AT_ONCE).take(AT_ONCE);
    (List { filters: filters.clone(), cards: shown.map(|m| Card { m }).collect(), matching, all }, regions)
}

pub(crate) async fn page(
    State(app): State<App>,
    viewer: Viewer,
    Query(filters): Query<Filters>,
) -> Result<Html<String>, PageError> {
    let (list, regions) = list(&app, &filters).await;
    let list = fragment(&list)?;
    Ok(html(&Market { chrome: Chrome::new("Market", "market", viewer), filters, regions, list })?)
}

/// The list where other machines are in it or they stand in another order; else the cards that changed.
pub(crate) async fn live(
    State(app): State<App>,
    Query(filters): Query<Filters>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let changes = app.changes.clone();
    let matters = |change: &crate::live::Change| matches!(change.aggregate, Aggregate::Machine(_));
    parts::stream(changes, Duration::from_millis(250), matters, move |_| {
        let (app, filters) = (app.clone(), filters.clone());
        async move { parts_of(&list(&app, &filters).await.0) }
    })
}

fn parts_of(list: &List) -> Result<Vec<Part>, Problem> {
    let order: Vec<_> = list.cards.iter().map(|card| card.m.listed.machine.to_string()).collect();
    let key = format!("{} {} {}", list.matching, list.all, order.join(" "));
    let mut parts = vec![Part::frame("market-list", key, fragment(list)?)];
    for card in &list.cards {
        parts.push(Part::new(format!("m-{}", card.m.listed.machine), fragment(card)?));
    }
    Ok(parts)
}
