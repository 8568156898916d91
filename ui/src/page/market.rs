//! The market page: a card for each machine, filters, and live updates.

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

use super::{Layout, render_fragment, render_page};
use crate::{
    access::Viewer,
    app::App,
    error::{PageError, Problem},
    extract::Query,
    hardware,
    live::parts::{self, PagePart},
    state::Change,
};

/// The filters, the order and the page number, as query parameters. An empty or unreadable filter is not applied.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct MarketFilters {
    /// A part of the machine's name or region, or of the model of its CPU or a GPU.
    #[serde(default)]
    text: String,
    /// `gpu` for machines with a GPU, `cpu` for machines without one.
    #[serde(default)]
    kind: String,
    #[serde(default)]
    region: String,
    /// Dollars per hour.
    #[serde(default)]
    max_price: String,
    /// Memory of the largest GPU, GiB.
    #[serde(default)]
    min_vram: String,
    /// `free` for machines that are online with a free slot, `verified` for machines that passed their
    /// self-test.
    #[serde(default)]
    only: String,
    /// A part of a GPU's model name.
    #[serde(default)]
    gpu: String,
    /// Attempts without a failure of the machine, percent.
    #[serde(default)]
    min_reliability: String,
    /// `finishes` for owners who never stop a running job, `egress` for owners who allow jobs to use the internet.
    #[serde(default)]
    owner: String,
    /// A machine state in any case, such as `Online` or `paused`.
    #[serde(default)]
    state: String,
    #[serde(default)]
    min_gpus: String,
    /// A part of the version of the driver or of CUDA, such as `12.4`.
    #[serde(default)]
    driver: String,
    #[serde(default)]
    min_cores: String,
    /// GiB.
    #[serde(default)]
    min_ram: String,
    /// GiB.
    #[serde(default)]
    min_disk: String,
    /// Measured download speed from the market, Mbit/s.
    #[serde(default)]
    min_down: String,
    /// Measured upload speed to the market, Mbit/s.
    #[serde(default)]
    min_up: String,
    /// Measured speed per dollar (see [`hardware::score`]).
    #[serde(default)]
    min_score: String,
    /// `real` for machines without simulated GPUs.
    #[serde(default)]
    simulated: String,
    /// `score`, `vram` and `reliability` sort from high to low, `name` from A to Z, anything else by rising price.
    #[serde(default)]
    sort: String,
    /// `table` for a table of offers, anything else for cards.
    #[serde(default)]
    view: String,
    /// The page of the list, counted from 1.
    #[serde(default)]
    page: String,
}

/// The columns of the table: name, the value of the filter `sort`, and whether the column has numbers.
const COLUMNS: [(&str, &str, bool); 13] = [
    ("Machine", "name", false),
    ("GPU", "", false),
    ("VRAM", "vram", true),
    ("Price", "price", true),
    ("Speed per $/h", "score", true),
    ("Cores", "cores", true),
    ("RAM", "ram", true),
    ("Disk", "disk", true),
    ("Down / up, Mbit/s", "down", true),
    ("Region", "region", false),
    ("Reliability", "reliability", true),
    ("Free", "", true),
    ("", "", false),
];

/// Reads a number of a filter, at least zero. A comma counts as a decimal point.
fn number(filter: &str) -> Option<f64> {
    filter.trim().replace(',', ".").parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0)
}

/// Reads a price of a filter.
fn price(filter: &str) -> Option<MicroUsd> {
    filter.trim().replace(',', ".").parse().ok().filter(|price| *price >= MicroUsd::ZERO)
}

