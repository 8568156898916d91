//! The answers to queries: plain values.

pub mod ops;

use std::collections::BTreeMap;

use gpubnb_events::{
    AccountId, HourlyRate, JobId, Lease, MachineId, MicroUsd, Millis, Recorded, Seq, Timestamp,
    event::{Check, Fault, Reason, Settled},
    record::Record,
    spec::{Artifact, JobSpec, Limits, Offer, Placement, PlacementExplanation, Terms},
    telemetry::Heartbeat,
};
use serde::{Deserialize, Serialize};

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
pub enum JobState {
    /// It waits for a machine.
    Queued,
    /// A machine was told.
    Assigned,
    /// The machine prepares it.
    Accepted,
    /// Its code runs.
    Running,
    /// It ended well.
    Completed,
    /// It ended badly.
    Failed,
    /// It was stopped.
    Cancelled,
}

impl JobState {
    /// Whether it will not change any more, but for the bill.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// The name of the state.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "Queued",
            Self::Assigned => "Assigned",
            Self::Accepted => "Accepted",
            Self::Running => "Running",
            Self::Completed => "Completed",
            Self::Failed => "Failed",
            Self::Cancelled => "Cancelled",
        }
    }
}

/// A job, as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobView {
    /// The job.
    pub job: JobId,
    /// Whose.
    pub account: AccountId,
    /// What it runs.
    pub spec: JobSpec,
    /// Where it may run.
    pub placement: Placement,
    /// Its bounds.
    pub limits: Limits,
    /// What was held for it.
    pub hold: MicroUsd,
    /// Where it is.
    pub state: JobState,
    /// Whether the bill is made.
    pub settled: bool,
    /// Whether cancelling was asked for.
    pub cancel_requested: bool,
    /// Why it ended, or why it was requeued last.
    pub reason: Option<Reason>,
    /// Whose fault that was.
    pub fault: Option<Fault>,
    /// What the worker said of it.
    #[serde(default)]
    pub detail: String,
    /// Its attempts, in order.
    pub attempts: Vec<AttemptView>,
    /// What it left.
    #[serde(default)]
    pub outputs: Vec<Artifact>,
    /// The machine's signature over the list of them, base64url.
    pub signature: Option<String>,
    /// When it was submitted.
    pub submitted_at: Timestamp,
    /// When its code started last.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// What it cost; `None` until it is settled.
    pub cost: Option<MicroUsd>,
    /// The platform's share.
    pub fee: Option<MicroUsd>,
    /// The provider's share.
    pub earned: Option<MicroUsd>,
    /// The last event about it.
    pub seq: Seq,
}

/// One attempt of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AttemptView {
    /// The lease.
    pub lease: Lease,
    /// Where.
    pub machine: MachineId,
    /// The locked price.
    pub terms: Terms,
    /// Why there.
    pub placement: PlacementExplanation,
    /// When it was given.
    pub assigned_at: Timestamp,
    /// Digest of the image that ran.
    #[serde(default)]
    pub image_digest: Option<String>,
    /// How it ended: the event's name.
    #[serde(default)]
    pub ended: Option<String>,
}

impl JobView {
    /// The attempt that counts now.
    pub fn attempt(&self) -> Option<&AttemptView> {
        self.attempts.last().filter(|_| self.state != JobState::Queued)
    }

    /// The name of where it is: `Settled` once it is paid.
    pub fn state_name(&self) -> &'static str {
        if self.settled { "Settled" } else { self.state.name() }
    }

    /// Metered time so far, by the broker's times.
    pub fn run_time(&self, now: Timestamp) -> Millis {
        self.started_at.map_or(Millis(0), |started| self.ended_at.unwrap_or(now).since(started))
    }
}

/// Whether a machine is there and takes jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub enum MachineState {
    /// It is there and takes jobs.
    Online,
    /// It missed heartbeats.
    Suspect,
    /// It was silent past the grace.
    Lost,
    /// The owner paused it.
    Paused,
    /// It is its owner's turn.
    Away,
    /// It finishes what it has.
    Draining,
    /// It finishes what it has; then its owner works on it.
    Maintenance,
    /// It left the market.
    Delisted,
}

