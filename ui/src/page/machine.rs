//! One machine: its offer, present state, self-test, track record and trail.

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
    view::{JobView, MachineView, Outcome, Reading, TrailEvent},
};
use serde::Deserialize;

use super::{Chrome, fragment, html};
use crate::{
    access::Viewer,
    app::App,
    chart,
    error::{PageError, Problem},
    extract::{Path, Query},
    live::parts::{self, PagePart},
    state::Change,
};

/// The period that the charts show.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(crate) struct Period {
    /// 1 or 24.
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
    chrome: Chrome,
    m: Arc<MachineView>,
    now_card: String,
    charts: String,
    hours: u32,
    record: String,
    jobs: String,
    trail: String,
    now: Timestamp,
}

#[derive(Template)]
#[template(path = "machine_now.html")]
struct Now<'a> {
    m: &'a MachineView,
}

#[derive(Template)]
#[template(path = "machine_record.html")]
struct Record<'a> {
    m: &'a MachineView,
    outcomes: Vec<Outcome>,
    /// True if the viewer may open the events.
    linked: bool,
    now: Timestamp,
}

impl Record<'_> {
    fn at_fault(&self, outcome: &Outcome) -> bool {
        outcome.fault == Some(Fault::Provider)
    }
}

#[derive(Template)]
#[template(path = "machine_jobs.html")]
struct JobsHere {
    /// The jobs that ran here and that the viewer may see.
    jobs: Vec<JobView>,
    operator: bool,
    now: Timestamp,
}

#[derive(Template)]
#[template(path = "machine_events.html")]
struct TrailCard<'a> {
    m: &'a MachineView,
    trail: Vec<TrailEvent>,
    now: Timestamp,
}

/// Events of the trail that are shown.
const TRAIL: u32 = 50;
/// The parts of the page that are read from the log.
const FROM_LOG: [&str; 3] = ["record", "jobs-here", "trail"];

pub(crate) async fn page(
    State(app): State<App>,
    viewer: Viewer,
    Path(machine): Path<MachineId>,
    Query(period): Query<Period>,
) -> Result<Html<String>, PageError> {
    let m = known(&app, viewer, machine).await?;
    let (from_log, charts) = tokio::join!(from_log(&app, viewer, &m), charts(&app, viewer, &m, period.hours()));
    let ([record, jobs, trail], charts, now_card) = (from_log?, charts?, fragment(&Now { m: &m })?);
    let chrome = Chrome::new(m.listed.offer.name.clone(), "market", viewer);
    let (hours, now) = (period.hours(), app.now());
    Ok(html(&MachinePage { chrome, m, now_card, charts, hours, record, jobs, trail, now })?)
}

/// The parts that are read from the log: track record, jobs, trail.
async fn from_log(app: &App, viewer: Viewer, m: &MachineView) -> Result<[String; 3], Problem> {
    let (machine, actor, now) = (m.listed.machine, viewer.reader(), app.now());
    let query = TrailQuery { of: TrailOf::Machine(machine), skip: 0, limit: TRAIL, from_end: true };
    let account = viewer.account.filter(|_| !viewer.operator);
    let mine = JobsQuery { account, machine: Some(machine), limit: Some(10), ..JobsQuery::default() };
    let (trail, jobs, outcomes) = tokio::join!(
        app.queries.trail(actor, query, Seq::ZERO),
        jobs(app, viewer, mine),
        app.queries.outcomes(actor, machine),
    );
    let mut trail = trail?.rows;
    trail.reverse();
    Ok([
        fragment(&Record { m, outcomes: outcomes?, linked: viewer.operator, now })?,
        fragment(&JobsHere { jobs: jobs?, operator: viewer.operator, now })?,
        fragment(&TrailCard { m, trail, now })?,
    ])
}

/// The jobs that the viewer may see. A stranger may see none.
async fn jobs(app: &App, viewer: Viewer, query: JobsQuery) -> Result<Vec<JobView>, Problem> {
    if viewer.account.is_none() {
        return Ok(Vec::new());
    }
    Ok(app.queries.jobs(viewer.reader(), query, Seq::ZERO).await?.rows)
}

/// The machine from the cache. A machine that has left the market is queried.
async fn known(app: &App, viewer: Viewer, machine: MachineId) -> Result<Arc<MachineView>, Problem> {
    match app.machines.machine(machine) {
        Some(m) => Ok(m),
        None => Ok(Arc::new(app.queries.machine(viewer.actor(), machine, Seq::ZERO).await?)),
    }
}

/// The charts of the last hours.
async fn charts(app: &App, viewer: Viewer, m: &MachineView, hours: u32) -> Result<String, Problem> {
    let readings = app.queries.readings(viewer.actor(), m.listed.machine, hours * 60).await?;
    Ok(draw(&readings, !m.listed.offer.hardware.gpus.is_empty(), hours, app.now()))
}

fn draw(readings: &[Reading], gpu: bool, hours: u32, now: Timestamp) -> String {
    let from = now.millis() - i64::from(hours) * 3_600_000;
    let chart = |name: &str, unit: &str, most: f64, value: &dyn Fn(&Reading) -> f64| {
        let points: Vec<_> =
            readings.iter().filter(|r| r.at.millis() >= from).map(|r| (r.at.millis(), value(r))).collect();
        chart::line(name, unit, &points, (from, now.millis()), most)
    };
    let mut charts = chart(if gpu { "GPU utilisation" } else { "CPU load" }, "%", 100.0, &|r| f64::from(r.load));
    if gpu {
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
    let matters = move |change: &Change| change.aggregate == Aggregate::Machine(machine);
    // The sequence and the minute of the last reading from the log.
    let last_read = Arc::new(Mutex::new(None));
    parts::stream(changes, Duration::from_secs(1), matters, move |seq| {
        let (app, last_read) = (app.clone(), Arc::clone(&last_read));
        async move {
            let m = known(&app, viewer, machine).await?;
            let charts = charts(&app, viewer, &m, period.hours()).await?;
            let mut parts = Vec::new();
            // These parts change with events, not with heartbeats. They are read again once a minute in any case.
            let now = (seq.max(m.listed.seq), app.now().millis() / 60_000);
            let before = *last_read.lock().unwrap_or_else(PoisonError::into_inner);
            if before != Some(now) {
                let html = from_log(&app, viewer, &m).await?;
                parts.extend(FROM_LOG.into_iter().zip(html).map(|(id, html)| PagePart::new(id, html)));
                *last_read.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
            }
            // Charts are sent once a minute, not with every heartbeat.
            let minute = app.now().millis() / 60_000;
            parts.push(PagePart::new("now", fragment(&Now { m: &m })?));
            parts.push(PagePart::frame("charts", format!("{minute} {}", charts.len()), charts));
            Ok(parts)
        }
    })
}
