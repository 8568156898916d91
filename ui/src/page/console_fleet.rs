//! The fleet page for operators: every machine on the market. Machines in trouble come first ([`trouble_score`]).

use std::{cmp::Reverse, collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use askama::Template;
use axum::{
    extract::State,
    response::{
        Html,
        sse::{Event, Sse},
    },
};
use futures_util::Stream;
use gpubnb_events::{Aggregate, Timestamp};
use gpubnb_query::view::{MachineState, MachineView};
use serde::{Deserialize, Serialize};

use super::{Layout, render_fragment, render_page};
use crate::{
    access::SignedIn,
    app::App,
    error::{PageError, Problem},
    extract::Query,
    live::parts::{self, PagePart},
    market_filters::STATES,
    state::Change,
};

/// The filters of the fleet, as query parameters. An empty filter is not applied.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct FleetFilters {
    /// A part of the machine's name, region, GPU model or id, or of its owner's id.
    #[serde(default)]
    text: String,
    /// A machine state such as `Lost`.
    #[serde(default)]
    state: String,
    /// `trouble` for only machines in trouble.
    #[serde(default)]
    only: String,
}

impl FleetFilters {
    fn matches(&self, m: &MachineView) -> bool {
        let (row, text) = (&m.listed, self.text.trim().to_lowercase());
        let ids = [row.machine.to_string(), row.owner.to_string()];
        let texts = [&row.offer.name, &row.offer.region].into_iter().chain(&ids);
        let gpus = row.offer.hardware.gpus.iter().map(|gpu| &gpu.model);
        texts.chain(gpus).any(|value| value.to_lowercase().contains(&text))
            && (self.state.is_empty() || row.state().name() == self.state)
            && (self.only != "trouble" || trouble_score(m) > 0)
    }

    fn live_address(&self) -> String {
        serde_urlencoded::to_string(self).map(|q| format!("/console/fleet/live?{q}")).unwrap_or_default()
    }
}

/// The severity of a machine's trouble, for sorting; 0 means no trouble. A machine that sends no heartbeats counts 100,
/// a recent fault 10, and each failed check 1.
fn trouble_score(m: &MachineView) -> usize {
    let silent = matches!(m.listed.state(), MachineState::Suspect | MachineState::Lost);
    let failed = m.listed.checks.iter().filter(|check| !check.passed).count();
    usize::from(silent) * 100 + usize::from(m.listed.trouble.is_some()) * 10 + failed
}

#[derive(Template)]
#[template(path = "console_fleet.html")]
struct FleetPage {
    layout: Layout,
    filters: FleetFilters,
    /// The choices of the state filter.
    states: Vec<&'static str>,
    rows: String,
}

#[derive(Template)]
#[template(path = "console_fleet_rows.html")]
struct FleetRows {
    /// The number of machines in each state, without filters.
    states: BTreeMap<&'static str, usize>,
    /// Jobs that run on any machine.
    running: usize,
    /// Slots of all machines.
    slots: u64,
    /// Machines that match the filters; `shown` has at most [`MAX_SHOWN`] of them.
    matching: usize,
    shown: Vec<Arc<MachineView>>,
    now: Timestamp,
}

const MAX_SHOWN: usize = 200;

async fn render_rows(app: &App, filters: &FleetFilters) -> Result<String, Problem> {
    let all = app.machines.machines().await;
    let mut states = BTreeMap::new();
    for m in &all {
        *states.entry(m.listed.state().name()).or_default() += 1;
    }
    let running = all.iter().map(|m| m.listed.running.len()).sum();
    let slots = all.iter().map(|m| u64::from(m.listed.offer.slots)).sum();
    let mut shown: Vec<_> = all.into_iter().filter(|m| filters.matches(m)).collect();
    let matching = shown.len();
    shown.sort_by(|a, b| {
        (Reverse(trouble_score(a)), &a.listed.offer.name).cmp(&(Reverse(trouble_score(b)), &b.listed.offer.name))
    });
    shown.truncate(MAX_SHOWN);
    render_fragment(&FleetRows { states, running, slots, matching, shown, now: app.now() })
}

pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(filters): Query<FleetFilters>,
) -> Result<Html<String>, PageError> {
    let rows = render_rows(&app, &filters).await?;
    let layout = Layout::new("Fleet", "console", signed_in.viewer);
    Ok(render_page(&FleetPage { layout, filters, states: STATES.map(MachineState::name).to_vec(), rows })?)
}

pub(crate) async fn live(
    State(app): State<App>,
    Query(filters): Query<FleetFilters>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let is_relevant = |change: &Change| matches!(change.aggregate, Aggregate::Machine(_));
    parts::stream(app.changes.clone(), Duration::from_secs(1), is_relevant, move |_| {
        let (app, filters) = (app.clone(), filters.clone());
        async move { Ok(vec![PagePart::new("fleet", render_rows(&app, &filters).await?)]) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::machine;

    #[test]
    fn a_suspect_machine_scores_100_and_passes_the_trouble_filter() {
        let healthy = machine("a", "RTX", 1);
        let mut silent = healthy.clone();
        silent.listed.presence = MachineState::Suspect;
        assert_eq!((trouble_score(&healthy), trouble_score(&silent)), (0, 100));
        let only_trouble = FleetFilters { only: "trouble".to_owned(), ..Default::default() };
        assert!(only_trouble.matches(&silent) && !only_trouble.matches(&healthy));
    }

    #[test]
    fn the_text_filter_finds_names_regions_gpus_and_ids() {
        let m = machine("Lab Seven", "RTX 4090", 1);
        for text in ["lab", "4090", "eu", &m.listed.machine.to_string(), &m.listed.owner.to_string()] {
            assert!(FleetFilters { text: format!(" {text} "), ..Default::default() }.matches(&m), "{text}");
        }
        assert!(!FleetFilters { text: "a100".to_owned(), ..Default::default() }.matches(&m));
        assert!(!FleetFilters { state: "Lost".to_owned(), ..Default::default() }.matches(&m));
    }
}
