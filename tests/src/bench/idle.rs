//! `idle_worker`: the memory, the CPU time and the program size of a worker that has no job.

use std::{fs, time::Duration};

use anyhow::Context as _;
use tokio::time::sleep;

use super::report::Figure;
use crate::{
    programs::binary,
    system::{MarketSettings, System},
};

/// Time over which the CPU use is measured.
const MEASURED: Duration = Duration::from_secs(20);
/// The unit of CPU times in `/proc`: this many ticks are one second.
const TICKS_PER_SECOND: f64 = 100.0;

pub(super) async fn measure() -> anyhow::Result<Vec<Figure>> {
    let mut system = System::start(MarketSettings::default()).await?;
    system.start_worker("bench", &["--heartbeat", "5"]).await?;
    let pid = system.workers.first().context("no worker runs")?.pid();
    sleep(Duration::from_secs(3)).await;
    let before = ticks(pid)?;
    sleep(MEASURED).await;
    let cpu = (ticks(pid)? - before) / TICKS_PER_SECOND / MEASURED.as_secs_f64() * 100.0;
    Ok(vec![
        Figure::new(
            "idle_worker_rss",
            (rss(pid)?, "MB"),
            ("what is allowed", 15.0),
            1,
            ("< 15 MB", |f| f.value < 15.0),
        ),
        Figure::new(
            "worker_binary",
            (program_size()?, "MB"),
            ("what is allowed", 25.0),
            1,
            ("< 25 MB", |f| f.value < 25.0),
        ),
        Figure::new("idle_worker_cpu", (cpu, "% core"), ("what is hoped for", 0.2), 1, ("< 0.2 %", |f| f.value < 0.2)),
    ])
}

/// The size of the worker's program, MB.
fn program_size() -> anyhow::Result<f64> {
    let bytes = u32::try_from(fs::metadata(binary("gpubnb-provider")?)?.len()).context("the program is too large")?;
    Ok(f64::from(bytes) / 1e6)
}

/// The resident memory of a process at this moment, MB.
pub(super) fn rss(pid: u32) -> anyhow::Result<f64> {
    memory(pid, "VmRSS:")
}

/// A memory figure of a process from `/proc`, MB: `VmRSS:` is the present memory, and `VmHWM:` is the peak.
pub(super) fn memory(pid: u32, figure: &str) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|l| l.starts_with(figure)).context("the figure is not in /proc")?;
    let kib: f64 = line.split_whitespace().nth(1).context("the figure is not a number")?.parse()?;
    Ok(kib * 1_024.0 / 1e6)
}

/// The CPU time that a process has used, in ticks: the fields `utime` and `stime` of `/proc/<pid>/stat`.
fn ticks(pid: u32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit(')').next().context("/proc has no such process")?;
    let fields: Vec<_> = after_name.split_whitespace().collect();
    let field =
        |index: usize| fields.get(index).and_then(|f| f.parse::<f64>().ok()).context("the figure is not a number");
    Ok(field(11)? + field(12)?)
}
