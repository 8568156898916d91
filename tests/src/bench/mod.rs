//! The benchmarks. Each figure has a baseline, which is a physical limit of the machine or a fixed bound. Where the
//! baseline is measured, it is measured in the same run, alternating with the figure.

mod dispatch;
mod fold;
mod idle;
mod large;
mod live;
mod pages;
mod report;
mod submit;

use std::time::Duration;

use anyhow::Context as _;

use self::report::Report;
use crate::{
    process::Process,
    programs::{free_port, nats_server, root},
};

/// Measures all figures, or the figure `only`. Prints a table and writes `target/bench/report.json`.
pub async fn run(only: Option<&str>) -> anyhow::Result<()> {
    let is_wanted = |name: &str| only.is_none_or(|only| only == name);
    let mut report = Report::default();
    if is_wanted("dispatch_overhead") {
        report.add(dispatch::measure().await.context("dispatch_overhead")?);
    }
    if is_wanted("submit_rate") {
        report.add(submit::measure().await.context("submit_rate")?);
    }
    if is_wanted("fold_rate") {
        report.add(fold::measure().await.context("fold_rate")?);
    }
    if is_wanted("live_latency") {
        report.add(live::measure().await.context("live_latency")?);
    }
    if is_wanted("page_render") {
        report.add(pages::measure().await.context("page_render")?);
    }
    if is_wanted("idle_worker") {
        report.add(idle::measure().await.context("idle_worker")?);
    }
    // This figure takes some twenty minutes and 40 GB of disk, so it is measured only if its name is given.
    if only == Some("large_log") {
        report.add(large::measure().await.context("large_log")?);
    }
    report.write(&root().join("target/bench"))
}

/// A broker without accounts and without a market. The baselines are measured with it.
struct RawBroker {
    _process: Process,
    _dir: tempfile::TempDir,
    client: async_nats::Client,
}

impl RawBroker {
    /// Starts the broker. With `is_synced` it writes each message to the disk before it acknowledges the message.
    async fn start(is_synced: bool) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let port = free_port()?;
        let sync = if is_synced { "sync_interval: always" } else { "" };
        let store = dir.path().join("store");
        let conf = format!(
            "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: \"{}\"\nmax_file_store: 1TB\n{sync}\n}}\n",
            store.display()
        );
        let path = dir.path().join("nats.conf");
        std::fs::write(&path, conf)?;
        let mut command = std::process::Command::new(nats_server()?);
        command.arg("-c").arg(&path);
        let process = Process::start("raw", &mut command, dir.path())?;
        let url = format!("nats://127.0.0.1:{port}");
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        let client = loop {
            match async_nats::connect(&url).await {
                Ok(client) => break client,
                Err(e) if tokio::time::Instant::now() > deadline => return Err(e.into()),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        Ok(Self { _process: process, _dir: dir, client })
    }
}

/// A quantile of the samples. A share of 0.5 is the median, and 0.99 is the 99th percentile. Sorts the samples.
fn quantile(samples: &mut [f64], share: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    // The numbers are small, so the conversions are exact.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let index = (samples.len().saturating_sub(1) as f64 * share).round() as usize;
    samples.get(index).copied().unwrap_or(f64::NAN)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}
