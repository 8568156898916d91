//! The machine's CPU, memory and disk, as the kernel tells them. A share of memory and disk is kept for the owner, and
//! not offered.

use std::{fs, path::Path};

use anyhow::Context as _;
use gpubnb_events::spec::{Hardware, Mebibytes};

use crate::gpu::Gpus;

/// Memory that is kept for the owner.
const KEPT: Mebibytes = Mebibytes(512);

/// The hardware that the machine offers.
pub(crate) fn probe(state: &Path, gpus: &Gpus) -> anyhow::Result<Hardware> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("reading /proc/cpuinfo")?;
    let meminfo = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let room = rustix::fs::statvfs(state).with_context(|| format!("measuring {}", state.display()))?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Ok(Hardware {
        cpu_model: field(&cpuinfo, "model name").unwrap_or("unknown CPU").to_owned(),
        cpu_cores: u32::try_from(cores).unwrap_or(u32::MAX),
        memory: Mebibytes(total_memory(&meminfo).0.saturating_sub(KEPT.0)),
        // Half of the free space (`>> 21` and not `>> 20`): the other half is kept for the owner.
        disk: Mebibytes(room.f_bavail.saturating_mul(room.f_frsize) >> 21),
        gpus: gpus.list(),
        driver: gpus.driver(),
        cuda: gpus.cuda(),
        simulated: gpus.simulated(),
    })
}

/// All memory of the machine.
pub(crate) fn memory() -> std::io::Result<Mebibytes> {
    fs::read_to_string("/proc/meminfo").map(|meminfo| total_memory(&meminfo))
}

fn total_memory(meminfo: &str) -> Mebibytes {
    let kib = field(meminfo, "MemTotal").and_then(|v| v.split(' ').next()).and_then(|v| v.parse::<u64>().ok());
    Mebibytes(kib.unwrap_or(0) / 1_024)
}

/// The value of a line `name: value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

/// The CPU load of the whole machine, from the kernel's counters.
#[derive(Debug, Default)]
pub(crate) struct CpuLoad {
    busy: u64,
    all: u64,
}

impl CpuLoad {
    /// The load since the last call, percent.
    pub(crate) fn percent(&mut self) -> f32 {
        let Ok(stat) = fs::read_to_string("/proc/stat") else { return 0.0 };
        let (busy, all) = jiffies(&stat);
        let (more_busy, more) = (busy.saturating_sub(self.busy), all.saturating_sub(self.all));
        *self = Self { busy, all };
        // The counters of a few seconds are small: no precision is lost.
        #[allow(clippy::cast_precision_loss)]
        if more == 0 { 0.0 } else { 100.0 * more_busy as f32 / more as f32 }
    }
}

/// The busy time and the whole time of all CPUs since boot, in the kernel's ticks.
fn jiffies(stat: &str) -> (u64, u64) {
    let numbers = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let numbers: Vec<u64> = numbers.take(8).filter_map(|n| n.parse().ok()).collect();
    let all: u64 = numbers.iter().sum();
    let idle: u64 = numbers.iter().skip(3).take(2).sum();
    (all.saturating_sub(idle), all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_numbers_are_read() {
        assert_eq!(total_memory("MemTotal:       2048000 kB\nMemFree: 1 kB\n"), Mebibytes(2_000));
        assert_eq!(jiffies("cpu  10 0 20 60 10 0 0 0 0 0\ncpu0 1 2 3\n"), (30, 100));
        assert_eq!(jiffies(""), (0, 0));
    }
}
