//! Events of a job, from its first assignment to its settlement. Every report of a worker carries its lease.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{AccountId, JobId, Lease, MachineId, Seq},
    ledger::Posting,
    money::MicroUsd,
    spec::{Artifact, Metering, PlacementExplanation, Terms, Usage},
    time::Timestamp,
};

/// A job was given to a machine. Its sequence is the lease. This very message is the machine's job message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobAssigned {
    /// The job.
    pub job: JobId,
    /// `JobSubmitted`.
    pub submission: Seq,
    /// The machine.
    pub machine: MachineId,
    /// The locked price.
    pub terms: Terms,
    /// Why this machine.
    pub placement: PlacementExplanation,
    /// The attempt, from 1.
    pub attempt: u32,
}

/// Why a machine sent a job back without trying it. Nobody's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeclineReason {
    /// All its slots are taken.
    NoFreeSlot,
    /// The owner paused it.
    Paused,
    /// It drains.
    Draining,
}

/// The machine sent the job back; no attempt is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Declined {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub lease: Lease,
    /// The machine.
    pub machine: MachineId,
    /// Why.
    pub reason: DeclineReason,
}

/// The machine took the job and prepares it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub lease: Lease,
}

/// The container is about to start: from here the meter runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub lease: Lease,
    /// Digest of the image that runs.
    pub image_digest: String,
}

/// Whose fault an ending is. Decides who pays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The job or who submitted it: metered time is billed.
    Consumer,
    /// The machine: nothing is billed.
    Provider,
    /// `GPUbnb`: nothing is billed.
    Platform,
}

/// Why an attempt ended without success. The name is what people see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "name")]
pub enum Reason {
    /// The program ended with this code.
    NonZeroExit {
        /// Exit code.
        code: i64,
    },
    /// It used more memory than it asked for.
    OutOfMemory,
    /// It ran longer than its time limit.
    TimeLimit,
    /// The budget was used up.
    BudgetExhausted,
    /// It wrote more to `/output` than it asked for.
    OutputTooLarge,
    /// It wrote too much log, or too fast.
    LogFlood,
    /// The image does not exist or cannot run.
    BadImage,
    /// An input could not be used.
    BadInput,
    /// The machine fell silent.
    ProviderLost,
    /// The owner took the machine back.
    Preempted,
    /// The machine, or its Docker, was stopped and took the job with it.
    Interrupted,
    /// The GPU failed.
    GpuLost,
    /// The machine's disk is full.
    DiskFull,
    /// Docker or the GPU runtime of the machine is not set up.
    RuntimeMisconfigured,
    /// The machine did not accept in time.
    AssignTimeout,
    /// No machine came free in time.
    NoMachine,
    /// A defect of the platform.
    Internal,
}

impl Reason {
    /// Whose fault it is.
    pub fn fault(self) -> Fault {
        match self {
            Self::NonZeroExit { .. }
            | Self::OutOfMemory
            | Self::TimeLimit
            | Self::BudgetExhausted
            | Self::OutputTooLarge
            | Self::LogFlood
            | Self::BadImage
            | Self::BadInput => Fault::Consumer,
            Self::ProviderLost
            | Self::Preempted
            | Self::Interrupted
            | Self::GpuLost
            | Self::DiskFull
            | Self::RuntimeMisconfigured
            | Self::AssignTimeout => Fault::Provider,
            Self::NoMachine | Self::Internal => Fault::Platform,
        }
    }