impl MarketFilters {
    fn matches(&self, m: &MachineView) -> bool {
        let offer = &m.listed.offer;
        let text = self.text.to_lowercase();
        let text_matches =
            [&offer.name, &offer.region, &offer.hardware.cpu_model].iter().any(|s| s.to_lowercase().contains(&text))
                || offer.hardware.gpus.iter().any(|g| g.model.to_lowercase().contains(&text));
        let kind_matches = match self.kind.as_str() {
            "gpu" => !offer.hardware.gpus.is_empty(),
            "cpu" => offer.hardware.gpus.is_empty(),
            _ => true,
        };
        let model = self.gpu.to_lowercase();
        let owner_matches = match self.owner.as_str() {
            "finishes" => !offer.policy.may_evict,
            "egress" => !offer.policy.egress.is_none(),
            _ => true,
        };
        let reliability = number(&self.min_reliability);
        text_matches
            && kind_matches
            && owner_matches
            && (model.is_empty() || offer.hardware.gpus.iter().any(|g| g.model.to_lowercase().contains(&model)))
            && reliability
                .is_none_or(|min| m.listed.reliability().is_some_and(|(percent, _)| f64::from(percent) >= min))
            && (self.region.is_empty() || self.region == offer.region)
            && price(&self.max_price).is_none_or(|max| offer.price.0 <= max)
            && self.matches_hardware(m)
            && (self.state.is_empty() || m.listed.state().name().eq_ignore_ascii_case(&self.state))
            && match self.only.as_str() {
                "free" => m.listed.state() == MachineState::Online && m.listed.free_slots() > 0,
                "verified" => hardware::is_verified(&m.listed),
                _ => true,
            }
    }

    /// Applies the filters of hardware and speed.
    // `f64` is exact for the sizes that real machines have.
    #[allow(clippy::cast_precision_loss)]
    fn matches_hardware(&self, m: &MachineView) -> bool {
        let hardware = &m.listed.offer.hardware;
        let at_least = |filter: &str, value: f64| number(filter).is_none_or(|min| value >= min);
        let gib = |size: Mebibytes| size.0 as f64 / 1_024.0;
        let (down, up) = hardware::network_speed(&m.listed);
        let version = self.driver.trim();
        let versions = [hardware.driver.as_deref(), hardware.cuda.as_deref()];
        let vram = hardware.gpus.iter().map(|g| g.memory).max().unwrap_or(Mebibytes(0));
        at_least(&self.min_gpus, hardware.gpus.len() as f64)
            && at_least(&self.min_vram, gib(vram))
            && (version.is_empty() || versions.iter().flatten().any(|v| v.contains(version)))
            && at_least(&self.min_cores, f64::from(hardware.cpu_cores))
            && at_least(&self.min_ram, gib(hardware.memory))
            && at_least(&self.min_disk, gib(hardware.disk))
            && at_least(&self.min_down, down)
            && at_least(&self.min_up, up)
            && at_least(&self.min_score, hardware::score(&m.listed).map_or(0.0, |score| score.per_dollar))
            && (self.simulated != "real" || !hardware.simulated)
    }

    fn sort(&self, machines: &mut [Arc<MachineView>]) {
        let vram = |m: &Arc<MachineView>| m.listed.offer.hardware.gpus.iter().map(|g| g.memory.0).max().unwrap_or(0);
        match self.sort.as_str() {
            "vram" => machines.sort_by_key(|m| std::cmp::Reverse(vram(m))),
            "reliability" => machines.sort_by_key(|m| std::cmp::Reverse(m.listed.reliability())),
            "score" => machines.sort_by(|a, b| {
                let per_dollar = |m: &MachineView| hardware::score(&m.listed).map_or(0.0, |s| s.per_dollar);
                per_dollar(b).total_cmp(&per_dollar(a))
            }),
            "name" => machines.sort_by(|a, b| a.listed.offer.name.cmp(&b.listed.offer.name)),
            "region" => machines.sort_by(|a, b| a.listed.offer.region.cmp(&b.listed.offer.region)),
            "cores" => machines.sort_by_key(|m| std::cmp::Reverse(m.listed.offer.hardware.cpu_cores)),
            "ram" => machines.sort_by_key(|m| std::cmp::Reverse(m.listed.offer.hardware.memory)),
            "disk" => machines.sort_by_key(|m| std::cmp::Reverse(m.listed.offer.hardware.disk)),
            "down" => machines.sort_by(|a, b| {
                let down = |m: &MachineView| hardware::network_speed(&m.listed).0;
                down(b).total_cmp(&down(a))
            }),
            _ => machines.sort_by_key(|m| m.listed.offer.price),
        }
    }

    /// The address of page number `page` of the list with these filters.
    fn address(&self, path: &str, page: usize) -> String {
        let page = if page > 1 { page.to_string() } else { String::new() };
        Self { page, ..self.clone() }.address_of_set_filters(path)
    }

    /// The address of the first page with another value of a filter.
    fn address_with(&self, filter: &str, value: &str) -> String {
        let mut filters = Self { page: String::new(), ..self.clone() };
        match filter {
            "view" => value.clone_into(&mut filters.view),
            _ => value.clone_into(&mut filters.sort),
        }
        filters.address_of_set_filters("/market")
    }

