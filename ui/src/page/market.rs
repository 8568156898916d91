//! The market: cards of machines, with filters in the address and live updates.

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
    hardware,
    live::parts::{self, PagePart},
    state::Change,
};

/// Filters and order, as they stand in the address.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct MarketFilters {
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
    /// `finishes`: the owner never stops a job; `egress`: jobs may use the internet.
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
    /// The page of the list, from 1.
    #[serde(default)]
    page: String,
}

impl MarketFilters {
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
                "verified" => hardware::verified(&m.listed),
                _ => true,
            }
    }

    /// The filters of hardware and speed. A filter that cannot be read is ignored.
    // The values are compared with numbers that people type: the precision that is lost does not matter.
    #[allow(clippy::cast_precision_loss)]
    fn wants_hardware(&self, m: &MachineView) -> bool {
        let parts = &m.listed.offer.hardware;
        let least = |filter: &str, has: f64| filter.trim().parse::<f64>().map_or(true, |least| has >= least);
        let gib = |size: Mebibytes| size.0 as f64 / 1_024.0;
        let (down, up) = hardware::network_speed(&m.listed);
        let version = self.driver.trim();
        let versions = [parts.driver.as_deref(), parts.cuda.as_deref()];
        least(&self.min_gpus, parts.gpus.len() as f64)
            && (version.is_empty() || versions.iter().flatten().any(|v| v.contains(version)))
            && least(&self.min_cores, f64::from(parts.cpu_cores))
            && least(&self.min_ram, gib(parts.memory))
            && least(&self.min_disk, gib(parts.disk))
            && least(&self.min_down, down)
            && least(&self.min_up, up)
            && least(&self.min_score, hardware::score(&m.listed).map_or(0.0, |score| score.per_dollar))
            && (self.simulated != "real" || !parts.simulated)
    }

    fn order(&self, machines: &mut [Arc<MachineView>]) {
        let vram = |m: &Arc<MachineView>| m.listed.offer.hardware.gpus.iter().map(|g| g.memory.0).max().unwrap_or(0);
        match self.sort.as_str() {
            "vram" => machines.sort_by_key(|m| std::cmp::Reverse(vram(m))),
            "reliability" => machines.sort_by_key(|m| std::cmp::Reverse(m.listed.reliability())),
            "score" => machines.sort_by(|a, b| {
                let per_dollar = |m: &MachineView| hardware::score(&m.listed).map_or(0.0, |s| s.per_dollar);
                per_dollar(b).total_cmp(&per_dollar(a))
            }),
            "name" => machines.sort_by(|a, b| a.listed.offer.name.cmp(&b.listed.offer.name)),
            _ => machines.sort_by_key(|m| m.listed.offer.price),
        }
    }

    /// The address of a page of the list with these filters.
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

    /// True if a filter below the first row is set.
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
    filters: MarketFilters,
    regions: Vec<String>,
    list: String,
}

/// The cards of one page of the list, and how many match.
#[derive(Template)]
#[template(path = "market_list.html")]
struct MarketList {
    filters: MarketFilters,
    cards: Vec<MachineCard>,
    matching: usize,
    all: usize,
}

/// The card of a machine.
#[derive(Template)]
#[template(path = "market_card.html")]
struct MachineCard {
    m: Arc<MachineView>,
}

impl MarketList {
    fn pages(&self) -> usize {
        self.matching.div_ceil(AT_ONCE)
    }
}

/// One page of the machines that match, in order, and the regions of all machines.
async fn list(app: &App, filters: &MarketFilters) -> (MarketList, Vec<String>) {
    let mut machines = app.machines.machines().await;
    let all = machines.len();
    let mut regions: Vec<_> = machines.iter().map(|m| m.listed.offer.region.clone()).collect();
    regions.sort_unstable();
    regions.dedup();
    machines.retain(|m| filters.wants(m));
    filters.order(&mut machines);
    let matching = machines.len();
    let shown = machines.into_iter().skip((filters.page() - 1) * AT_ONCE).take(AT_ONCE);
    (MarketList { filters: filters.clone(), cards: shown.map(|m| MachineCard { m }).collect(), matching, all }, regions)
}

pub(crate) async fn page(
    State(app): State<App>,
    viewer: Viewer,
    Query(filters): Query<MarketFilters>,
) -> Result<Html<String>, PageError> {
    let (list, regions) = list(&app, &filters).await;
    let list = fragment(&list)?;
    Ok(html(&Market { chrome: Chrome::new("Market", "market", viewer), filters, regions, list })?)
}