impl MachineState {
    /// The one state that people see of a machine: of the owner's wish, the watchdog's view, the owner's own use, and
    /// whether the machine is idle.
    pub fn seen(wanted: Self, presence: Self, away: bool, idle: bool) -> Self {
        match (wanted, presence) {
            (Self::Delisted, _) => Self::Delisted,
            // Silence that was announced, and under which nothing runs.
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
    /// Why it ended.
    pub reason: Reason,
    /// What the worker said of it.
    pub detail: String,
    /// When.
    pub at: Timestamp,
    /// Its event.
    pub seq: Seq,
}

/// A machine, as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ListedMachine {
    /// The machine.
    pub machine: MachineId,
    /// Who owns it.
    pub owner: AccountId,
    /// The public keys that it has had, the present one last.
    pub public_keys: Vec<String>,
    /// What is offered.
    pub offer: Offer,
    /// What the owner wants: Online, Paused, Draining or Delisted.
    pub wanted: MachineState,
    /// Whether it is its owner's turn.
    #[serde(default)]
    pub away: bool,
    /// What went wrong here by the machine's fault, if nothing went well since.
    #[serde(default)]
    pub trouble: Option<LastFault>,
    /// What the watchdog sees: Online, Suspect or Lost.
    pub presence: MachineState,
    /// The last self-test.
    #[serde(default)]
    pub checks: Vec<Check>,
    /// When it was listed first.
    pub listed_at: Timestamp,
    /// Jobs it has in hand.
    pub running: Vec<JobId>,
    /// Attempts that ended without a fault of its own.
    pub successes: u32,
    /// Attempts that ended by its fault, by the reason's name.
    pub faults: BTreeMap<String, u32>,
    /// What it has earned.
    pub earned: MicroUsd,
    /// Metered time of all its jobs.
    pub metered: Millis,
    /// The last event about it.
    pub seq: Seq,
}

impl ListedMachine {
    /// The one state that people see.
    pub fn state(&self) -> MachineState {
        MachineState::seen(self.wanted, self.presence, self.away, self.running.is_empty())
    }

    /// Share of attempts without a fault of the machine, in percent, and out of how many.
    pub fn reliability(&self) -> Option<(u32, u32)> {
        let record = Record { successes: self.successes, faults: self.faults.values().sum() };
        Some((record.percent()?, record.attempts()))
    }

    /// Free slots.
    pub fn free_slots(&self) -> u32 {
        self.offer.slots.saturating_sub(u32::try_from(self.running.len()).unwrap_or(u32::MAX))
    }
}

/// A machine with what it says of itself now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MachineView {
    /// The machine as the log has it.
    #[serde(flatten)]
    pub listed: ListedMachine,
    /// The last heartbeat.
    pub heartbeat: Option<Heartbeat>,
    /// Mean GPU utilisation (CPU load without a GPU), percent, per minute, oldest first.
    pub load: Vec<u8>,
}

/// Means of one minute of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Reading {
    /// When the minute began.
    pub at: Timestamp,
    /// Utilisation of its GPUs (of its CPUs without a GPU), percent.
    pub load: u8,
    /// Memory in use on all its GPUs, MiB.
    pub memory: u32,
    /// The hottest GPU, degrees Celsius.
    pub celsius: u8,
    /// Power of all its GPUs, watts.
    pub watts: u16,
}

/// How an attempt at a machine went: what its record counts, with nothing of the job or whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Outcome {
    /// The assignment's place in the log.
    pub lease: Lease,
    /// When it was assigned.
    pub at: Timestamp,
    /// How it ended; `None` while it goes on.
    pub ended: Option<String>,
    /// Why, where it did not end well and no other attempt came after it.
    pub reason: Option<Reason>,
    /// Whose fault that was.
    pub fault: Option<Fault>,
}

