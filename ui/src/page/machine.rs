//! The page of one machine: offer, current state, charts, self-test, track record, jobs and trail.
//!
//! The trail of a machine is the list of its events.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use askama::Template;
use axum::{
    extract::State,
    response::{
        Html,
        sse::{Event, Sse},
    },
};
use futures_util::Stream;
use gpubnb_events::{Aggregate, MachineId, Seq, Timestamp, event::Fault};
use gpubnb_query::{
    request::{JobsQuery, TrailOf, TrailQuery},
    view::{AttemptOutcome, JobView, MachineView, Reading, TrailEvent},
};
use serde::Deserialize;

use super::{Layout, render_fragment, render_page};
use crate::{
    access::Viewer,
    app::App,
    chart,
    error::{PageError, Problem},
    extract::{Path, Query},
    live::parts::{self, PagePart},
    state::Change,
};

/// The period of the charts: the last 1 or 24 hours.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(crate) struct Period {
    /// Any number other than 24 means 1.
    #[serde(default)]
    hours: u32,
}

impl Period {
    fn hours(self) -> u32 {
        if self.hours == 24 { 24 } else { 1 }
    }
}

#[derive(Template)]
#[template(path = "machine.html")]
struct MachinePage {
    layout: Layout,
    machine: Arc<MachineView>,
    state_card: String,
    charts: String,
    hours: u32,
    record: String,
    self_test: String,
    jobs: String,
    trail: String,
    now: Timestamp,
}

#[derive(Template)]
#[template(path = "machine_now.html")]
struct StateCard<'a> {
    machine: &'a MachineView,
}

#[derive(Template)]
#[template(path = "machine_record.html")]
struct TrackRecordCard<'a> {
    machine: &'a MachineView,
    outcomes: Vec<AttemptOutcome>,
    can_open_events: bool,
    now: Timestamp,
}

#[derive(Template)]
#[template(path = "machine_self_test.html")]
struct SelfTestCard<'a> {
    machine: &'a MachineView,
}

impl TrackRecordCard<'_> {
    fn is_provider_fault(&self, outcome: &AttemptOutcome) -> bool {
        outcome.fault == Some(Fault::Provider)
    }
}

#[derive(Template)]
#[template(path = "machine_jobs.html")]
struct JobsCard {
    /// The newest jobs on this machine that the viewer may see.
    jobs: Vec<JobView>,
    is_operator: bool,
    now: Timestamp,
}

#[derive(Template)]
#[template(path = "machine_events.html")]
struct TrailCard<'a> {
    machine: &'a MachineView,
    trail: Vec<TrailEvent>,
    now: Timestamp,
}

/// Number of events on the page. `machine_events.html` repeats the number.
const TRAIL_LIMIT: u32 = 50;
/// The ids of the parts that [`render_event_parts`] renders.
const EVENT_PART_IDS: [&str; 4] = ["record", "self-test", "jobs-here", "trail"];

pub(crate) async fn page(
    State(app): State<App>,
    viewer: Viewer,
    Path(machine): Path<MachineId>,
    Query(period): Query<Period>,
) -> Result<Html<String>, PageError> {
    let m = load_machine(&app, viewer, machine).await?;
    let (event_parts, charts) =
        tokio::join!(render_event_parts(&app, viewer, &m), render_charts(&app, viewer, &m, period.hours()));
    let ([record, self_test, jobs, trail], charts) = (event_parts?, charts?);
    let state_card = render_fragment(&StateCard { machine: &m })?;
    let layout = Layout::new(m.listed.offer.name.clone(), "market", viewer);
    let (hours, now) = (period.hours(), app.now());
    Ok(render_page(&MachinePage {
        layout,
        machine: m,
        state_card,
        charts,
        hours,
        record,
        self_test,
        jobs,
        trail,
        now,
    })?)
}

/// The parts that change only with events, and not with heartbeats: track record, self-test, jobs, trail.
async fn render_event_parts(app: &App, viewer: Viewer, m: &MachineView) -> Result<[String; 4], Problem> {
    let (machine, actor, now) = (m.listed.machine, viewer.reading_actor(), app.now());
    let query = TrailQuery { of: TrailOf::Machine(machine), skip: 0, limit: TRAIL_LIMIT, from_end: true };
    let account = viewer.account.filter(|_| !viewer.is_operator);
    let jobs_query = JobsQuery { account, machine: Some(machine), limit: Some(10), ..JobsQuery::default() };
    let (trail, jobs, outcomes) = tokio::join!(
        app.queries.trail(actor, query, Seq::ZERO),
        load_jobs(app, viewer, jobs_query),
        app.queries.outcomes(actor, machine),
    );
    let mut trail = trail?.rows;
    trail.reverse();
    Ok([
        render_fragment(&TrackRecordCard {
            machine: m,
            outcomes: outcomes?,
            can_open_events: viewer.is_operator,
            now,
        })?,
        render_fragment(&SelfTestCard { machine: m })?,
        render_fragment(&JobsCard { jobs: jobs?, is_operator: viewer.is_operator, now })?,
        render_fragment(&TrailCard { machine: m, trail, now })?,
    ])
}

