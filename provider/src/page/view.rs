//! The page as text: the state of the machine in one sentence, and what each part of the page shows.

use askama::Template;
use gpubnb_events::{
    Clock as _, MicroUsd, SystemClock, Timestamp, command::DayEarnings, event::Check, spec::Offer,
    telemetry::WorkerState, text::make_plain,
};

use crate::{
    control::{Status, WorkerControl},
    journal,
};

/// The lines of the worker's log on the page.
const LOG_LINES: usize = 100;
/// The days in the chart of earnings.
const CHART_DAYS: u32 = 31;
/// The height of the highest bar of the chart.
const BAR_HEIGHT: u64 = 40;
const DAY_MILLIS: i64 = 86_400_000;

/// The earnings of the machine.
#[derive(Clone)]
pub(super) enum Earnings {
    /// The days with a settlement, newest first.
    Known(Vec<DayEarnings>),
    /// The market does not answer.
    Unknown,
}

/// The whole page.
#[derive(Template)]
#[template(path = "page.html")]
pub(super) struct Page {
    name: String,
    problem: Option<String>,
    now: Now,
    log: Log,
    listing: String,
    failed: Vec<Check>,
    passed: Vec<Check>,
    terms: Vec<(&'static str, String)>,
    version: String,
    pid: u32,
}

/// The part of the page that changes while the owner looks at it.
#[derive(Template)]
#[template(path = "page_now.html")]
pub(super) struct Now {
    /// `ready`, `busy` or `paused`: the colour of the state.
    mood: &'static str,
    sentence: String,
    /// True if the market cannot be reached.
    is_offline: bool,
    takes_jobs: bool,
    /// True during a pause that this worker keeps.
    is_paused_here: bool,
    jobs: Vec<Job>,
    gpus: Vec<String>,
    earnings: Option<EarningsView>,
}

/// The last lines of the worker's log.
#[derive(Template)]
#[template(path = "page_log.html")]
pub(super) struct Log {
    log: Vec<String>,
}

/// A job that runs.
struct Job {
    id: String,
    minutes: u64,
    gpus: usize,
}

/// The sums of the earnings, and a bar for each day.
struct EarningsView {
    today: MicroUsd,
    days: MicroUsd,
    jobs: u32,
    bars: Vec<Bar>,
}

/// A bar of the chart: its place and its size, and its words.
struct Bar {
    x: u32,
    y: u64,
    height: u64,
    title: String,
}

/// The page, with the problem that the owner's last order had.
pub(super) fn page(control: &WorkerControl, earnings: &Earnings, problem: Option<String>) -> Page {
    let status = control.status();
    let (passed, failed) = control.checks.iter().cloned().partition(|check| check.passed);
    Page {
        name: status.name.clone(),
        problem,
        listing: format!("{}/machines/{}", status.market.trim_end_matches('/'), status.machine),
        failed,
        passed,
        terms: terms(&control.settings.offer()),
        version: status.version.clone(),
        pid: status.pid,
        now: now_of(control, &status, earnings),
        log: log(control),
    }
}

/// The part of the page that changes.
pub(super) fn now(control: &WorkerControl, earnings: &Earnings) -> Now {
    now_of(control, &control.status(), earnings)
}

/// The last lines of the worker's log.
pub(super) fn log(control: &WorkerControl) -> Log {
    let lines = journal::last_lines(&control.state, LOG_LINES);
    let lines = lines.unwrap_or_else(|e| vec![format!("The log cannot be read: {e}.")]);
    Log { log: lines.iter().map(|line| make_plain(line)).collect() }
}

fn now_of(control: &WorkerControl, status: &Status, earnings: &Earnings) -> Now {
    let at = SystemClock.now();
    let job = |job: &crate::lease_table::AttemptStatus| Job {
        id: job.job.to_string(),
        minutes: at.since(job.since).0 / 60_000,
        gpus: job.gpus.len(),
    };
    let gpu = |gpu: &gpubnb_events::telemetry::GpuReading| {
        let trouble = gpu.trouble.map(|trouble| format!(" · {}", trouble.description())).unwrap_or_default();
        format!(
            "{} % busy · {} MiB in use · {} °C · {} W{trouble}",
            gpu.utilisation_percent, gpu.memory_used.0, gpu.celsius, gpu.watts
        )
    };
    Now {
        mood: mood(status),
        sentence: sentence(status),
        is_offline: !status.connected,
        takes_jobs: status.state == WorkerState::Ready,
        is_paused_here: control.pause.current().is_some(),
        jobs: status.jobs.iter().map(job).collect(),
        gpus: status.gpus.iter().map(gpu).collect(),
        earnings: match earnings {
            Earnings::Known(days) => Some(earnings_view(days, at)),
            Earnings::Unknown => None,
        },
    }
}

fn mood(status: &Status) -> &'static str {
    match status.state {
        WorkerState::Ready if status.jobs.is_empty() => "ready",
        WorkerState::Ready => "busy",
        WorkerState::Paused | WorkerState::Draining => "paused",
    }
}

