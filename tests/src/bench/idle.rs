//! `idle_worker`: what a worker with nothing to do takes from its owner.

use std::{fs, time::Duration};

use anyhow::Context as _;
use tokio::time::sleep;

use super::report::Figure;
use crate::{
    parts::binary,
    system::{Options, System},
};

/// How long it is watched.
const WATCHED: Duration = Duration::from_secs(20);
/// The kernel's ticks a second, fixed by its user interface.
const TICKS: f64 = 100.0;

pub(super) async fn measure() -> anyhow::Result<Vec<Figure>> {
    let mut system = System::start(Options::default()).await?;
    system.start_worker("bench", &["--heartbeat", "5"]).await?;
    let pid = system.workers.first().context("a worker")?.pid();
    sleep(Duration::from_secs(3)).await;
    let before = ticks(pid)?;
    sleep(WATCHED).await;
    let cpu = (ticks(pid)? - before) / TICKS / WATCHED.as_secs_f64() * 100.0;
    Ok(vec![
        Figure::new(
            "idle_worker_rss",
            (rss(pid)?, "MB"),
            ("what is allowed", 15.0),
            1,
            ("< 15 MB", |f| f.value < 15.0),
        ),
        Figure::new("worker_binary", (size()?, "MB"), ("what is allowed", 25.0), 1, ("< 25 MB", |f| f.value < 25.0)),
        Figure::new("idle_worker_cpu", (cpu, "% core"), ("what is hoped for", 0.2), 1, ("< 0.2 %", |f| f.value < 0.2)),
    ])
}

/// The size of the program, as it is built here, MB.
fn size() -> anyhow::Result<f64> {
    let bytes = u32::try_from(fs::metadata(binary("gpubnb-provider")?)?.len()).context("a program")?;
    Ok(f64::from(bytes) / 1e6)
}

pub(super) fn rss(pid: u32) -> anyhow::Result<f64> {
    memory(pid, "VmRSS:")
}

/// A figure of a process's memory, MB: `VmRSS:` now, `VmHWM:` the most it ever was.
pub(super) fn memory(pid: u32, figure: &str) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|l| l.starts_with(figure)).context("no such figure")?;
    let kib: f64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
    Ok(kib * 1_024.0 / 1e6)
}

fn ticks(pid: u32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit(')').next().context("stat")?;
    let fields: Vec<_> = after_name.split_whitespace().collect();
    let field = |index: usize| fields.get(index).and_then(|f| f.parse::<f64>().ok()).context("a number");
    Ok(field(11)? + field(12)?)
}
