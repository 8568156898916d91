//! The machine's CPU, memory and disk, as the kernel reports them. The machine does not offer all of them: 512 MiB of
//! memory and half of the free disk are for the owner.

use std::{fs, path::Path};

use anyhow::Context as _;
use gpubnb_events::spec::{Hardware, Mebibytes};

use crate::gpu::Gpus;

/// The memory that is for the owner.
const OWNER_MEMORY: Mebibytes = Mebibytes(512);

/// The hardware that the machine offers. `state` is the worker's directory, whose disk is measured.
pub(crate) fn probe(state: &Path, gpus: &Gpus) -> anyhow::Result<Hardware> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("reading /proc/cpuinfo")?;
    let meminfo = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let disk = rustix::fs::statvfs(state).with_context(|| format!("measuring {}", state.display()))?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Ok(Hardware {
        cpu_model: field_value(&cpuinfo, "model name").unwrap_or("unknown CPU").to_owned(),
        cpu_cores: u32::try_from(cores).unwrap_or(u32::MAX),
        memory: Mebibytes(total_memory(&meminfo).0.saturating_sub(OWNER_MEMORY.0)),
        // Half of the free space (`>> 21` and not `>> 20`): the other half is for the owner.
        disk: Mebibytes(disk.f_bavail.saturating_mul(disk.f_frsize) >> 21),
        gpus: gpus.list(),
        driver: gpus.driver_version(),
        cuda: gpus.cuda_version(),
        simulated: gpus.is_simulated(),
    })
}

/// All memory of the machine.
pub(crate) fn machine_memory() -> std::io::Result<Mebibytes> {
    fs::read_to_string("/proc/meminfo").map(|meminfo| total_memory(&meminfo))
}

fn total_memory(meminfo: &str) -> Mebibytes {
    let kib = field_value(meminfo, "MemTotal").and_then(|v| v.split(' ').next()).and_then(|v| v.parse::<u64>().ok());
    Mebibytes(kib.unwrap_or(0) / 1_024)
}

/// The value of the first line `name: value` with this name.
fn field_value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

/// Measures the CPU load of the whole machine. The fields are the kernel's counters at the last call of `percent`.
#[derive(Debug, Default)]
pub(crate) struct CpuLoad {
    busy: u64,
    all: u64,
}

impl CpuLoad {
    /// The load since the last call, 0 to 100 percent.
    pub(crate) fn percent(&mut self) -> f32 {
        let Ok(stat) = fs::read_to_string("/proc/stat") else { return 0.0 };
        let (busy, all) = jiffies(&stat);
        let (busy_delta, all_delta) = (busy.saturating_sub(self.busy), all.saturating_sub(self.all));
        *self = Self { busy, all };
        // The differences over a few seconds are small, so the conversion to `f32` is exact.
        #[allow(clippy::cast_precision_loss)]
        if all_delta == 0 { 0.0 } else { 100.0 * busy_delta as f32 / all_delta as f32 }
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
    fn memory_and_cpu_time_are_read_from_the_kernels_files() {
        assert_eq!(total_memory("MemTotal:       2048000 kB\nMemFree: 1 kB\n"), Mebibytes(2_000));
        assert_eq!(jiffies("cpu  10 0 20 60 10 0 0 0 0 0\ncpu0 1 2 3\n"), (30, 100));
        assert_eq!(jiffies(""), (0, 0));
    }
}
