//! The telemetry of the machines: the last heartbeat of each machine, and the mean readings of each minute of the last
//! day. The telemetry is in memory only. After a restart the projector reads it again from the stream TELEMETRY.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use gpubnb_events::{
    MachineId, Timestamp,
    telemetry::{Heartbeat, RunningLease},
};
use gpubnb_query::view::Reading;

/// The number of past minutes that are kept for each machine.
const MINUTES: usize = 24 * 60;
const MINUTE_MS: i64 = 60_000;

/// The readings of all machines.
#[derive(Default)]
pub(crate) struct Telemetry(Mutex<HashMap<MachineId, Readings>>);

/// The readings of one machine.
#[derive(Default)]
struct Readings {
    last: Option<Heartbeat>,
    /// The time at which the broker received the last heartbeat.
    last_at: Option<Timestamp>,
    current_minute: MinuteSums,
    /// The means of the past minutes, oldest first. A minute takes twelve bytes, so a day takes 17 KB per machine.
    past_minutes: VecDeque<MinuteMeans>,
}

/// The sums of the heartbeats of one minute. The units are those of `MinuteMeans`.
#[derive(Default)]
struct MinuteSums {
    /// Minutes since 1970.
    minute: u32,
    /// The number of heartbeats.
    count: u32,
    load: u32,
    memory: u64,
    celsius: u32,
    watts: u32,
}

/// The means of the heartbeats of one minute.
#[derive(Clone, Copy)]
struct MinuteMeans {
    /// Minutes since 1970.
    minute: u32,
    /// The used memory of all GPUs, MiB.
    memory: u32,
    /// The power of all GPUs.
    watts: u16,
    /// Percent.
    load: u8,
    /// The temperature of the hottest GPU.
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

    fn mean(&self) -> MinuteMeans {
        let count = self.count.max(1);
        MinuteMeans {
            minute: self.minute,
            memory: u32::try_from(self.memory / u64::from(count)).unwrap_or(u32::MAX),
            watts: u16::try_from(self.watts / count).unwrap_or(u16::MAX),
            load: u8::try_from(self.load / count).unwrap_or(100),
            celsius: u8::try_from(self.celsius / count).unwrap_or(u8::MAX),
        }
    }
}

impl Telemetry {
    /// Records a heartbeat. `at` is the time at which the broker received the heartbeat.
    pub(crate) fn record(&self, heartbeat: Heartbeat, at: Timestamp) {
        let mut machines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let readings = machines.entry(heartbeat.machine).or_default();
        // A renewed subscription begins with the stored heartbeats, which were recorded before.
        if readings.last_at.is_some_and(|last| at <= last) {
            return;
        }
        readings.last_at = Some(at);
        let minute = u32::try_from(at.millis() / MINUTE_MS).unwrap_or(0);
        if readings.current_minute.minute != minute {
            if readings.current_minute.count > 0 {
                readings.past_minutes.push_back(readings.current_minute.mean());
            }
            if readings.past_minutes.len() > MINUTES {
                readings.past_minutes.pop_front();
            }
            readings.current_minute = MinuteSums { minute, ..MinuteSums::default() };
        }
        readings.current_minute.add(&heartbeat);
        readings.last = Some(heartbeat);
    }

    /// The last heartbeat of a machine, and the machine's mean load (percent) in each of the last `minutes` minutes
    /// with a heartbeat, oldest first.
    pub(crate) fn heartbeat_and_load(&self, machine: MachineId, minutes: usize) -> (Option<Heartbeat>, Vec<u8>) {
        let machines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(readings) = machines.get(&machine) else { return (None, Vec::new()) };
        // The current minute is left out, because its mean changes with every heartbeat, and pages would be redrawn.
        let skip = readings.past_minutes.len().saturating_sub(minutes);
        (readings.last.clone(), readings.past_minutes.iter().skip(skip).map(|m| m.load).collect())
    }

    /// Attempts that have ended on their machine, but whose reports still wait in the machine's outbox.
    pub(crate) fn unreported_ends(&self) -> Vec<(MachineId, RunningLease)> {
        let machines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let beats = machines.values().filter_map(|m| m.last.as_ref());
        let leases = beats.flat_map(|beat| beat.leases.iter().map(|lease| (beat.machine, *lease)));
        leases.filter(|(_, lease)| lease.ended_at.is_some()).collect()
    }

    /// The mean readings of a machine in each of the last `minutes` minutes with a heartbeat, and in the minute of
    /// the last heartbeat, oldest first.
    pub(crate) fn readings(&self, machine: MachineId, minutes: usize) -> Vec<Reading> {
        let machines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(readings) = machines.get(&machine) else { return Vec::new() };
        let skip = readings.past_minutes.len().saturating_sub(minutes);
        let reading = |m: &MinuteMeans| Reading {
            at: Timestamp::from_millis(i64::from(m.minute) * MINUTE_MS),
            load: m.load,
            memory: m.memory,
            celsius: m.celsius,
            watts: m.watts,
        };
        let current = readings.current_minute.mean();
        readings.past_minutes.iter().skip(skip).chain([&current]).map(reading).collect()
    }
}

/// The load of a machine, percent: the mean load of its GPUs, or the load of its CPUs if the machine has no GPU.
fn load(heartbeat: &Heartbeat) -> u32 {
    let gpus = u32::try_from(heartbeat.gpus.len()).unwrap_or(0);
    match heartbeat.gpus.iter().map(|g| g.utilisation_percent.min(100)).sum::<u32>().checked_div(gpus) {
        Some(mean) => mean,
        // The load is only shown in charts, so whole percents are enough.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        None => heartbeat.cpu_percent.clamp(0.0, 100.0) as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_events::telemetry::WorkerState;

    #[test]
    fn past_minutes_are_kept_as_means() {
        let (telemetry, machine) = (Telemetry::default(), MachineId::generate());
        // The subscription is renewed after the second heartbeat.
        for (ms, cpu_percent) in [(0, 10.0), (30_000, 30.0), (0, 10.0), (30_000, 30.0), (60_000, 99.0)] {
            let occurred_at = Timestamp::from_millis(ms);
            let (state, gpus, leases) = (WorkerState::Ready, Vec::new(), Vec::new());
            telemetry.record(Heartbeat { machine, occurred_at, state, cpu_percent, gpus, leases }, occurred_at);
        }
        assert_eq!(telemetry.heartbeat_and_load(machine, 60).1, [20]);
        let loads: Vec<_> = telemetry.readings(machine, 60).iter().map(|r| (r.at.millis(), r.load)).collect();
        assert_eq!(loads, [(0, 20), (60_000, 99)]);
    }
}