    /// What the owner of a machine can do where it was at fault; empty where nothing is to be done.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::ProviderLost => "See that the worker runs and reaches the market: gpubnb-provider status.",
            Self::Interrupted => {
                "Let jobs outlive a restart of Docker: \"live-restore\": true in /etc/docker/daemon.json. Drain the \
                 machine before it is restarted: gpubnb-provider drain."
            }
            Self::GpuLost => {
                "Look at nvidia-smi and the kernel's log for Xid errors; reset the GPU or restart the machine."
            }
            Self::DiskFull => "Make room on the disk of --state and of Docker, or offer less.",
            Self::RuntimeMisconfigured => "Run gpubnb-provider self-test: it says what Docker lacks.",
            Self::AssignTimeout => "See that the worker runs: gpubnb-provider status, gpubnb-provider logs.",
            _ => "",
        }
    }

    /// In words, for people.
    pub fn description(self) -> String {
        match self {
            Self::NonZeroExit { code } => format!("the program ended with exit code {code}"),
            Self::OutOfMemory => "it used more memory than it asked for".to_owned(),
            Self::TimeLimit => "it reached its time limit".to_owned(),
            Self::BudgetExhausted => "its budget was used up".to_owned(),
            Self::OutputTooLarge => "it wrote more output than it asked for".to_owned(),
            Self::LogFlood => "it wrote too much log".to_owned(),
            Self::BadImage => "the image cannot be used".to_owned(),
            Self::BadInput => "an input cannot be used".to_owned(),
            Self::ProviderLost => "the machine fell silent".to_owned(),
            Self::Preempted => "the owner took the machine back".to_owned(),
            Self::Interrupted => "the machine was restarted".to_owned(),
            Self::GpuLost => "the GPU failed".to_owned(),
            Self::DiskFull => "the machine's disk is full".to_owned(),
            Self::RuntimeMisconfigured => "the machine's container runtime is not set up".to_owned(),
            Self::AssignTimeout => "the machine did not answer in time".to_owned(),
            Self::NoMachine => "no machine came free in time".to_owned(),
            Self::Internal => "a defect of the platform".to_owned(),
        }
    }
}

/// The attempt failed by no fault of the job; it waits for another machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requeued {
    /// The job.
    pub job: JobId,
    /// The attempt that ended.
    pub lease: Lease,
    /// Why.
    pub reason: Reason,
    /// Whose fault.
    pub fault: Fault,
    /// The machine it will not be given to again.
    pub excluded: MachineId,
    /// What the worker said of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// The consumer wants it to stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelRequested {
    /// The job.
    pub job: JobId,
}

/// The program ended with code 0 and its outputs are listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Completed {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub lease: Lease,
    /// The files it left.
    pub outputs: Vec<Artifact>,
    /// What it used.
    pub usage: Usage,
    /// When, by the worker's clock.
    pub occurred_at: Timestamp,
    /// The machine's signature over the manifest ([`crate::manifest::signed_text`]), base64url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

/// The job ended without success and will not be tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// The job.
    pub job: JobId,
    /// The attempt; `None` if it never had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    /// Why.
    pub reason: Reason,
    /// Whose fault.
    pub fault: Fault,
    /// What the worker said of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// What it left before it failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<Artifact>,
    /// What it used, where the worker said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// The machine's signature over the manifest, as in [`Completed`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

/// The job was stopped at the consumer's wish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancelled {
    /// The job.
    pub job: JobId,
    /// The attempt; `None` if it had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    /// What it used, where the worker said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// The bill: one balanced set of postings, and the sequences it was computed from. Once per job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Settled {
    /// The job.
    pub job: JobId,
    /// Who pays.
    pub consumer: AccountId,
    /// Who earns; `None` if no attempt was metered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<AccountId>,
    /// `JobSubmitted`: spec, limits, hold.
    pub submission: Seq,
    /// `JobAssigned`: the price terms; `None` if no attempt is billed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    /// The outcome.
    pub outcome: Seq,
    /// How the time came about; `None` if nothing is billed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metering: Option<Metering>,
    /// What the consumer pays.
    pub cost: MicroUsd,
    /// The platform's share of it.
    pub fee: MicroUsd,
    /// The provider's share of it.
    pub earned: MicroUsd,
    /// The postings. Their sum is zero.
    pub postings: Vec<Posting>,
}
