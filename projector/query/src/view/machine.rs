//! Machines, their load over time, and the outcomes of their attempts.

use std::collections::BTreeMap;

use gpubnb_events::{
    AccountId, JobId, Lease, MachineId, MicroUsd, Millis, Seq, Timestamp,
    event::{Check, Fault, Reason},
    record::MachineRecord,
    spec::{MachineSettings, Offer},
    telemetry::Heartbeat,
};
use serde::{Deserialize, Serialize};

/// The state of a machine. Only a machine in the state `Online` takes new jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub enum MachineState {
    /// The machine takes jobs.
    Online,
    /// The machine missed heartbeats.
    Suspect,
    /// The machine was silent for so long that its jobs were requeued.
    Lost,
    /// The owner paused the machine.
    Paused,
    /// The owner uses the machine.
    Away,
    /// The machine finishes its jobs and takes no new ones.
    Draining,
    /// The machine finishes its jobs and takes no new ones, because the owner plans to repair or update it.
    Maintenance,
    /// The machine left the market.
    Delisted,
}

impl MachineState {
    /// Combines four facts into the state that pages show: the state that the owner asked for (`wanted`), the state by
    /// the machine's heartbeats (`presence`), the owner's own use of the machine (`is_away`), and the lack of running
    /// jobs (`is_idle`).
    pub fn from_facts(wanted: Self, presence: Self, is_away: bool, is_idle: bool) -> Self {
        match (wanted, presence) {
            (Self::Delisted, _) => Self::Delisted,
            // The owner announced the maintenance, and no job is lost: missing heartbeats are expected.
            (Self::Maintenance, _) if is_idle => Self::Maintenance,
            (_, Self::Suspect) => Self::Suspect,
            (_, Self::Lost) => Self::Lost,
            (Self::Online, _) if is_away => Self::Away,
            (wanted, _) => wanted,
        }
    }

    /// The name of the state, as pages show it.
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

/// The last attempt that ended by a machine's fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LastFault {
    /// The job.
    pub job: JobId,
    /// The reason why the attempt ended.
    pub reason: Reason,
    /// The worker's description of the failure.
    pub detail: String,
    /// The time of the event that ended the attempt.
    pub at: Timestamp,
    /// The sequence of this event.
    pub seq: Seq,
}

/// A machine, as the events of the log describe it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ListedMachine {
    /// The machine's id.
    pub machine: MachineId,
    /// The owner.
    pub owner: AccountId,
    /// All public keys that the machine has had, oldest first. The last key is in use.
    pub public_keys: Vec<String>,
    /// The hardware, the price and the owner's policy.
    pub offer: Offer,
    /// The settings that the owner asked for, while the machine has not taken them.
    #[serde(default)]
    pub requested: Option<MachineSettings>,
    /// The state that the owner asked for: Online, Paused, Draining, Maintenance or Delisted.
    pub wanted: MachineState,
    /// True if the owner uses the machine now.
    #[serde(default)]
    pub away: bool,
    /// The last fault of the machine; `None` after a job has completed on the machine.
    #[serde(default)]
    pub trouble: Option<LastFault>,
    /// The state by the machine's heartbeats: Online, Suspect or Lost.
    pub presence: MachineState,
    /// The checks of the last self-test.
    #[serde(default)]
    pub checks: Vec<Check>,
    /// The time at which the machine was listed first.
    pub listed_at: Timestamp,
    /// The jobs that are assigned to the machine or run on it.
    pub running: Vec<JobId>,
    /// The number of attempts in which the machine ran the job's program to its end, even if the job failed.
    pub successes: u32,
    /// The number of attempts that ended by a fault of the machine, for each reason: `{"GpuLost": 2}`.
    pub faults: BTreeMap<String, u32>,
    /// The earnings of all jobs.
    pub earned: MicroUsd,
    /// The metered time of all jobs.
    pub metered: Millis,
    /// The sequence of the last event about the machine.
    pub seq: Seq,
}

impl ListedMachine {
    /// The machine's state, as pages show it.
    pub fn state(&self) -> MachineState {
        MachineState::from_facts(self.wanted, self.presence, self.away, self.running.is_empty())
    }

    /// The share of successes among the attempts that count (successes and faults), in percent, and the number of these
    /// attempts. A declined or cancelled attempt does not count. `None` if no attempt counts.
    pub fn reliability(&self) -> Option<(u32, u32)> {
        let record = MachineRecord { successes: self.successes, faults: self.faults.values().sum() };
        Some((record.percent()?, record.attempts()))
    }

    /// True if the machine has left the market.
    pub fn is_delisted(&self) -> bool {
        self.wanted == MachineState::Delisted
    }

    /// True if the machine takes jobs now, as soon as it has a free slot.
    pub fn takes_jobs(&self) -> bool {
        self.state() == MachineState::Online
    }

    /// True if the machine could begin a job now.
    pub fn is_free(&self) -> bool {
        self.takes_jobs() && self.free_slots() > 0
    }

    /// The number of slots without a job. Each running job occupies one slot.
    pub fn free_slots(&self) -> u32 {
        self.offer.slots.saturating_sub(u32::try_from(self.running.len()).unwrap_or(u32::MAX))
    }
}

/// A machine, as the pages and the API show it: with its last heartbeat and its recent load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MachineView {
    /// The machine, from the events of the log.
    #[serde(flatten)]
    pub listed: ListedMachine,
    /// The last heartbeat.
    pub heartbeat: Option<Heartbeat>,
    /// The mean utilisation of the GPUs in each of the last 60 minutes with a heartbeat, percent, oldest first.
    /// Without a GPU: that of the CPUs.
    pub load: Vec<u8>,
}

/// The mean values of a machine in one minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Reading {
    /// The beginning of the minute.
    pub at: Timestamp,
    /// The utilisation of the GPUs, percent. Without a GPU: that of the CPUs.
    pub load: u8,
    /// The memory in use on all GPUs, MiB.
    pub memory: u32,
    /// The temperature of the hottest GPU, degrees Celsius.
    pub celsius: u8,
    /// The power of all GPUs, watts.
    pub watts: u16,
}

/// The outcome of an attempt on a machine. The outcome is public, so it names neither the job nor the consumer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Outcome)]
pub struct AttemptOutcome {
    /// The lease: the sequence of the assignment.
    pub lease: Lease,
    /// The time of the assignment.
    pub at: Timestamp,
    /// The name of the event that ended the attempt; `None` while the attempt goes on.
    pub ended: Option<String>,
    /// The reason why the attempt failed. Only the last attempt of a job has a reason here.
    pub reason: Option<Reason>,
    /// The party at fault: consumer, provider or platform.
    pub fault: Option<Fault>,
}