/// One line of an account's statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct StatementLine {
    /// The event.
    pub seq: Seq,
    /// When.
    pub at: Timestamp,
    /// The event's name.
    pub event: String,
    /// The job it is about.
    pub job: Option<JobId>,
    /// Change of what is available.
    pub available: MicroUsd,
    /// Change of what is held.
    pub held: MicroUsd,
    /// What is available after it.
    pub balance: MicroUsd,
}

/// What an account has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Balance {
    /// What it may spend.
    pub available: MicroUsd,
    /// What is held for its jobs.
    pub held: MicroUsd,
    /// What is on its way out.
    pub payable: MicroUsd,
    /// What its jobs have cost in all.
    pub spent: MicroUsd,
    /// What its machines have earned in all.
    pub earned: MicroUsd,
}

/// What was settled on one day (UTC).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Day {
    /// Days since 1970.
    pub day: u32,
    /// What jobs have cost.
    pub spent: MicroUsd,
    /// What machines have earned.
    pub earned: MicroUsd,
    /// Metered time of the jobs that were paid for.
    pub metered: Millis,
    /// How many those were.
    pub jobs: u32,
}

impl Day {
    /// The number of a moment's day.
    pub fn of(at: Timestamp) -> u32 {
        u32::try_from(at.millis() / 86_400_000).unwrap_or(0)
    }
}

/// A job's bill: `Settled`, where it stands, and the price it was made with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Receipt {
    /// The sequence of `Settled`.
    pub seq: Seq,
    /// When.
    pub at: Timestamp,
    /// The price terms of the attempt, from `JobAssigned`.
    pub terms: Option<Terms>,
    /// The event.
    #[serde(flatten)]
    pub settled: Settled,
}

/// Figures of the whole market.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Figures {
    /// Machines on the market.
    pub machines: u32,
    /// GPUs in them that are real.
    pub gpus: u32,
    /// Jobs that wait.
    pub queued: u32,
    /// Jobs on a machine.
    pub active: u32,
    /// Jobs that are paid.
    pub settled: u64,
    /// What they cost.
    pub cost: MicroUsd,
    /// The platform's share.
    pub fees: MicroUsd,
    /// Metered time.
    pub metered: Millis,
    /// The lowest price on the market.
    pub cheapest: Option<HourlyRate>,
}

/// One event of a trail, read back from the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TrailEvent {
    /// Its place in the log.
    pub seq: Seq,
    /// The broker's time.
    pub recorded_at: Timestamp,
    /// Its name, without version.
    pub event: String,
    /// Wire name, with version.
    pub wire_name: String,
    /// In whose name.
    pub actor: String,
    /// The sequence that led to it.
    pub cause: Option<Seq>,
    /// The job it is about.
    pub job: Option<JobId>,
    /// Its body.
    pub body: serde_json::Value,
}

impl TrailEvent {
    /// The event of a message; `None` where the message is quarantined.
    pub fn of(recorded: &Recorded) -> Option<Self> {
        let (envelope, event) = recorded.entry.as_ref().ok()?;
        Some(Self {
            seq: recorded.seq,
            recorded_at: recorded.at,
            event: event.name().to_owned(),
            wire_name: event.wire_name().to_owned(),
            actor: envelope.actor.to_string(),
            cause: envelope.cause,
            job: event.job(),
            body: serde_json::to_value(event).ok()?,
        })
    }
}

/// A part of a list, and where the next part begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Page<T> {
    /// The rows.
    pub rows: Vec<T>,
    /// Ask with this for more; `None` at the end.
    pub next: Option<String>,
}

/// What changed, as told to live pages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Notice {
    /// Ask with this as `min_seq`.
    pub seq: Seq,
    /// What became of it.
    pub news: News,
}

/// What became of something that changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum News {
    /// Too much to be told in a notice: ask.
    Ask,
    /// Of a job.
    Job(Box<JobNews>),
    /// Of a machine.
    Machine(Box<MachineView>),
}

/// A job after a change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobNews {
    /// The job after the change.
    pub job: JobView,
    /// How many events its trail had before.
    pub before: u32,
    /// What was added to its trail.
    pub trail: Vec<TrailEvent>,
}
