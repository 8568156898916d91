//! The market: machines like stays, with filters in the address and live rows.

use std::{convert::Infallible, time::Duration};

use askama::Template;
use axum::{
    extract::State,
    response::{
        Html,
        sse::{Event, Sse},
    },
};
use futures_util::Stream;
use gpubnb_events::{Aggregate, MicroUsd, Seq};
use gpubnb_projector::view::{MachineState, MachineView};
use serde::{Deserialize, Serialize};

use super::{Chrome, fragment, html};
use crate::{
    access::Viewer,
    app::App,
    error::{PageError, Problem},
    extract::Query,
    live::fragment as live_fragment,
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
    /// `price`, `vram`, `reliability`, `name`.
    #[serde(default)]
    sort: String,
}

impl Filters {
    fn wants(&self, m: &MachineView) -> bool {
        let offer = &m.row.offer;
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
        named
            && kind
            && (self.region.is_empty() || self.region == offer.region)
            && self.max_price.parse::<MicroUsd>().map_or(true, |most| offer.price.0 <= most)
            && self.min_vram.parse::<u64>().map_or(true, |gib| vram >= gib * 1_024)
            && (self.only != "free" || (m.row.state() == MachineState::Online && m.row.free_slots() > 0))
    }

    fn order(&self, machines: &mut [MachineView]) {
        let vram = |m: &MachineView| m.row.offer.hardware.gpus.iter().map(|g| g.memory.0).max().unwrap_or(0);
        match self.sort.as_str() {
            "vram" => machines.sort_by_key(|m| std::cmp::Reverse(vram(m))),
            "reliability" => machines.sort_by_key(|m| std::cmp::Reverse(m.row.reliability())),
            "name" => machines.sort_by(|a, b| a.row.offer.name.cmp(&b.row.offer.name)),
            _ => machines.sort_by_key(|m| m.row.offer.price),
        }
    }

    /// The address of the live rows with these filters.
    fn live(&self) -> String {
        serde_urlencoded::to_string(self).map(|q| format!("/market/live?{q}")).unwrap_or_default()
    }
}

#[derive(Template)]
#[template(path = "market.html")]
struct Market {
    chrome: Chrome,
    filters: Filters,
    regions: Vec<String>,
    rows: String,
}

#[derive(Template)]
#[template(path = "market_rows.html")]
struct Rows {
    machines: Vec<MachineView>,
    all: usize,
}

async fn rows(app: &App, viewer: Viewer, filters: &Filters, seq: Seq) -> Result<(String, Vec<String>), Problem> {
    let mut machines = app.queries.machines(viewer.actor(), seq).await?;
    let all = machines.len();
    let mut regions: Vec<_> = machines.iter().map(|m| m.row.offer.region.clone()).collect();
    regions.sort();
    regions.dedup();
    machines.retain(|m| filters.wants(m));
    filters.order(&mut machines);
    Ok((fragment(&Rows { machines, all })?, regions))
}

pub(crate) async fn page(
    State(app): State<App>,
    viewer: Viewer,
    Query(filters): Query<Filters>,
) -> Result<Html<String>, PageError> {
    let (rows, regions) = rows(&app, viewer, &filters, Seq::ZERO).await?;
    Ok(html(&Market { chrome: Chrome::new("Market", "market", viewer), filters, regions, rows })?)
}

pub(crate) async fn live(
    State(app): State<App>,
    viewer: Viewer,
    Query(filters): Query<Filters>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let changes = app.changes.clone();
    let matters = |a| matches!(a, Aggregate::Machine(_));
    live_fragment::stream(changes, "rows", Duration::from_secs(1), matters, move |seq| {
        let (app, filters) = (app.clone(), filters.clone());
        async move { Ok(rows(&app, viewer, &filters, seq).await?.0) }
    })
}
