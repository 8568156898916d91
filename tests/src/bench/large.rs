//! `large_log`: measures a log of ten million events, or of `GPUBNB_BENCH_EVENTS` events. The figures are the
//! projector's memory while it folds the log (it is killed once, and continues); the time to show the market at an
//! earlier sequence; the projector's memory during a verification; and the start from snapshots, compared with the
//! start from the log.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use gpubnb_events::Seq;
use tokio::time::sleep;

use super::{idle::memory, report::Figure};
use crate::{
    history,
    process::Process,
    system::{MarketSettings, System},
};

const EVENTS: u64 = 10_000_000;
/// Longest time for each step.
const TIMEOUT: Duration = Duration::from_secs(3_600);
/// Number of earlier sequences at which the market is shown, after one look at the last sequence.
const LOOKUPS: u64 = 20;
/// The most memory that the projector may use, MB.
const MAX_MEMORY: f64 = 300.0;
/// The longest time that the market at an earlier sequence may take to be shown, seconds.
const MAX_SECONDS: f64 = 2.0;

pub(super) async fn measure() -> anyhow::Result<Vec<Figure>> {
    let events = std::env::var("GPUBNB_BENCH_EVENTS").ok().and_then(|n| n.parse().ok()).unwrap_or(EVENTS);
    let options = MarketSettings {
        is_fsync_off: true,
        ready_timeout: TIMEOUT,
        snapshot_every: Some(0),
        ..MarketSettings::default()
    };
    let mut system = System::start(options).await?;
    (system.ui, system.projector) = (None, None);
    system.services.clear();
    let began = Instant::now();
    let last = history::write(&system, events).await?;
    println!("large_log: {last} events written in {:.0} s", began.elapsed().as_secs_f64());

    let (from_log, peak_memory) = fold_with_a_kill(&mut system, last).await?;
    let slowest_lookup = measure_lookups(&system, last)?;
    let began = Instant::now();
    let verified = system.run_operator_tool(&["verify", "--json"])?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(verified.status.success(), "verify: {}{}", text(&verified.stdout), text(&verified.stderr));
    let after = memory(system.projector.as_ref().context("the projector does not run")?.pid(), "VmHWM:")?;
    println!("large_log: verified in {:.0} s; the projector used at most {after:.0} MB", began.elapsed().as_secs_f64());

    let from_snapshot = projector_from_snapshots(&mut system).await?;
    let (services_log, services_snapshot) = measure_services(&mut system).await?;
    let at_most = |f: &Figure| f.ratio <= 1.0;
    Ok(vec![
        Figure::new("large_log_memory", (peak_memory, "MB"), ("the bound", MAX_MEMORY), 1, ("<= 1", at_most)),
        Figure::new("large_log_verify_memory", (after, "MB"), ("the bound", MAX_MEMORY), 1, ("<= 1", at_most)),
        Figure::new("large_log_travel", (slowest_lookup, "s"), ("the bound", MAX_SECONDS), 20, ("<= 1", at_most)),
        Figure::new(
            "projector_from_snapshot",
            (from_snapshot, "s"),
            ("from the log", from_log),
            1,
            ("< 1", |f| f.ratio < 1.0),
        ),
        Figure::new(
            "services_from_snapshot",
            (services_snapshot, "s"),
            ("from the log", services_log),
            1,
            ("< 1", |f| f.ratio < 1.0),
        ),
    ])
}

/// Folds the whole log with a projector that is killed after twenty seconds and started again. Returns the time of both
/// runs in seconds, and the peak memory in MB.
async fn fold_with_a_kill(system: &mut System, last: Seq) -> anyhow::Result<(f64, f64)> {
    fs::remove_dir_all(system.path().join("projector"))?;
    let began = Instant::now();
    let first = system.spawn_projector()?;
    sleep(Duration::from_secs(20)).await;
    let before = memory(first.pid(), "VmHWM:")?;
    first.kill();
    let ran = began.elapsed();
    let began = Instant::now();
    system.start_projector().await?;
    let took = (ran + began.elapsed()).as_secs_f64();
    let projector = system.projector.as_ref().context("the projector does not run")?;
    let resumed = resumed_at(&system.process_log("projector"))?;
    let most = memory(projector.pid(), "VmHWM:")?.max(before);
    ensure!(resumed > 0, "the projector began at the first event after it was killed");
    #[allow(clippy::cast_precision_loss)] // so small that the conversion is exact
    let rate = last.0 as f64 / took;
    println!("large_log: folded in {took:.0} s ({rate:.0}/s), killed once and continued at {resumed}; {most:.0} MB");
    Ok((took, most))
}

