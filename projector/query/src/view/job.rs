//! Jobs and their attempts.

use gpubnb_events::{
    AccountId, JobId, Lease, MachineId, MicroUsd, Millis, Seq, Timestamp,
    event::{Fault, Reason},
    signed_log::SignedLog,
    spec::{Artifact, JobSpec, LeftOut, Limits, Placement, PlacementExplanation, Terms, Traffic},
};
use serde::{Deserialize, Serialize};

/// The state of a job from its submission to its end. The field `JobView::settled` says if the ended job is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
pub enum JobState {
    /// The job waits for a machine.
    Queued,
    /// The job is assigned to a machine, and the machine has not answered yet.
    Assigned,
    /// The machine prepares the job.
    Accepted,
    /// The job's code runs.
    Running,
    /// The job's program has ended. Its files and the rest of its log are being uploaded, for which nobody pays.
    Collecting,
    /// The job ended without a failure.
    Completed,
    /// The job failed.
    Failed,
    /// The consumer stopped the job.
    Cancelled,
}

impl JobState {
    /// True if the job has ended.
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
            Self::Collecting => "Collecting",
            Self::Completed => "Completed",
            Self::Failed => "Failed",
            Self::Cancelled => "Cancelled",
        }
    }
}

/// A job, as the pages and the API show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobView {
    /// The job's id.
    pub job: JobId,
    /// The consumer.
    pub account: AccountId,
    /// The image, its arguments and its resources.
    pub spec: JobSpec,
    /// The conditions that a machine must satisfy, and the rule that chooses among the suitable machines.
    pub placement: Placement,
    /// The limits on run time, budget, attempts and waiting time.
    pub limits: Limits,
    /// The amount that was held when the job was submitted.
    pub hold: MicroUsd,
    /// The job's state.
    pub state: JobState,
    /// True if the job is settled.
    pub settled: bool,
    /// True if the consumer asked for the job to be cancelled.
    pub cancel_requested: bool,
    /// The reason why the job failed, or why its last attempt was requeued.
    pub reason: Option<Reason>,
    /// The party at fault: consumer, provider or platform.
    pub fault: Option<Fault>,
    /// The worker's description of the failure.
    #[serde(default)]
    pub detail: String,
    /// The attempts, oldest first.
    pub attempts: Vec<AttemptView>,
    /// The files that the job left.
    #[serde(default)]
    pub outputs: Vec<Artifact>,
    /// The entries of `/output` that the market did not keep.
    #[serde(default)]
    pub left_out: Vec<LeftOut>,
    /// The traffic with the internet of the attempt that ended the job, if the job asked for hosts.
    #[serde(default)]
    pub traffic: Option<Traffic>,
    /// The machine's signature over the list `outputs`, base64url.
    pub signature: Option<String>,
    /// The log of the attempt that ended the job, as its machine signed it.
    #[serde(default)]
    pub log: Option<SignedLog>,
    /// The time of submission.
    pub submitted_at: Timestamp,
    /// The time at which the last attempt started the job's code.
    pub started_at: Option<Timestamp>,
    /// The time at which the program of the last attempt ended; `None` while the program runs, or if the worker
    /// reported the end of the attempt at once.
    #[serde(default)]
    pub exited_at: Option<Timestamp>,
    /// The time until which the job is not given to the machine of its last attempt again; if nobody was at fault for
    /// the end of that attempt, the job is given to no machine until then.
    #[serde(default)]
    pub retry_at: Option<Timestamp>,
    /// The time at which the job ended.
    pub ended_at: Option<Timestamp>,
    /// The cost; `None` until the job is settled.
    pub cost: Option<MicroUsd>,
    /// The platform's share of the cost; `None` until the job is settled.
    pub fee: Option<MicroUsd>,
    /// The provider's share of the cost; `None` until the job is settled.
    pub earned: Option<MicroUsd>,
    /// The sequence of the last event about the job.
    pub seq: Seq,
}

/// One attempt of a job: one assignment to a machine, until an event ends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AttemptView {
    /// The lease: the sequence of the assignment.
    pub lease: Lease,
    /// The machine.
    pub machine: MachineId,
    /// The price terms at the time of the assignment. A later price change does not change them.
    pub terms: Terms,
    /// The reasons for the choice of this machine.
    pub placement: PlacementExplanation,
    /// The time of the assignment.
    pub assigned_at: Timestamp,
    /// The digest of the image that ran; `None` until the job's code starts.
    #[serde(default)]
    pub image_digest: Option<String>,
    /// The name of the event that ended the attempt; `None` while the attempt goes on.
    #[serde(default)]
    pub ended: Option<String>,
}

impl JobView {
    /// The last attempt; `None` while the job is queued.
    pub fn attempt(&self) -> Option<&AttemptView> {
        self.attempts.last().filter(|_| self.state != JobState::Queued)
    }

    /// The name of the job's state; `Settled` once the job is settled.
    pub fn state_name(&self) -> &'static str {
        if self.settled { "Settled" } else { self.state.name() }
    }

    /// The run time of the last attempt until its end or until `now`. All times are those of the broker's clock.
    pub fn run_time(&self, now: Timestamp) -> Millis {
        let until = self.exited_at.or(self.ended_at).unwrap_or(now);
        self.started_at.map_or(Millis(0), |started| until.since(started))
    }
}
