//! Machines, their readings, and the attempts that their record counts.

use std::collections::BTreeMap;

use gpubnb_events::{
    AccountId, JobId, Lease, MachineId, MicroUsd, Millis, Seq, Timestamp,
    event::{Check, Fault, Reason},
    record::Record,
    spec::Offer,
    telemetry::Heartbeat,
};
use serde::{Deserialize, Serialize};

/// The state of a machine: whether it is there and takes jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub enum MachineState {
    /// The machine takes jobs.
    Online,
    /// The machine missed heartbeats.
    Suspect,
    /// The machine was silent for longer than the grace period.
    Lost,
    /// The owner paused the machine.
    Paused,
    /// The owner uses the machine.
    Away,
    /// The machine finishes its jobs and takes no new ones.
    Draining,
    /// The machine finishes its jobs; then the owner works on it.
    Maintenance,
    /// The machine left the market.
    Delisted,
}

impl MachineState {
    /// The one state that people see, made of four facts: the state that the owner asked for (`wanted`), the watchdog's
    /// view (`presence`), whether the owner uses the machine (`away`), and whether no job runs there (`idle`).
    pub fn seen(wanted: Self, presence: Self, away: bool, idle: bool) -> Self {
        match (wanted, presence) {
            (Self::Delisted, _) => Self::Delisted,
            // The owner announced that the machine would fall silent, and no job suffers from it.
            (Self::Maintenance, _) if idle => Self::Maintenance,
            (_, Self::Suspect) => Self::Suspect,
            (_, Self::Lost) => Self::Lost,
            (Self::Online, _) if away => Self::Away,
            (wanted, _) => wanted,
        }
    }

    /// The name of the state.
    pub fn name(self) -> &'static str {
        match self {
            Self::Online => "Online",
            Self::Suspect => "Suspect",
            Self::Lost => "Lost",
            Self::Paused => "Paused",
            Self::Away => "In use by its owner",
            Self::Draining => "Draining",
            Self::Maintenance => "Maintenance",
            Self::Delisted => "Delisted",
        }
    }
}

/// An attempt that ended by a machine's fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LastFault {
    /// The job.
    pub job: JobId,
    /// Why the attempt ended.
    pub reason: Reason,
    /// The worker's description of the failure.
    pub detail: String,
    /// The time of the event.
    pub at: Timestamp,
    /// The sequence of the event.
    pub seq: Seq,
}

/// A machine, as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ListedMachine {
    /// The machine's id.
    pub machine: MachineId,
    /// The owner.
    pub owner: AccountId,
    /// The public keys that the machine has had, the present one last.
    pub public_keys: Vec<String>,
    /// The hardware, the price and the owner's policy.
    pub offer: Offer,
    /// The state that the owner asked for: Online, Paused, Draining, Maintenance or Delisted.
    pub wanted: MachineState,
    /// True if the owner uses the machine now.
    #[serde(default)]
    pub away: bool,
    /// The last fault of the machine, if no job has completed there since.
    #[serde(default)]
    pub trouble: Option<LastFault>,
    /// The watchdog's view: Online, Suspect or Lost.
    pub presence: MachineState,
    /// The checks of the last self-test.
    #[serde(default)]
    pub checks: Vec<Check>,
    /// The time at which the machine was listed first.
    pub listed_at: Timestamp,
    /// The jobs that are assigned to the machine or run there.
    pub running: Vec<JobId>,
    /// Attempts that ended without a fault of the machine.
    pub successes: u32,
    /// Attempts that ended by a fault of the machine, by the reason's name.
    pub faults: BTreeMap<String, u32>,
    /// The earnings of all jobs.
    pub earned: MicroUsd,
    /// The metered time of all jobs.
    pub metered: Millis,
    /// The sequence of the last event about the machine.
    pub seq: Seq,
}

impl ListedMachine {
    /// The one state that people see.
    pub fn state(&self) -> MachineState {
        MachineState::seen(self.wanted, self.presence, self.away, self.running.is_empty())
    }

    /// The share of attempts that ended without a fault of the machine, in percent, and the number of all attempts.
    pub fn reliability(&self) -> Option<(u32, u32)> {
        let record = Record { successes: self.successes, faults: self.faults.values().sum() };
        Some((record.percent()?, record.attempts()))
    }

    /// The slots that no job occupies.
    pub fn free_slots(&self) -> u32 {
        self.offer.slots.saturating_sub(u32::try_from(self.running.len()).unwrap_or(u32::MAX))
    }
}

/// A machine with its last heartbeat and its recent load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MachineView {
    /// The machine, from the events of the log.
    #[serde(flatten)]
    pub listed: ListedMachine,
    /// The last heartbeat.
    pub heartbeat: Option<Heartbeat>,
    /// The mean utilisation of the GPUs in each minute, percent, oldest first; of the CPUs where there is no GPU.
    pub load: Vec<u8>,
}

/// The mean values of a machine in one minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Reading {
    /// The beginning of the minute.
    pub at: Timestamp,
    /// The utilisation of the GPUs, percent; of the CPUs where there is no GPU.
    pub load: u8,
    /// The memory in use on all GPUs, MiB.
    pub memory: u32,
    /// The temperature of the hottest GPU, degrees Celsius.
    pub celsius: u8,
    /// The power of all GPUs, watts.
    pub watts: u16,
}

/// How an attempt at a machine ended. Everybody may see this, so neither the job nor its consumer is named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Outcome {
    /// The lease: the sequence of the assignment.
    pub lease: Lease,
    /// The time of the assignment.
    pub at: Timestamp,
    /// The name of the event that ended the attempt; `None` while the attempt goes on.
    pub ended: Option<String>,
    /// Why the attempt ended badly. Known for the last attempt of a job only.
    pub reason: Option<Reason>,
    /// Whose fault that was.
    pub fault: Option<Fault>,
}
