//! The bodies of commands and of their answers. What a command may do is decided in `services`.

use serde::{Deserialize, Serialize};

use crate::{
    event::{Check, DeclineReason, Reason},
    ids::{AccountId, CommandId, JobId, Lease, MachineId, Seq},
    money::{HourlyRate, MicroUsd},
    spec::{Artifact, JobSpec, Offer, Placement, PlacementExplanation, Usage},
    time::{Millis, Seconds, Timestamp},
};

/// A command was done, now or before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The sequence of its event: what to wait for before reading.
    pub seq: Seq,
}

/// `cmd.account.open`: opens the actor's account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenAccount {}

/// `cmd.account.deposit`: money comes in. Answer: [`Done`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deposit {
    /// The deposit.
    pub deposit: CommandId,
    /// How much.
    pub amount: MicroUsd,
}

/// `cmd.account.request_payout`: earnings are asked for. Answer: [`Done`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestPayout {
    /// The payout.
    pub payout: CommandId,
    /// How much.
    pub amount: MicroUsd,
}

/// `cmd.account.close_payout`: an operator says how a payout ended. Answer: [`Done`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClosePayout {
    /// Whose.
    pub account: AccountId,
    /// The payout.
    pub payout: CommandId,
    /// Why it failed; `None` if it was paid.
    pub failed: Option<String>,
}

/// `cmd.account.suspend` and `cmd.account.reinstate`: an operator's. Answer: [`Done`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetSuspension {
    /// Whose.
    pub account: AccountId,
    /// Why; `None` reinstates.
    pub reason: Option<String>,
}

/// `cmd.job.submit`. Answer: [`Submitted`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubmitJob {
    /// The job. Saying it again returns the first answer.
    pub job: JobId,
    /// What to run.
    pub spec: JobSpec,
    /// Where.
    pub placement: Placement,
    /// Wall-clock time a run may take.
    pub time: Seconds,
    /// Most it may cost; `None`: the most it can cost where it can run now.
    pub budget: Option<MicroUsd>,
    /// How often it may start; `None`: 3.
    pub max_attempts: Option<u32>,
    /// How long it may wait for a machine; `None`: a day.
    pub queue: Option<Seconds>,
}

/// Answer of `cmd.job.submit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submitted {
    /// The job.
    pub job: JobId,
    /// `JobSubmitted`.
    pub seq: Seq,
}

/// `cmd.market.quote`: what a submission would mean; nothing is written. Body: [`SubmitJob`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quote {
    /// Where it would run now; `None`: it would wait.
    pub machine: Option<MachineId>,
    /// Its name.
    pub machine_name: Option<String>,
    /// Price per hour there.
    pub price: Option<HourlyRate>,
    /// Most it can cost, and what is held.
    pub hold: MicroUsd,
    /// What the account may spend now.
    pub available: MicroUsd,
    /// Why there, or why it would wait.
    pub placement: PlacementExplanation,
}

/// `cmd.job.cancel`. Answer: [`Done`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelJob {
    /// The job.
    pub job: JobId,
}

/// What an owner wants of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MachineWish {
    /// Take no new jobs.
    Pause,
    /// Work again.
    Resume,
    /// Finish what runs, take nothing new.
    Drain,
    /// Leave the market.
    Delist,
    /// Another price.
    Reprice(HourlyRate),
}

/// `cmd.market.machine` (its owner) and `cmd.machine.<id>.wish` (the machine itself). Answer: [`Done`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeMachine {
    /// The machine.
    pub machine: MachineId,
    /// What is wanted.
    pub wish: MachineWish,
}

/// `cmd.machine.<id>.list`: the machine is offered. Answer: [`Listed`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListMachine {
    /// Who owns it.
    pub owner: AccountId,
    /// What is offered.
    pub offer: Offer,
}

/// Answer of `cmd.machine.<id>.list`: the machine's consumer is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// The sequence of `MachineListed`.
    pub seq: Seq,
    /// Stream to pull from.
    pub stream: String,
    /// Consumer to pull from.
    pub consumer: String,
}

/// `cmd.machine.<id>.tested`. Answer: [`Done`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordTest {
    /// A record per check.
    pub checks: Vec<Check>,
}

/// `cmd.machine.<id>.accept`. Answer: [`Grant`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accept {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub lease: Lease,
}

/// All that a worker needs for one attempt. Asking again returns the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// What to run.
    pub spec: JobSpec,
    /// Its time limit.
    pub time: Millis,
    /// How long its budget lasts; `None`: for ever.
    pub budget: Option<Millis>,
    /// Whether `Started` is already in the log.
    pub started: bool,
    /// Where to put the files it leaves; `None` where the market keeps none.
    pub upload: Option<UploadGrant>,
}

/// Permission to put the files of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadGrant {
    /// `PUT <url>/<path>`.
    pub url: String,
    /// Bearer token, bound to the attempt.
    pub token: String,
    /// Until when.
    pub expires: Timestamp,
}

/// `cmd.machine.<id>.decline`. Answer: [`Done`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decline {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub lease: Lease,
    /// Why.
    pub reason: DeclineReason,
}

/// `cmd.machine.<id>.start`: before the container starts. Answer: [`Done`]; a refusal means: remove it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub lease: Lease,
    /// Digest of the image.
    pub image_digest: String,
}

/// `cmd.machine.<id>.report`: how an attempt ended. Answer: [`Done`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub lease: Lease,
    /// How.
    pub outcome: Outcome,
    /// The files it left.
    #[serde(default)]
    pub outputs: Vec<Artifact>,
    /// What it used, if it ran.
    pub usage: Option<Usage>,
    /// When, by the worker's clock.
    pub occurred_at: Timestamp,
}

/// How an attempt ended, in the worker's eyes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Exit code 0.
    Completed,
    /// It failed.
    Failed {
        /// Why.
        reason: Reason,
        /// More of it, for people.
        #[serde(default)]
        detail: String,
    },
    /// It was stopped because cancelling was asked for.
    Cancelled,
}

/// `cmd.machine.<id>.sync`: what the worker has in hand. Answer: [`Desired`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Its attempts.
    pub leases: Vec<Accept>,
}

/// What the platform wants of each attempt, in the order of the inventory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    /// One wish per attempt.
    pub leases: Vec<(Lease, LeaseWish)>,
    /// Whether the owner paused the machine or lets it drain.
    pub takes_jobs: bool,
}

/// What the platform wants of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseWish {
    /// Go on.
    Keep,
    /// Stop: the consumer cancelled. Report the ending.
    Cancel,
    /// Stop and forget: the attempt is over, whatever it still does counts for nothing.
    Abandon,
}
