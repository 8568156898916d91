//! Events of a job, from its first assignment to its settlement. Events that a worker caused name the lease,
//! which identifies the attempt.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{AccountId, JobId, Lease, MachineId, Seq},
    ledger::Posting,
    money::MicroUsd,
    signed_log::SignedLog,
    spec::{Artifact, LeftOut, Metering, PlacementExplanation, Terms, Traffic, Usage},
    time::Timestamp,
};

/// A job was given to a machine. The sequence of this event is the lease. The broker copies the event into the stream
/// DISPATCH, where the machine fetches it as its job message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobAssigned {
    /// The job.
    pub job: JobId,
    /// The sequence of `JobSubmitted`.
    pub submission: Seq,
    /// The machine.
    pub machine: MachineId,
    /// The price and the fee, which no longer change.
    pub terms: Terms,
    /// The reason why this machine was chosen.
    pub placement: PlacementExplanation,
    /// The number of the attempt, counted from 1.
    pub attempt: u32,
}

/// The reason why a machine sent a job back without trying it. This is nobody's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeclineReason {
    /// All slots of the machine are taken.
    NoFreeSlot,
    /// The owner paused the machine.
    Paused,
    /// The machine drains.
    Draining,
}

/// The machine sent the job back. This does not count as an attempt of the job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Declined {
    /// The job.
    pub job: JobId,
    /// The lease of the attempt.
    pub lease: Lease,
    /// The machine.
    pub machine: MachineId,
    /// The reason.
    pub reason: DeclineReason,
}

/// The machine accepted the job and prepares it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The job.
    pub job: JobId,
    /// The lease of the attempt.
    pub lease: Lease,
}

/// The container is about to start. The metered time begins here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// The job.
    pub job: JobId,
    /// The lease of the attempt.
    pub lease: Lease,
    /// Digest of the image.
    pub image_digest: String,
}

/// The job's program ended. The machine still uploads the files and the rest of the log; nobody pays for that time. The
/// worker leaves this event out if there are no files to upload and the report follows within a second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exited {
    /// The job.
    pub job: JobId,
    /// The lease of the attempt.
    pub lease: Lease,
    /// The metered use, which the later report can no longer change.
    pub usage: Usage,
}

/// The party at fault for an ending, which decides who pays. docs/events.md lists the evidence for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The job, or the person who submitted it. The metered time is billed.
    Consumer,
    /// The machine. Nothing is billed.
    Provider,
    /// `GPUbnb`. Nothing is billed.
    Platform,
    /// Nobody, as far as anybody can prove. Nothing is billed, the job is tried again after a pause, and the machine's
    /// record does not change.
    Nobody,
}

/// The reason why an attempt ended without success, or why a job found no machine. Programs, and people who look at a
/// machine's counts of faults, read the variant's name, such as `GpuLost`. Elsewhere, people read
/// [`Reason::description`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "name")]
pub enum Reason {
    /// The program ended with this code.
    NonZeroExit {
        /// Exit code.
        code: i64,
    },
    /// The job used more memory than it asked for.
    OutOfMemory,
    /// The job ran longer than its time limit.
    TimeLimit,
    /// The budget was used up.
    BudgetExhausted,
    /// The job wrote more to `/output`, or to its whole disk, than it asked for.
    OutputTooLarge,
    /// The job wrote too much log, or wrote log too fast.
    LogFlood,
    /// The image does not exist or cannot run.
    BadImage,
    /// An input could not be used.
    BadInput,
    /// The machine sent no heartbeats for too long.
    ProviderLost,
    /// The owner took the machine back.
    Preempted,
    /// Docker or the whole machine was stopped, which ended the job.
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
    /// A defect of the market's own programs, of which the worker is one.
    Internal,
    /// The command of the job cannot be run in its image.
    BadCommand,
    /// The machine was online, and never reported the end of the job.
    NotReported,
    /// The registry of the image did not answer, or asked to wait.
    RegistryUnavailable,
    /// The input files could not be fetched from the market.
    InputUnavailable,
    /// Preparing the job took too long.
    PrepareTimeout,
    /// The files of the job did not reach the market in time.
    UploadTimeout,
}

impl Reason {
    /// The party at fault.
    pub fn fault(self) -> Fault {
        match self {
            Self::NonZeroExit { .. }
            | Self::OutOfMemory
            | Self::TimeLimit
            | Self::BudgetExhausted
            | Self::OutputTooLarge
            | Self::LogFlood
            | Self::BadImage
            | Self::BadCommand
            | Self::BadInput => Fault::Consumer,
            Self::ProviderLost
            | Self::Preempted
            | Self::Interrupted
            | Self::GpuLost
            | Self::DiskFull
            | Self::RuntimeMisconfigured
            | Self::NotReported
            | Self::AssignTimeout => Fault::Provider,
            Self::NoMachine => Fault::Platform,
            Self::RegistryUnavailable
            | Self::InputUnavailable
            | Self::PrepareTimeout
            | Self::UploadTimeout
            | Self::Internal => Fault::Nobody,
        }
    }