/// The jobs of a query; none if nobody is signed in.
async fn load_jobs(app: &App, viewer: Viewer, query: JobsQuery) -> Result<Vec<JobView>, Problem> {
    if viewer.account.is_none() {
        return Ok(Vec::new());
    }
    Ok(app.queries.jobs(viewer.reading_actor(), query, Seq::ZERO).await?.rows)
}

/// Reads the machine from the cache, or from the read model if it has left the market and the cache.
async fn load_machine(app: &App, viewer: Viewer, machine: MachineId) -> Result<Arc<MachineView>, Problem> {
    match app.machines.machine(machine) {
        Some(m) => Ok(m),
        None => Ok(Arc::new(app.queries.machine(viewer.actor(), machine, Seq::ZERO).await?)),
    }
}

async fn render_charts(app: &App, viewer: Viewer, m: &MachineView, hours: u32) -> Result<String, Problem> {
    let readings = app.queries.readings(viewer.actor(), m.listed.machine, hours * 60).await?;
    Ok(charts_html(&readings, !m.listed.offer.hardware.gpus.is_empty(), hours, app.now()))
}

fn charts_html(readings: &[Reading], has_gpu: bool, hours: u32, now: Timestamp) -> String {
    let from = now.millis() - i64::from(hours) * 3_600_000;
    let chart = |name: &str, unit: &str, max: f64, value: &dyn Fn(&Reading) -> f64| {
        let points: Vec<_> =
            readings.iter().filter(|r| r.at.millis() >= from).map(|r| (r.at.millis(), value(r))).collect();
        chart::line(name, unit, &points, (from, now.millis()), max)
    };
    let mut charts = chart(if has_gpu { "GPU utilisation" } else { "CPU load" }, "%", 100.0, &|r| f64::from(r.load));
    if has_gpu {
        charts += &chart("GPU memory in use", "GiB", 0.0, &|r| f64::from(r.memory) / 1_024.0);
        charts += &chart("Temperature, hottest GPU", "°C", 100.0, &|r| f64::from(r.celsius));
        charts += &chart("Power", "W", 0.0, &|r| f64::from(r.watts));
    }
    charts
}

pub(crate) async fn live(
    State(app): State<App>,
    viewer: Viewer,
    Path(machine): Path<MachineId>,
    Query(period): Query<Period>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let changes = app.changes.clone();
    let is_relevant = move |change: &Change| change.aggregate == Aggregate::Machine(machine);
    // The machine's last sequence and the current minute at the last call of `render_event_parts`.
    let last_rendered = Arc::new(Mutex::new(None));
    parts::stream(changes, Duration::from_secs(1), is_relevant, move |seq| {
        let (app, last_rendered) = (app.clone(), Arc::clone(&last_rendered));
        async move {
            let m = load_machine(&app, viewer, machine).await?;
            let charts = render_charts(&app, viewer, &m, period.hours()).await?;
            let mut parts = Vec::new();
            let minute = app.now().millis() / 60_000;
            // Renders after each event of the machine, and once a minute because the notice of an event can be lost.
            let current = (seq.max(m.listed.seq), minute);
            let previous = *last_rendered.lock().unwrap_or_else(PoisonError::into_inner);
            if previous != Some(current) {
                let html = render_event_parts(&app, viewer, &m).await?;
                parts.extend(EVENT_PART_IDS.into_iter().zip(html).map(|(id, html)| PagePart::new(id, html)));
                *last_rendered.lock().unwrap_or_else(PoisonError::into_inner) = Some(current);
            }
            parts.push(PagePart::new("now", render_fragment(&StateCard { machine: &m })?));
            // The charts are sent once a minute and when there are more or fewer of them, not with every heartbeat.
            let count = charts.matches("<svg").count();
            parts.push(PagePart::container("charts", format!("{minute} {count}"), charts));
            Ok(parts)
        }
    })
}
