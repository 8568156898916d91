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
use gpubnb_events::Aggregate;
use gpubnb_query::view::MachineView;

use super::{Layout, render_fragment, render_page};
use crate::{
    access::Viewer,
    app::App,
    error::{PageError, Problem},
    extract::Query,
    live::parts::{self, PagePart},
    market_filters::MarketFilters,
    state::Change,
};

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

    fn filters(query: &str) -> MarketFilters {
        serde_urlencoded::from_str(query).unwrap()
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
