//! One machine: the offer, what it does now, its self-test, its record and its trail.

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
    live::parts::{self, Part},
};

/// Which stretch of time the charts show.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(crate) struct Stretch {
    /// 1 or 24.
    #[serde(default)]
    hours: u32,
}

impl Stretch {
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
    /// Whether who looks may open its events.
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
    /// Those that ran here and that the viewer may see.
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
/// Parts of the page that follow the log.
const TOLD: [&str; 3] = ["record", "jobs-here", "trail"];

pub(crate) async fn page(
    State(app): State<App>,
    viewer: Viewer,
    Path(machine): Path<MachineId>,
    Query(stretch): Query<Stretch>,
) -> Result<Html<String>, PageError> {
    let m = known(&app, viewer, machine).await?;
    let (told, charts) = tokio::join!(told(&app, viewer, &m), charts(&app, viewer, &m, stretch.hours()));
    let ([record, jobs, trail], charts, now_card) = (told?, charts?, fragment(&Now { m: &m })?);
    let chrome = Chrome::new(m.listed.offer.name.clone(), "market", viewer);
    let (hours, now) = (stretch.hours(), app.now());
    Ok(html(&MachinePage { chrome, m, now_card, charts, hours, record, jobs, trail, now })?)
}

/// What the log tells of it: its record, the jobs here, its trail.
async fn told(app: &App, viewer: Viewer, m: &MachineView) -> Result<[String; 3], Problem> {
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

/// Jobs that the viewer may see; a stranger has none.
async fn jobs(app: &App, viewer: Viewer, query: JobsQuery) -> Result<Vec<JobView>, Problem> {
    if viewer.account.is_none() {
        return Ok(Vec::new());
    }
    Ok(app.queries.jobs(viewer.reader(), query, Seq::ZERO).await?.rows)
}

/// The machine as the board has it; one that left the market is asked for.
async fn known(app: &App, viewer: Viewer, machine: MachineId) -> Result<Arc<MachineView>, Problem> {
    match app.board.machine(machine) {
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
    Query(stretch): Query<Stretch>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let changes = app.changes.clone();
    let matters = move |change: &crate::live::Change| change.aggregate == Aggregate::Machine(machine);
    // Up to which event the log was told of, and in which minute.
    let told_of = Arc::new(Mutex::new(None));
    parts::stream(changes, Duration::from_secs(1), matters, move |seq| {
        let (app, told_of) = (app.clone(), Arc::clone(&told_of));
        async move {
            let m = known(&app, viewer, machine).await?;
            let charts = charts(&app, viewer, &m, stretch.hours()).await?;
            let mut parts = Vec::new();
            // What the log tells changes with its events, not with heartbeats; and is looked at once a minute anyhow.
            let now = (seq.max(m.listed.seq), app.now().millis() / 60_000);
            let before = *told_of.lock().unwrap_or_else(PoisonError::into_inner);
            if before != Some(now) {
                let told = told(&app, viewer, &m).await?;
                parts.extend(TOLD.into_iter().zip(told).map(|(id, html)| Part::new(id, html)));
                *told_of.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
            }
            // Charts move on by the minute: not with every heartbeat.
            let minute = app.now().millis() / 60_000;
            parts.push(Part::new("now", fragment(&Now { m: &m })?));
            parts.push(Part::frame("charts", format!("{minute} {}", charts.len()), charts));
            Ok(parts)
        }
    })
}
