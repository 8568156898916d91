//! The bodies of commands and of their answers. What a command may do is decided in `services`.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::{
    event::{Check, DeclineReason, Reason},
    ids::{AccountId, CommandId, JobId, Lease, MachineId, Seq},
    money::{HourlyRate, MicroUsd},
    spec::{Artifact, JobSpec, Offer, Placement, PlacementExplanation, Usage},
    time::{Millis, Seconds, Timestamp},
};

/// A text that is shown to nobody: debugging prints dots.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("•••")
    }
}

/// A command was done, now or before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
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

/// `cmd.account.fund`: money has come in for an account, says an operator. Answer: [`Done`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FundAccount {
    /// Whose.
    pub account: AccountId,
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
    /// The values of its environment. They never enter an event: the specification has their names only.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, Secret>,
}

/// Answer of `cmd.job.submit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Submitted {
    /// The job.
    pub job: JobId,
    /// `JobSubmitted`.
    pub seq: Seq,
}

/// `cmd.market.quote`: what a submission would mean; nothing is written. Body: [`SubmitJob`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
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
    /// When it can start: now where a machine is free; else when the first that fits comes free at the latest, by the
    /// time limits of what runs there; `None` where no machine fits, or nobody can say.
    #[serde(default)]
    pub start: Option<Timestamp>,
    /// Jobs that wait for a machine already.
    #[serde(default)]
    pub waiting: u32,
    /// Why there, or why it would wait.
    pub placement: PlacementExplanation,
}

/// `cmd.job.cancel`. Answer: [`Done`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelJob {
    /// The job.
    pub job: JobId,
}

/// A change of a machine that its owner, or the machine itself, asks for. The API document names it `MachineChange`, as it
/// always has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = MachineChange)]
pub enum MachineChange {
    /// Take no new jobs.
    Pause,
    /// Work again.
    Resume,
    /// The machine's own word: it is its owner's turn. Takes no new jobs.
    Away,
    /// The machine's own word: it is spare again. The owner's pause goes on.
    Back,
    /// Finish what runs, take nothing new.
    Drain,
    /// Finish what runs; then it is worked on, and may be silent.
    Maintain,
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
    pub wish: MachineChange,
}

/// `cmd.machine.<id>.list`: the machine is offered. Answer: [`Listed`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListMachine {
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
    /// Where to get each file it is given, in the order of the specification.
    #[serde(default)]
    pub inputs: Vec<String>,
    /// The values of its environment, sealed for this machine; `None` where it has none.
    #[serde(default)]
    pub env: Option<SealedEnv>,
}

/// Values that only one machine can read: a JSON object of names and values, in a `crypto_box`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedEnv {
    /// The market's x25519 public key.
    pub from: String,
    /// The box, in hex.
    pub sealed: String,
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
    /// The machine's signature over the manifest ([`crate::manifest::signed_text`]), base64url.
    #[serde(default)]
    pub signature: Option<String>,
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
    /// One desired state per attempt.
    pub leases: Vec<(Lease, DesiredLease)>,
    /// Whether the owner paused the machine or lets it drain.
    pub takes_jobs: bool,
}

/// The state in which the platform wants an attempt to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DesiredLease {
    /// Go on.
    Keep,
    /// Stop: the consumer cancelled. Report the ending.
    Cancel,
    /// Stop and forget: the attempt is over, whatever it still does counts for nothing.
    Abandon,
}

/// `cmd.enrollment.create`: an owner wants to add a machine. Answer: [`EnrollmentCode`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateEnrollment {}

/// A one-time code.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EnrollmentCode {
    /// What to type on the machine.
    pub code: String,
    /// Until when.
    pub expires: Timestamp,
}

impl fmt::Debug for EnrollmentCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EnrollmentCode(until {})", self.expires)
    }
}

/// `cmd.enrollment.redeem`: a machine trades a code for a credential. Answer: [`MachineCredential`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RedeemEnrollment {
    /// The code.
    pub code: String,
    /// The machine; it made its own id.
    pub machine: MachineId,
    /// Its `NKey`, `U…`. The seed never leaves the machine.
    pub public_key: String,
    /// Its x25519 key, `X…`, which secrets of jobs are sealed for.
    pub sealing_key: String,
    /// [`Self::signed_text`], signed with the `NKey`; base64url.
    pub signature: String,
}

impl fmt::Debug for RedeemEnrollment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedeemEnrollment({})", self.machine)
    }
}

impl RedeemEnrollment {
    /// What the machine signs.
    pub fn signed_text(&self) -> String {
        format!("enroll.{}.{}.{}", self.machine, self.sealing_key, self.code)
    }
}

/// `cmd.enrollment.challenge`: a machine wants its credential renewed. Answer: [`Challenge`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskChallenge {
    /// The machine.
    pub machine: MachineId,
}

/// What a machine has to sign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Challenge {
    /// The text.
    pub nonce: String,
    /// Until when.
    pub expires: Timestamp,
}

/// `cmd.enrollment.renew`. Answer: [`MachineCredential`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewCredential {
    /// The machine.
    pub machine: MachineId,
    /// The challenge's text.
    pub nonce: String,
    /// [`Self::signed_text`], signed with the machine's `NKey`; base64url.
    pub signature: String,
}

impl RenewCredential {
    /// What the machine signs. The same key answers the broker: the words before the nonce tell the two apart, so that
    /// nobody can pass the broker's question off as the market's.
    pub fn signed_text(&self) -> String {
        format!("renew.{}.{}", self.machine, self.nonce)
    }
}

/// A machine's credential for the broker. It is of use to nobody without the machine's seed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MachineCredential {
    /// The machine.
    pub machine: MachineId,
    /// Who owns it.
    pub owner: AccountId,
    /// The token.
    pub jwt: String,
    /// Until when.
    pub expires: Timestamp,
}

impl fmt::Debug for MachineCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MachineCredential({}, until {})", self.machine, self.expires)
    }
}

/// `cmd.enrollment.revoke`: a machine's owner, or an operator, takes its right to speak away at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokeMachine {
    /// The machine.
    pub machine: MachineId,
}

/// It is so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {}