/// Sends the whole list if its machines or their order changed, otherwise only the cards that changed.
pub(crate) async fn live(
    State(app): State<App>,
    Query(filters): Query<MarketFilters>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let changes = app.changes.clone();
    let matters = |change: &Change| matches!(change.aggregate, Aggregate::Machine(_));
    parts::stream(changes, Duration::from_millis(250), matters, move |_| {
        let (app, filters) = (app.clone(), filters.clone());
        async move { parts_of(&list(&app, &filters).await.0) }
    })
}

fn parts_of(list: &MarketList) -> Result<Vec<PagePart>, Problem> {
    let order: Vec<_> = list.cards.iter().map(|card| card.m.listed.machine.to_string()).collect();
    let key = format!("{} {} {}", list.matching, list.all, order.join(" "));
    let mut parts = vec![PagePart::frame("market-list", key, fragment(list)?)];
    for card in &list.cards {
        parts.push(PagePart::new(format!("m-{}", card.m.listed.machine), fragment(card)?));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::machine;
    use gpubnb_events::spec::Gpu;

    fn filters(query: &str) -> MarketFilters {
        serde_urlencoded::from_str(query).unwrap()
    }

    #[test]
    fn filters_choose_by_what_the_machine_offers() {
        let mut m = machine("lab", "RTX 4090", 500_000);
        for fits in [
            "",
            "text=rtx",
            "text=LAB",
            "kind=gpu",
            "max_price=0.5",
            "min_vram=24",
            "gpu=4090",
            "region=EU",
            "only=free",
            "state=online",
            "min_cores=8",
            "min_ram=16",
            "min_disk=100",
            "owner=finishes",
            "simulated=real",
            "min_gpus=nonsense",
            "max_price=nonsense",
        ] {
            assert!(filters(fits).wants(&m), "{fits}");
        }
        for excludes in [
            "text=a100",
            "kind=cpu",
            "max_price=0.49",
            "min_vram=25",
            "gpu=A100",
            "region=US",
            "only=verified",
            "state=lost",
            "min_cores=9",
            "min_ram=17",
            "min_disk=101",
            "owner=egress",
            "min_reliability=1",
            "min_down=1",
            "driver=535",
        ] {
            assert!(!filters(excludes).wants(&m), "{excludes}");
        }
        m.listed.running.push(gpubnb_events::JobId::generate());
        assert!(!filters("only=free").wants(&m), "its one slot is in use");
    }

    #[test]
    fn the_order_is_by_price_unless_another_is_chosen() {
        let mut big = machine("a", "H200", 3);
        big.listed
            .offer
            .hardware
            .gpus
            .push(Gpu { memory: Mebibytes(141 * 1_024), ..big.listed.offer.hardware.gpus[0].clone() });
        let mut machines = [machine("c", "RTX", 2), big, machine("b", "RTX", 1)].map(Arc::new);
        let mut sorted = |query: &str| {
            filters(query).order(&mut machines);
            machines.iter().map(|m| m.listed.offer.name.clone()).collect::<String>()
        };
        assert_eq!(sorted(""), "bca");
        assert_eq!(sorted("sort=name"), "abc");
        assert!(sorted("sort=vram").starts_with('a'));
    }

    #[test]
    fn a_page_that_is_no_number_is_the_first() {
        for query in ["", "page=0", "page=-1", "page=x"] {
            assert_eq!(filters(query).page(), 1, "{query}");
        }
        assert_eq!(filters("page=3").page(), 3);
        let list = |matching| MarketList { filters: filters(""), cards: Vec::new(), matching, all: matching };
        assert_eq!([0, 1, AT_ONCE, AT_ONCE + 1].map(|n| list(n).pages()), [0, 1, 1, 2]);
    }

    #[test]
    fn one_card_more_changes_the_list_and_a_new_price_only_its_card() {
        let one = Arc::new(machine("a", "RTX", 1));
        let list = |cards: &[&Arc<MachineView>]| MarketList {
            filters: filters(""),
            cards: cards.iter().map(|m| MachineCard { m: Arc::clone(m) }).collect(),
            matching: cards.len(),
            all: cards.len(),
        };
        let parts = parts_of(&list(&[&one])).unwrap();
        assert_eq!(
            parts.iter().map(|p| p.id.clone()).collect::<Vec<_>>(),
            ["market-list".to_owned(), format!("m-{}", one.listed.machine)]
        );
    }
}
