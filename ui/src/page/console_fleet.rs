//! The fleet: every machine on the market as operators look at it, those in trouble first.

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
    live::parts::{self, Part},
};

/// Filters of the fleet, as in the address.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Filters {
    /// Part of its name, region, GPU, id or its owner's id.
    #[serde(default)]
    text: String,
    #[serde(default)]
    state: String,
    /// `trouble`: only those that something is wrong with.
    #[serde(default)]
    only: String,
}

impl Filters {
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

/// What is wrong with a machine, as a number to sort by: silence, what its owner is told, checks that failed.
fn trouble(m: &MachineView) -> usize {
    let silent = matches!(m.listed.state(), MachineState::Suspect | MachineState::Lost);
    let failed = m.listed.checks.iter().filter(|check| !check.passed).count();
    usize::from(silent) * 100 + usize::from(m.listed.trouble.is_some()) * 10 + failed
}

#[derive(Template)]
#[template(path = "console_fleet.html")]
struct Fleet {
    chrome: Chrome,
    filters: Filters,
    states: Vec<&'static str>,
    rows: String,
}

#[derive(Template)]
#[template(path = "console_fleet_rows.html")]
struct Rows {
    /// How many there are in each state, of all.
    states: BTreeMap<&'static str, usize>,
    running: usize,
    slots: u64,
    matching: usize,
    shown: Vec<Arc<MachineView>>,
    now: Timestamp,
}

/// Machines that are shown at once: who looks for another one says so in the filter.
const SHOWN: usize = 200;

async fn rows(app: &App, filters: &Filters) -> Result<String, Problem> {
    let all = app.board.machines().await;
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
    fragment(&Rows { states, running, slots, matching, shown, now: app.now() })
}

pub(crate) async fn page(
    State(app): State<App>,
    signed_in: SignedIn,
    Query(filters): Query<Filters>,
) -> Result<Html<String>, PageError> {
    let rows = rows(&app, &filters).await?;
    let chrome = Chrome::new("Fleet", "console", signed_in.viewer);
    Ok(html(&Fleet { chrome, filters, states: super::market::STATES.map(MachineState::name).to_vec(), rows })?)
}

pub(crate) async fn live(
    State(app): State<App>,
    Query(filters): Query<Filters>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let matters = |change: &crate::live::Change| matches!(change.aggregate, Aggregate::Machine(_));
    parts::stream(app.changes.clone(), Duration::from_secs(1), matters, move |_| {
        let (app, filters) = (app.clone(), filters.clone());
        async move { Ok(vec![Part::new("fleet", rows(&app, &filters).await?)]) }
    })
}
