//! The fleet: every machine on the market, for operators. Machines in trouble come first.

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

use super::{Chrome, fragment, html};
use crate::{
    access::SignedIn,
    app::App,
    error::{PageError, Problem},
    extract::Query,
    live::parts::{self, PagePart},
    state::Change,
};

/// The filters, as they stand in the address.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct FleetFilters {
    /// Part of its name, region, GPU, id or its owner's id.
    #[serde(default)]
    text: String,
    #[serde(default)]
    state: String,
    /// `trouble`: only machines in trouble.
    #[serde(default)]
    only: String,
}

impl FleetFilters {
    fn wants(&self, m: &MachineView) -> bool {
        let (row, text) = (&m.listed, self.text.trim().to_lowercase());
        let ids = [row.machine.to_string(), row.owner.to_string()];
        let words = [&row.offer.name, &row.offer.region].into_iter().chain(&ids);
        let gpus = row.offer.hardware.gpus.iter().map(|gpu| &gpu.model);
        words.chain(gpus).any(|word| word.to_lowercase().contains(&text))
            && (self.state.is_empty() || row.state().name() == self.state)
            && (self.only != "trouble" || trouble(m) > 0)
    }

    fn live(&self) -> String {
        serde_urlencoded::to_string(self).map(|q| format!("/console/fleet/live?{q}")).unwrap_or_default()
    }
}

/// The trouble of a machine as a number to sort by. Silence weighs most, then a recent fault, then failed checks.
fn trouble(m: &MachineView) -> usize {
    let silent = matches!(m.listed.state(), MachineState::Suspect | MachineState::Lost);
    let failed = m.listed.checks.iter().filter(|check| !check.passed).count();
    usize::from(silent) * 100 + usize::from(m.listed.trouble.is_some()) * 10 + failed
}

#[derive(Template)]
#[template(path = "console_fleet.html")]
struct Fleet {
    chrome: Chrome,
    filters: FleetFilters,
    states: Vec<&'static str>,
    rows: String,
}

#[derive(Template)]
#[template(path = "console_fleet_rows.html")]
struct FleetRows {
    /// Number of all machines in each state.
    states: BTreeMap<&'static str, usize>,
    running: usize,
    slots: u64,
    matching: usize,
    shown: Vec<Arc<MachineView>>,
    now: Timestamp,
}

/// Most machines on the page. Others are found with the filters.
const SHOWN: usize = 200;

async fn rows(app: &App, filters: &FleetFilters) -> Result<String, Problem> {
    let all = app.machines.machines().await;
    let mut states = BTreeMap::new();
    for m in &all {
        *states.entry(m.listed.state().name()).or_default() += 1;
    }
    let running = all.iter().map(|m| m.listed.running.len()).sum();
    let slots = all.iter().map(|m| u64::from(m.listed.offer.slots)).sum();
    let mut shown: Vec<_> = all.into_iter().filter(|m| filters.wants(m)).collect();
    let matching = shown.len();
    shown.sort_by(|a, b| (Reverse(trouble(a)), &a.listed.offer.name).cmp(&(Reverse(trouble(b)), &b.listed.offer.name)));
    shown.truncate(SHOWN);
    fragment(&FleetRows { states, running, slots, matching, shown, now: app.now() })
}

pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(filters): Query<FleetFilters>,
) -> Result<Html<String>, PageError> {
    let rows = rows(&app, &filters).await?;
    let chrome = Chrome::new("Fleet", "console", signed_in.viewer);
    Ok(html(&Fleet { chrome, filters, states: super::market::STATES.map(MachineState::name).to_vec(), rows })?)
}

pub(crate) async fn live(
    State(app): State<App>,
    Query(filters): Query<FleetFilters>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let matters = |change: &Change| matches!(change.aggregate, Aggregate::Machine(_));
    parts::stream(app.changes.clone(), Duration::from_secs(1), matters, move |_| {
        let (app, filters) = (app.clone(), filters.clone());
        async move { Ok(vec![PagePart::new("fleet", rows(&app, &filters).await?)]) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::machine;

    #[test]
    fn silence_is_worse_than_any_failed_check() {
        let well = machine("a", "RTX", 1);
        let mut silent = well.clone();
        silent.listed.presence = MachineState::Suspect;
        assert_eq!((trouble(&well), trouble(&silent)), (0, 100));
        let only_trouble = FleetFilters { only: "trouble".to_owned(), ..Default::default() };
        assert!(only_trouble.wants(&silent) && !only_trouble.wants(&well));
    }

    #[test]
    fn the_text_filter_finds_names_gpus_and_ids() {
        let m = machine("Lab Seven", "RTX 4090", 1);
        for text in ["lab", "4090", "eu", &m.listed.machine.to_string(), &m.listed.owner.to_string()] {
            assert!(FleetFilters { text: format!(" {text} "), ..Default::default() }.wants(&m), "{text}");
        }
        assert!(!FleetFilters { text: "a100".to_owned(), ..Default::default() }.wants(&m));
        assert!(!FleetFilters { state: "Lost".to_owned(), ..Default::default() }.wants(&m));
    }
}
