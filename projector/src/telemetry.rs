//! The telemetry of the machines: the last heartbeat of each, and the means of each minute of a day. It is in memory
//! only. After a restart it comes back from the stream TELEMETRY and the next heartbeats; a replay of MARKET does not
//! need it.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use gpubnb_events::{
    MachineId, Timestamp,
    telemetry::{Heartbeat, RunningLease},
};
use gpubnb_query::view::Reading;

/// Minutes that are kept.
const MINUTES: usize = 24 * 60;
const MINUTE_MS: i64 = 60_000;

/// Readings of all machines.
#[derive(Default)]
pub(crate) struct Telemetry(Mutex<HashMap<MachineId, Readings>>);

#[derive(Default)]
struct Readings {
    last: Option<Heartbeat>,
    /// The sums of the present minute.
    present: MinuteSums,
    /// The means of the minutes before: twelve bytes each, so that a day of every machine fits in memory.
    past: VecDeque<Minute>,
}

#[derive(Default)]
struct MinuteSums {
    minute: u32,
    count: u32,
    load: u32,
    memory: u64,
    celsius: u32,
    watts: u32,
}

#[derive(Clone, Copy)]
struct Minute {
    /// The minute's number since 1970.
    began: u32,
    memory: u32,
    watts: u16,
    load: u8,
    celsius: u8,
}

impl MinuteSums {
    fn add(&mut self, heartbeat: &Heartbeat) {
        self.count += 1;
        self.load += load(heartbeat);
        self.memory += heartbeat.gpus.iter().map(|g| g.memory_used.0).sum::<u64>();
        self.celsius += heartbeat.gpus.iter().map(|g| g.celsius.min(255)).max().unwrap_or(0);
        self.watts += heartbeat.gpus.iter().map(|g| g.watts.min(10_000)).sum::<u32>();
    }

    fn mean(&self) -> Minute {
        let count = self.count.max(1);
        Minute {
            began: self.minute,
            memory: u32::try_from(self.memory / u64::from(count)).unwrap_or(u32::MAX),
            watts: u16::try_from(self.watts / count).unwrap_or(u16::MAX),
            load: u8::try_from(self.load / count).unwrap_or(100),
            celsius: u8::try_from(self.celsius / count).unwrap_or(u8::MAX),
        }
    }
}

impl Telemetry {
    /// Takes in a heartbeat. `at` is the broker's time.
    pub(crate) fn hear(&self, heartbeat: Heartbeat, at: Timestamp) {
        let mut machines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let readings = machines.entry(heartbeat.machine).or_default();
        let minute = u32::try_from(at.millis() / MINUTE_MS).unwrap_or(0);
        if readings.present.minute != minute {
            if readings.present.count > 0 {
                readings.past.push_back(readings.present.mean());
            }
            if readings.past.len() > MINUTES {
                readings.past.pop_front();
            }
            readings.present = MinuteSums { minute, ..MinuteSums::default() };
        }
        readings.present.add(&heartbeat);
        readings.last = Some(heartbeat);
    }

    /// The last heartbeat of a machine, and its mean load in each of the last `minutes`.
    pub(crate) fn of(&self, machine: MachineId, minutes: usize) -> (Option<Heartbeat>, Vec<u8>) {
        let machines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(readings) = machines.get(&machine) else { return (None, Vec::new()) };
        // The present minute is left out: its mean changes with every heartbeat, and pages would be redrawn each time.
        let skip = readings.past.len().saturating_sub(minutes);
        (readings.last.clone(), readings.past.iter().skip(skip).map(|m| m.load).collect())
    }

    /// Attempts that have ended on their machine while the report still waits in the machine's outbox.
    pub(crate) fn unsaid(&self) -> Vec<(MachineId, RunningLease)> {
        let machines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let beats = machines.values().filter_map(|m| m.last.as_ref());
        let leases = beats.flat_map(|beat| beat.leases.iter().map(|lease| (beat.machine, *lease)));
        leases.filter(|(_, lease)| lease.ended_at.is_some()).collect()
    }

    /// The means of a machine's last `minutes`, oldest first.
    pub(crate) fn readings(&self, machine: MachineId, minutes: usize) -> Vec<Reading> {
        let machines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(readings) = machines.get(&machine) else { return Vec::new() };
        let skip = readings.past.len().saturating_sub(minutes);
        let reading = |m: &Minute| Reading {
            at: Timestamp::from_millis(i64::from(m.began) * MINUTE_MS),
            load: m.load,
            memory: m.memory,
            celsius: m.celsius,
            watts: m.watts,
        };
        let present = readings.present.mean();
        readings.past.iter().skip(skip).chain([&present]).map(reading).collect()
    }
}

/// The load of a machine, percent: the mean of its GPUs, or that of its CPUs where it has no GPU.
fn load(heartbeat: &Heartbeat) -> u32 {
    let gpus = u32::try_from(heartbeat.gpus.len()).unwrap_or(0);
    match heartbeat.gpus.iter().map(|g| g.utilisation_percent.min(100)).sum::<u32>().checked_div(gpus) {
        Some(mean) => mean,
        // The load is only drawn: whole percent are enough.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        None => heartbeat.cpu_percent.clamp(0.0, 100.0) as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_events::telemetry::WorkerState;

    #[test]
    fn a_minute_that_is_over_is_kept_as_its_mean() {
        let (telemetry, machine) = (Telemetry::default(), MachineId::generate());
        for (ms, cpu_percent) in [(0, 10.0), (30_000, 30.0), (60_000, 99.0)] {
            let occurred_at = Timestamp::from_millis(ms);
            let (state, gpus, leases) = (WorkerState::Ready, Vec::new(), Vec::new());
            telemetry.hear(Heartbeat { machine, occurred_at, state, cpu_percent, gpus, leases }, occurred_at);
        }
        assert_eq!(telemetry.of(machine, 60).1, [20]);
        let loads: Vec<_> = telemetry.readings(machine, 60).iter().map(|r| (r.at.millis(), r.load)).collect();
        assert_eq!(loads, [(0, 20), (60_000, 99)]);
    }
}