    /// The address with the filters that are set.
    fn address_of_set_filters(&self, path: &str) -> String {
        let Ok(serde_json::Value::Object(filters)) = serde_json::to_value(self) else { return path.to_owned() };
        let set: Vec<_> = filters.iter().filter_map(|(name, value)| Some((name, value.as_str()?))).collect();
        let set: Vec<_> = set.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        let query = serde_urlencoded::to_string(set).unwrap_or_default();
        if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
    }

    fn is_table(&self) -> bool {
        self.view == "table"
    }

    /// True if the list is sorted by this column. The default is the price.
    fn sorts_by(&self, sort: &str) -> bool {
        !sort.is_empty() && (self.sort == sort || (sort == "price" && self.sort.is_empty()))
    }

    /// The labels of the filters that cannot be read, and so filter nothing.
    fn unreadable(&self) -> Vec<&'static str> {
        let numbers = [
            ("Min reliability", &self.min_reliability),
            ("Min VRAM", &self.min_vram),
            ("Min GPUs", &self.min_gpus),
            ("Min CPU cores", &self.min_cores),
            ("Min RAM", &self.min_ram),
            ("Min disk", &self.min_disk),
            ("Min download", &self.min_down),
            ("Min upload", &self.min_up),
            ("Min speed per $", &self.min_score),
        ];
        let is_set = |filter: &str| !filter.trim().is_empty();
        let is_bad_price = is_set(&self.max_price) && price(&self.max_price).is_none();
        let numbers = numbers.into_iter().filter(|(_, value)| is_set(value) && number(value).is_none());
        is_bad_price.then_some("Max price").into_iter().chain(numbers.map(|(label, _)| label)).collect()
    }

    fn page(&self) -> usize {
        self.page.parse().unwrap_or(1).max(1)
    }

    /// The choices of the state filter.
    fn states(&self) -> [&'static str; 7] {
        STATES.map(MachineState::name)
    }

    /// True if a filter in the section "More filters" is set.
    fn has_more_filters(&self) -> bool {
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

/// Machines on one page of the list.
const PAGE_SIZE: usize = 48;

#[derive(Template)]
#[template(path = "market.html")]
struct MarketPage {
    layout: Layout,
    filters: MarketFilters,
    regions: Vec<String>,
    list: String,
}

/// One page of the list.
#[derive(Template)]
#[template(path = "market_list.html")]
struct MarketList {
    filters: MarketFilters,
    cards: Vec<MachineCard>,
    /// The number of machines that match the filters, on all pages.
    matching: usize,
    /// The number of these machines that could begin a job now.
    free: usize,
    /// The number of machines on the market.
    all: usize,
}

/// One machine of the list.
struct MachineCard {
    machine: Arc<MachineView>,
    is_row: bool,
}

#[derive(Template)]
#[template(path = "market_card.html")]
struct OfferCard<'a> {
    machine: &'a MachineView,
}

#[derive(Template)]
#[template(path = "market_row.html")]
struct OfferRow<'a> {
    machine: &'a MachineView,
}

impl MachineCard {
    fn render(&self) -> askama::Result<String> {
        let machine = &self.machine;
        if self.is_row { OfferRow { machine }.render() } else { OfferCard { machine }.render() }
    }
}

impl MarketList {
    fn page_count(&self) -> usize {
        self.matching.div_ceil(PAGE_SIZE)
    }
}

/// The requested page of the list, and the regions of all machines, each once.
async fn load_list(app: &App, filters: &MarketFilters) -> (MarketList, Vec<String>) {
    let mut machines = app.machines.machines().await;
    let all = machines.len();
    let mut regions: Vec<_> = machines.iter().map(|m| m.listed.offer.region.clone()).collect();
    regions.sort_unstable();
    regions.dedup();
    machines.retain(|m| filters.matches(m));
    filters.sort(&mut machines);
    let (matching, free) = (machines.len(), machines.iter().filter(|m| m.listed.is_free()).count());
    // A page after the last one shows the last one.
    let page = filters.page().min(matching.div_ceil(PAGE_SIZE).max(1));
    let filters = MarketFilters { page: page.to_string(), ..filters.clone() };
    let (shown, is_row) = (machines.into_iter().skip((page - 1) * PAGE_SIZE).take(PAGE_SIZE), filters.is_table());
    let cards = shown.map(|machine| MachineCard { machine, is_row }).collect();
    (MarketList { filters, cards, matching, free, all }, regions)
}

