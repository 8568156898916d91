//! `large_log`: what a log of ten million events takes (`GPUBNB_BENCH_EVENTS`: of so many). The projector's memory while it
//! folds them, is killed and goes on; looking back; verifying; and starting anew from snapshots beside from the log.

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
    system::{Options, System},
};

const EVENTS: u64 = 10_000_000;
/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(3_600);
/// Journeys into the past after the first.
const JOURNEYS: u64 = 20;
/// Bounds: MB, and seconds.
const MOST_MEMORY: f64 = 300.0;
const MOST_SECONDS: f64 = 2.0;

pub(super) async fn measure() -> anyhow::Result<Vec<Figure>> {
    let events = std::env::var("GPUBNB_BENCH_EVENTS").ok().and_then(|n| n.parse().ok()).unwrap_or(EVENTS);
    let options = Options { unsynced: true, patience: PATIENCE, snapshot_every: Some(0), ..Options::default() };
    let mut system = System::start(options).await?;
    (system.ui, system.projector) = (None, None);
    system.services.clear();
    let began = Instant::now();
    let last = history::write(&system, events).await?;
    println!("large_log: {last} events written in {:.0} s", began.elapsed().as_secs_f64());

    let (from_log, most) = folded(&mut system, last).await?;
    let travelled = travelled(&system, last)?;
    let began = Instant::now();
    let verified = system.tool(&["verify", "--json"])?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(verified.status.success(), "verify: {}{}", said(&verified.stdout), said(&verified.stderr));
    let after = memory(system.projector.as_ref().context("it runs")?.pid(), "VmHWM:")?;
    println!(
        "large_log: verified in {:.0} s; the projector had {after:.0} MB at the most",
        began.elapsed().as_secs_f64()
    );

    let from_snapshot = projector_from_snapshots(&mut system).await?;
    let (services_log, services_snapshot) = services(&mut system).await?;
    let at_most = |f: &Figure| f.ratio <= 1.0;
    Ok(vec![
        Figure::new("large_log_memory", (most, "MB"), ("the bound", MOST_MEMORY), 1, ("<= 1", at_most)),
        Figure::new("large_log_verify_memory", (after, "MB"), ("the bound", MOST_MEMORY), 1, ("<= 1", at_most)),
        Figure::new("large_log_travel", (travelled, "s"), ("the bound", MOST_SECONDS), 20, ("<= 1", at_most)),
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

/// Has everything folded, by a projector that is killed on its way. Returns how long all of it would have taken in one go,
/// seconds, and the most memory it had, MB.
async fn folded(system: &mut System, last: Seq) -> anyhow::Result<(f64, f64)> {
    fs::remove_dir_all(system.path().join("projector"))?;
    let began = Instant::now();
    let first = system.begin_projector()?;
    sleep(Duration::from_secs(20)).await;
    let before = memory(first.pid(), "VmHWM:")?;
    first.kill();
    let ran = began.elapsed();
    let began = Instant::now();
    system.start_projector().await?;
    let took = (ran + began.elapsed()).as_secs_f64();
    let projector = system.projector.as_ref().context("it runs")?;
    let resumed = resumed_at(&system.log("projector"))?;
    let most = memory(projector.pid(), "VmHWM:")?.max(before);
    ensure!(resumed > 0, "it began anew after it was killed");
    #[allow(clippy::cast_precision_loss)] // far below a float's precision
    let rate = last.0 as f64 / took;
    println!(
        "large_log: folded in {took:.0} s ({rate:.0}/s), killed on its way and gone on at {resumed}; {most:.0} MB"
    );
    Ok((took, most))
}

/// Where the models were when they were opened the last time.
fn resumed_at(words: &str) -> anyhow::Result<u64> {
    let opened = words.lines().rev().filter(|line| line.contains("opened")).take(gpubnb_model::all().len());
    let checkpoints = opened.filter_map(|line| line.split("checkpoint=").nth(1)?.trim().parse().ok());
    checkpoints.min().context("no model was opened")
}

/// Goes back to the market as it was: the first time, and then to other points. Returns the slowest of these, seconds.
fn travelled(system: &System, last: Seq) -> anyhow::Result<f64> {
    let go = |to: u64| -> anyhow::Result<f64> {
        let began = Instant::now();
        let there = system.tool(&["show", "market", "--at", &to.to_string(), "--json"])?;
        ensure!(there.status.success(), "{}", String::from_utf8_lossy(&there.stderr));
        Ok(began.elapsed().as_secs_f64())
    };
    let first = go(last.0)?;
    // Spread over the whole log, between the snapshots.
    let others = (1..=JOURNEYS).map(|n| go(last.0 / (JOURNEYS + 1) * n + n * 977));
    let slowest = others.collect::<anyhow::Result<Vec<_>>>()?.into_iter().fold(0.0, f64::max);
    println!("large_log: the first journey took {first:.1} s, the slowest of {JOURNEYS} others {slowest:.2} s");
    Ok(slowest)
}

/// Keeps every model, loses its rows, and starts again. Returns how long that took, seconds.
async fn projector_from_snapshots(system: &mut System) -> anyhow::Result<f64> {
    system.keep_snapshots(1);
    system.projector = None;
    let began = Instant::now();
    system.start_projector().await?;
    let projector = system.projector.as_mut().context("it runs")?;
    for model in gpubnb_model::all() {
        said(projector, &format!("a snapshot was kept model=\"{}\"", model.name())).await?;
    }
    let most = memory(projector.pid(), "VmHWM:")?;
    println!("large_log: every model was kept in {:.0} s; {most:.0} MB", began.elapsed().as_secs_f64());
    system.projector = None;
    fs::remove_dir_all(system.path().join("projector"))?;
    system.keep_snapshots(u64::MAX);
    let began = Instant::now();
    system.start_projector().await?;
    let took = began.elapsed().as_secs_f64();
    let projector = system.projector.take().context("it runs")?;
    ensure!(projector.has_said("begins from a snapshot model=\"jobs\""), "{}", projector.last_words());
    println!("large_log: {:.0} MB", memory(projector.pid(), "VmHWM:")?);
    Ok(took)
}

/// Starts the services from the log, and from a snapshot. Returns how long each took, seconds.
async fn services(system: &mut System) -> anyhow::Result<(f64, f64)> {
    let began = Instant::now();
    system.keep_snapshots(0);
    system.start_services().await?;
    let from_log = began.elapsed().as_secs_f64();
    println!("large_log: services: {:.0} MB", memory(system.services[0].pid(), "VmHWM:")?);
    system.services.clear();
    system.keep_snapshots(1);
    system.start_services().await?;
    said(&mut system.services[0], "a snapshot was kept").await?;
    system.services.clear();
    let began = Instant::now();
    system.start_services().await?;
    let took = began.elapsed().as_secs_f64();
    ensure!(system.services[0].has_said("begins from a snapshot"), "{}", system.services[0].last_words());
    Ok((from_log, took))
}

async fn said(process: &mut Process, words: &str) -> anyhow::Result<()> {
    let by = Instant::now() + PATIENCE;
    while !process.has_said(words) {
        process.check()?;
        ensure!(Instant::now() < by, "{words:?} was not said: {}", process.last_words());
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