/// The lowest checkpoint of the models when the projector opened them the last time, read from its log.
fn resumed_at(log: &str) -> anyhow::Result<u64> {
    let opened = log.lines().rev().filter(|line| line.contains("opened")).take(gpubnb_model::all().len());
    let checkpoints = opened.filter_map(|line| line.split("checkpoint=").nth(1)?.trim().parse().ok());
    checkpoints.min().context("no model was opened")
}

/// Shows the market at the last sequence, and then at earlier sequences. Returns the slowest time of the earlier ones,
/// seconds.
fn measure_lookups(system: &System, last: Seq) -> anyhow::Result<f64> {
    let show_at = |seq: u64| -> anyhow::Result<f64> {
        let began = Instant::now();
        let shown = system.run_operator_tool(&["show", "market", "--at", &seq.to_string(), "--json"])?;
        ensure!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
        Ok(began.elapsed().as_secs_f64())
    };
    let first = show_at(last.0)?;
    // The sequences are spread over the whole log, and are not those of snapshots.
    let others = (1..=LOOKUPS).map(|n| show_at(last.0 / (LOOKUPS + 1) * n + n * 977));
    let slowest = others.collect::<anyhow::Result<Vec<_>>>()?.into_iter().fold(0.0, f64::max);
    println!("large_log: the first lookup took {first:.1} s, the slowest of {LOOKUPS} others {slowest:.2} s");
    Ok(slowest)
}

/// Saves a snapshot of every model, deletes the rows, and starts the projector again. Returns the time of that start,
/// seconds.
async fn projector_from_snapshots(system: &mut System) -> anyhow::Result<f64> {
    system.set_snapshot_interval(1);
    system.projector = None;
    let began = Instant::now();
    system.start_projector().await?;
    let projector = system.projector.as_mut().context("the projector does not run")?;
    for model in gpubnb_model::all() {
        wait_until_printed(projector, &format!("a snapshot was kept model=\"{}\"", model.name())).await?;
    }
    let most = memory(projector.pid(), "VmHWM:")?;
    println!("large_log: every model was saved in {:.0} s; {most:.0} MB", began.elapsed().as_secs_f64());
    system.projector = None;
    fs::remove_dir_all(system.path().join("projector"))?;
    // The projector reads snapshots, and saves none. (With the interval 0 it would not read them either.)
    system.set_snapshot_interval(u64::MAX);
    let began = Instant::now();
    system.start_projector().await?;
    let took = began.elapsed().as_secs_f64();
    let projector = system.projector.take().context("the projector does not run")?;
    ensure!(projector.has_printed("begins from a snapshot model=\"jobs\""), "{}", projector.last_lines());
    println!("large_log: {:.0} MB", memory(projector.pid(), "VmHWM:")?);
    Ok(took)
}

/// Starts the services from the log, and then from a snapshot. Returns both times, seconds.
async fn measure_services(system: &mut System) -> anyhow::Result<(f64, f64)> {
    let began = Instant::now();
    system.set_snapshot_interval(0);
    system.start_services().await?;
    let from_log = began.elapsed().as_secs_f64();
    println!("large_log: services: {:.0} MB", memory(system.services[0].pid(), "VmHWM:")?);
    system.services.clear();
    system.set_snapshot_interval(1);
    system.start_services().await?;
    wait_until_printed(&mut system.services[0], "a snapshot was kept").await?;
    system.services.clear();
    let began = Instant::now();
    system.start_services().await?;
    let took = began.elapsed().as_secs_f64();
    ensure!(system.services[0].has_printed("begins from a snapshot"), "{}", system.services[0].last_lines());
    Ok((from_log, took))
}

/// Waits until a process has printed a text.
async fn wait_until_printed(process: &mut Process, text: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    while !process.has_printed(text) {
        process.check_running()?;
        ensure!(Instant::now() < deadline, "{text:?} was not printed: {}", process.last_lines());
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