pub(crate) async fn page(
    State(app): State<App>,
    viewer: Viewer,
    Query(filters): Query<MarketFilters>,
) -> Result<Html<String>, PageError> {
    let (list, regions) = load_list(&app, &filters).await;
    let list = render_fragment(&list)?;
    Ok(render_page(&MarketPage { layout: Layout::new("Market", "market", viewer), filters, regions, list })?)
}

pub(crate) async fn live(
    State(app): State<App>,
    Query(filters): Query<MarketFilters>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let changes = app.changes.clone();
    let is_relevant = |change: &Change| matches!(change.aggregate, Aggregate::Machine(_));
    parts::stream(changes, Duration::from_millis(250), is_relevant, move |_| {
        let (app, filters) = (app.clone(), filters.clone());
        async move { page_parts(&load_list(&app, &filters).await.0) }
    })
}

/// The list as a container, and each card as a part of its own. So the whole list is sent only if its machines or their
/// order changed; otherwise only the changed cards are sent.
fn page_parts(list: &MarketList) -> Result<Vec<PagePart>, Problem> {
    let order: Vec<_> = list.cards.iter().map(|card| card.machine.listed.machine.to_string()).collect();
    let key = format!("{} {} {}", list.matching, list.all, order.join(" "));
    let mut parts = vec![PagePart::container("market-list", key, render_fragment(list)?)];
    parts.push(PagePart::new("free-now", format!("{} free now", list.free)));
    for card in &list.cards {
        let html = card.render().map_err(|e| Problem::internal(&e))?;
        parts.push(PagePart::new(format!("m-{}", card.machine.listed.machine), html));
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
    fn each_filter_accepts_and_rejects_machines_by_their_offer() {
        let mut m = machine("lab", "RTX 4090", 500_000);
        for accepting in [
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
            assert!(filters(accepting).matches(&m), "{accepting}");
        }
        for rejecting in [
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
            assert!(!filters(rejecting).matches(&m), "{rejecting}");
        }
        m.listed.running.push(gpubnb_events::JobId::generate());
        assert!(!filters("only=free").matches(&m), "the only slot is in use");
    }

    #[test]
    fn machines_are_sorted_by_price_by_default() {
        let mut big = machine("a", "H200", 3);
        big.listed
            .offer
            .hardware
            .gpus
            .push(Gpu { memory: Mebibytes(141 * 1_024), ..big.listed.offer.hardware.gpus[0].clone() });
        let mut machines = [machine("c", "RTX", 2), big, machine("b", "RTX", 1)].map(Arc::new);
        let mut sorted = |query: &str| {
            filters(query).sort(&mut machines);
            machines.iter().map(|m| m.listed.offer.name.clone()).collect::<String>()
        };
        assert_eq!(sorted(""), "bca");
        assert_eq!(sorted("sort=name"), "abc");
        assert!(sorted("sort=vram").starts_with('a'));
    }

    #[test]
    fn a_missing_or_invalid_page_number_means_the_first_page() {
        for query in ["", "page=0", "page=-1", "page=x"] {
            assert_eq!(filters(query).page(), 1, "{query}");
        }
        assert_eq!(filters("page=3").page(), 3);
        let list = |matching| MarketList { filters: filters(""), cards: Vec::new(), matching, free: 0, all: matching };
        assert_eq!([0, 1, PAGE_SIZE, PAGE_SIZE + 1].map(|n| list(n).page_count()), [0, 1, 1, 2]);
    }

    #[test]
    fn the_parts_of_a_list_are_the_list_and_each_card() {
        let one = Arc::new(machine("a", "RTX", 1));
        let list = |cards: &[&Arc<MachineView>]| MarketList {
            filters: filters(""),
            cards: cards.iter().map(|m| MachineCard { machine: Arc::clone(m), is_row: false }).collect(),
            free: 0,
            matching: cards.len(),
            all: cards.len(),
        };
        let parts = page_parts(&list(&[&one])).unwrap();
        assert_eq!(
            parts.iter().map(|p| p.id.clone()).collect::<Vec<_>>(),
            ["market-list".to_owned(), "free-now".to_owned(), format!("m-{}", one.listed.machine)]
        );
    }
}