    /// True for a reason that is the job's own fault and proves that the job's program ran, such as `OutOfMemory`.
    /// False for `BadImage`: the program never started.
    pub fn is_after_run(self) -> bool {
        self.fault() == Fault::Consumer && !matches!(self, Self::BadImage | Self::BadCommand | Self::BadInput)
    }

    /// Advice to the owner of a machine that was at fault; empty if the owner can do nothing.
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
            Self::AssignTimeout | Self::NotReported => {
                "See that the worker runs: gpubnb-provider status, gpubnb-provider logs."
            }
            _ => "",
        }
    }

    /// The reason in words, for people. In these words, "it" is the job.
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
            Self::Internal => "a defect of the market's own programs".to_owned(),
            Self::BadCommand => "its command cannot be run in its image".to_owned(),
            Self::NotReported => "the machine did not report its end".to_owned(),
            Self::RegistryUnavailable => "the machine could not get the image".to_owned(),
            Self::InputUnavailable => "its inputs could not be fetched".to_owned(),
            Self::PrepareTimeout => "preparing it took too long".to_owned(),
            Self::UploadTimeout => "its files did not arrive in time".to_owned(),
        }
    }
}

/// The attempt ended by a fault of the machine, or by nobody's fault. The job waits to be tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requeued {
    /// The job.
    pub job: JobId,
    /// The lease of the attempt that ended.
    pub lease: Lease,
    /// The reason.
    pub reason: Reason,
    /// The party at fault.
    pub fault: Fault,
    /// The machine of the attempt.
    pub excluded: MachineId,
    /// The time until which the job is not given to that machine, or to any machine if nobody is at fault. `None`, in
    /// events of billing rule 1, means that the machine never gets the job again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Details that the worker reported.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// The consumer asked to cancel the job.
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
    /// The lease of the attempt.
    pub lease: Lease,
    /// The files that the job left.
    pub outputs: Vec<Artifact>,
    /// The entries of `/output` that are no artifacts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
    /// The metered use.
    pub usage: Usage,
    /// When the program ended, by the worker's clock.
    pub occurred_at: Timestamp,
    /// The traffic with the internet, if the job asked for hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
    /// The machine's signature over the manifest ([`crate::manifest::signed_text`]), base64url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// The log of the attempt, signed by its machine. An older worker signs no log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<SignedLog>,
}

/// The job ended without success and will not be tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// The job.
    pub job: JobId,
    /// The attempt; `None` for a job that never had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    /// The reason.
    pub reason: Reason,
    /// The party at fault.
    pub fault: Fault,
    /// Details that the worker reported.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// The files that the job left before it failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<Artifact>,
    /// The entries of `/output` that are no artifacts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
    /// The metered use, if the worker reported it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// The traffic with the internet, if the job asked for hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
    /// The machine's signature over the manifest, as in [`Completed`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// The log of the attempt, signed by its machine. An older worker signs no log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<SignedLog>,
}

/// The job was cancelled at the consumer's request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancelled {
    /// The job.
    pub job: JobId,
    /// The attempt; `None` for a job that had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    /// The files that the job left before the cancellation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<Artifact>,
    /// The entries of `/output` that are no artifacts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
    /// The metered use, if the worker reported it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// The traffic with the internet, if the job asked for hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
    /// The machine's signature over the manifest, as in [`Completed`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// The log of the attempt, signed by its machine. An older worker signs no log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<SignedLog>,
}

impl Cancelled {
    /// The end of a job whose attempt, if there was one, reported nothing.
    pub fn unreported(job: JobId, lease: Option<Lease>) -> Self {
        Self {
            job,
            lease,
            outputs: Vec::new(),
            left_out: Vec::new(),
            usage: None,
            traffic: None,
            signature: None,
            log: None,
        }
    }
}

/// The bill of a job: its postings, and the sequences of the events from which the bill is computed. Each job has one
/// bill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Settled {
    /// The job.
    pub job: JobId,
    /// The number of the rule by which the bill was computed (docs/verification.md, "Bills"). The field is left out of
    /// the JSON for rule 1: the oldest bills have no number.
    #[serde(default = "first_rule", skip_serializing_if = "is_first_rule")]
    pub rule: u32,
    /// The account that pays.
    pub consumer: AccountId,
    /// The account that earns; `None` if no attempt was metered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<AccountId>,
    /// The sequence of `JobSubmitted`, which has the specification, the limits and the hold.
    pub submission: Seq,
    /// The sequence of `JobAssigned`, which has the price; `None` if no attempt is billed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    /// The sequence of the event that ended the job.
    pub outcome: Seq,
    /// The metered time and how it was computed; `None` if nothing is billed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metering: Option<Metering>,
    /// The cost for the consumer.
    pub cost: MicroUsd,
    /// The platform's share of the cost.
    pub fee: MicroUsd,
    /// The provider's share of the cost.
    pub earned: MicroUsd,
    /// The postings. Their sum is zero.
    pub postings: Vec<Posting>,
}

/// The rule of a bill whose JSON has no number: rule 1.
fn first_rule() -> u32 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes references
fn is_first_rule(rule: &u32) -> bool {
    *rule == 1
}