/// The state of the machine in one sentence.
fn sentence(status: &Status) -> String {
    let running = match status.jobs.len() {
        0 => "no job runs".to_owned(),
        1 => "1 job runs".to_owned(),
        jobs => format!("{jobs} jobs run"),
    };
    match (status.state, &status.why) {
        (WorkerState::Ready, _) if status.jobs.len() < status.slots as usize => {
            format!("This machine takes jobs; {running} now.")
        }
        (WorkerState::Ready, _) => format!("This machine is fully used: {running}."),
        (_, Some(why)) => format!("This machine takes no jobs, because {why}; {running}."),
        (WorkerState::Draining, None) => {
            format!("This machine finishes what it runs, and takes no new jobs; {running}.")
        }
        (WorkerState::Paused, None) => format!("This machine takes no new jobs, because you paused it; {running}."),
    }
}

/// The owner's terms, as names and values for the owner's page.
fn terms(offer: &Offer) -> Vec<(&'static str, String)> {
    let policy = &offer.policy;
    let images = match &policy.registries {
        None => "any".to_owned(),
        Some(registries) if registries.is_empty() => "only those of the market's templates".to_owned(),
        Some(registries) => format!("those of the market's templates, and from {}", registries.join(", ")),
    };
    vec![
        ("Price of a job", format!("{} an hour", offer.price.0)),
        ("Jobs at once", offer.slots.to_string()),
        ("Hours", policy.hours.clone().unwrap_or_else(|| "all day".to_owned())),
        (
            "After use of a GPU",
            policy.idle_minutes.map_or_else(
                || "jobs run beside other programs".to_owned(),
                |minutes| format!("jobs wait until the GPUs were idle for {minutes} min"),
            ),
        ),
        ("Internet for jobs", policy.egress.to_string()),
        ("Images", images),
        ("Region", offer.region.clone()),
    ]
}

fn earnings_view(days: &[DayEarnings], at: Timestamp) -> EarningsView {
    let today = u32::try_from(at.millis() / DAY_MILLIS).unwrap_or(0);
    let shown = (0..CHART_DAYS).map(|x| {
        let number = today + x + 1 - CHART_DAYS;
        let day = days.iter().find(|day| day.day == number).copied();
        (x, day.unwrap_or(DayEarnings { day: number, earned: MicroUsd::ZERO, jobs: 0 }))
    });
    let shown: Vec<_> = shown.collect();
    let highest = shown.iter().map(|(_, day)| day.earned.0).max().unwrap_or(0).max(1);
    let bar = |(x, day): &(u32, DayEarnings)| {
        let height = u64::try_from(day.earned.0.max(0)).unwrap_or(0) * BAR_HEIGHT / u64::try_from(highest).unwrap_or(1);
        // A day with earnings shows a bar, however small.
        let height = if day.earned > MicroUsd::ZERO { height.max(1) } else { 0 };
        let date = Timestamp::from_millis(i64::from(day.day) * DAY_MILLIS).date();
        Bar { x: *x, y: BAR_HEIGHT - height, height, title: format!("{date}: {} from {} jobs", day.earned, day.jobs) }
    };
    EarningsView {
        today: shown.last().map_or(MicroUsd::ZERO, |(_, day)| day.earned),
        days: MicroUsd(shown.iter().map(|(_, day)| day.earned.0).sum()),
        jobs: shown.iter().map(|(_, day)| day.jobs).sum(),
        bars: shown.iter().map(bar).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chart_ends_with_today_and_its_highest_bar_is_full() {
        let at = Timestamp::from_millis(20_000 * DAY_MILLIS + 1);
        let day = |day, earned| DayEarnings { day, earned: MicroUsd(earned), jobs: 1 };
        let view = earnings_view(&[day(20_000, 500_000), day(19_998, 1_000_000), day(19_000, 7_000_000)], at);
        assert_eq!((view.today, view.days, view.jobs), (MicroUsd(500_000), MicroUsd(1_500_000), 2));
        assert_eq!(view.bars.len(), 31);
        let heights: Vec<_> = view.bars.iter().rev().take(3).map(|bar| bar.height).collect();
        assert_eq!(heights, [BAR_HEIGHT / 2, 0, BAR_HEIGHT]);
        assert!(view.bars.iter().all(|bar| bar.y + bar.height == BAR_HEIGHT));
    }
}
