//! Jobs and their attempts.

use gpubnb_events::{
    AccountId, JobId, Lease, MachineId, MicroUsd, Millis, Seq, Timestamp,
    event::{Fault, Reason},
    spec::{Artifact, JobSpec, Limits, Placement, PlacementExplanation, Terms},
};
use serde::{Deserialize, Serialize};

/// The state of a job, up to its end. The settlement follows the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
pub enum JobState {
    /// The job waits for a machine.
    Queued,
    /// The job is assigned to a machine, which has not answered yet.
    Assigned,
    /// The machine prepares the job.
    Accepted,
    /// The job's code runs.
    Running,
    /// The job's program has ended. Its files and its log are on their way, for which nobody pays.
    Collecting,
    /// The job ended well.
    Completed,
    /// The job ended badly.
    Failed,
    /// The consumer stopped the job.
    Cancelled,
}

impl JobState {
    /// True if the job has ended. Only the settlement can still follow.
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

/// A job, as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobView {
    /// The job's id.
    pub job: JobId,
    /// The consumer.
    pub account: AccountId,
    /// The image, its arguments and its resources.
    pub spec: JobSpec,
    /// The choice of the machine.
    pub placement: Placement,
    /// The bounds on time, budget, attempts and waiting.
    pub limits: Limits,
    /// The amount that was held when the job was submitted.
    pub hold: MicroUsd,
    /// The job's state.
    pub state: JobState,
    /// True if the job is settled.
    pub settled: bool,
    /// True if the consumer asked for the job to be cancelled.
    pub cancel_requested: bool,
    /// Why the job failed, or why the last attempt was requeued.
    pub reason: Option<Reason>,
    /// Whose fault that was.
    pub fault: Option<Fault>,
    /// The worker's description of the failure.
    #[serde(default)]
    pub detail: String,
    /// The attempts, in order.
    pub attempts: Vec<AttemptView>,
    /// The files that the job left.
    #[serde(default)]
    pub outputs: Vec<Artifact>,
    /// The machine's signature over the list of these files, base64url.
    pub signature: Option<String>,
    /// The time of submission.
    pub submitted_at: Timestamp,
    /// The time at which the last attempt started the job's code.
    pub started_at: Option<Timestamp>,
    /// The time at which the program of the last attempt ended, if its files were carried away after that.
    #[serde(default)]
    pub exited_at: Option<Timestamp>,
    /// The time until which the job pauses after its last attempt. After a fault of the machine, the job waits so long
    /// for that machine only, and another machine may get the job before.
    #[serde(default)]
    pub retry_at: Option<Timestamp>,
    /// The time at which the job ended.
    pub ended_at: Option<Timestamp>,
    /// The cost; `None` until the job is settled.
    pub cost: Option<MicroUsd>,
    /// The platform's share of the cost.
    pub fee: Option<MicroUsd>,
    /// The provider's share of the cost.
    pub earned: Option<MicroUsd>,
    /// The sequence of the last event about the job.
    pub seq: Seq,
}

/// One attempt of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AttemptView {
    /// The lease.
    pub lease: Lease,
    /// The machine.
    pub machine: MachineId,
    /// The price that was locked at the assignment.
    pub terms: Terms,
    /// Why this machine was chosen.
    pub placement: PlacementExplanation,
    /// The time of the assignment.
    pub assigned_at: Timestamp,
    /// The digest of the image that ran.
    #[serde(default)]
    pub image_digest: Option<String>,
    /// The name of the event that ended the attempt.
    #[serde(default)]
    pub ended: Option<String>,
}

impl JobView {
    /// The attempt that counts now: the last, unless the job waits again.
    pub fn attempt(&self) -> Option<&AttemptView> {
        self.attempts.last().filter(|_| self.state != JobState::Queued)
    }

    /// The name of the job's state; `Settled` once the job is settled.
    pub fn state_name(&self) -> &'static str {
        if self.settled { "Settled" } else { self.state.name() }
    }

    /// The run time so far, by the broker's clock.
    pub fn run_time(&self, now: Timestamp) -> Millis {
        let until = self.exited_at.or(self.ended_at).unwrap_or(now);
        self.started_at.map_or(Millis(0), |started| until.since(started))
    }
}
