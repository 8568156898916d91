//! The bodies of commands, and their answers. Each command's doc comment begins with its subject, such as
//! `cmd.job.submit`. A header of the request names the sender, an [`crate::Actor`]. A *lease* identifies one attempt to
//! run a job on a machine.
//!
//! Belongs here: data that the sender and the services must agree on. Must not come here: the decision whether a
//! command is allowed (`services/domain`).

use std::{collections::BTreeMap, fmt};

mod attempt;

use serde::{Deserialize, Serialize};

pub use self::attempt::{
    Accept, DatasetGrant, Decline, DesiredLeaseState, DesiredMachineState, Exit, Grant, Inventory, Outcome, Report,
    SealedEnv, Start, UploadGrant,
};
pub use crate::output::AddOutput;
use crate::{
    batch::{BatchId, TaskList},
    event::Check,
    ids::{AccountId, CommandId, JobId, MachineId, Seq},
    money::{HourlyRate, MicroUsd},
    spec::{JobSpec, MachineSettings, Offer, Placement, PlacementExplanation},
    time::{Seconds, Timestamp},
};

/// A secret text. `Debug` prints dots in its place, so that no log shows the secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("•••")
    }
}

/// The answer to a command whose event is in the log. An earlier request with the same id may have written the event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Done {
    /// The sequence of the command's event. A query that waits for this sequence sees the effect of the command.
    pub seq: Seq,
}

/// `cmd.account.open`: opens the sender's account. Answer: [`Done`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenAccount {}

/// `cmd.account.deposit`: adds money to the sender's account. Answer: [`Done`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deposit {
    /// The id of the deposit.
    pub deposit: CommandId,
    /// The amount.
    pub amount: MicroUsd,
}

/// `cmd.account.fund`: an operator adds money to an account. Answer: [`Done`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FundAccount {
    /// The account that the money goes to.
    pub account: AccountId,
    /// The id of the deposit.
    pub deposit: CommandId,
    /// The amount.
    pub amount: MicroUsd,
}

/// `cmd.account.request_payout`: a provider asks for earnings to be paid out. Answer: [`Done`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestPayout {
    /// The id of the payout.
    pub payout: CommandId,
    /// The amount.
    pub amount: MicroUsd,
}

/// `cmd.account.close_payout`: an operator says how a payout ended. Answer: [`Done`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClosePayout {
    /// The account that asked for the payout.
    pub account: AccountId,
    /// The id of the payout.
    pub payout: CommandId,
    /// The reason why the payout failed; `None` if the payout was paid.
    pub failed: Option<String>,
}

/// `cmd.account.suspend` and `cmd.account.reinstate`: an operator suspends an account, or ends its suspension. Answer:
/// [`Done`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetSuspension {
    /// The account to suspend or to reinstate.
    pub account: AccountId,
    /// The reason of the suspension; `None` reinstates the account.
    pub reason: Option<String>,
}

/// `cmd.account.close`: the owner closes the account for ever. Answer: [`Done`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloseAccount {
    /// The money that the owner gives up: all that is available.
    pub given_up: MicroUsd,
}

/// `cmd.account.set_secret`: stores a named secret of the sender's account, in place of an earlier value. Answer:
/// [`StoredSecret`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetSecret {
    /// The name: that of the environment variable with which a job gets the value.
    pub name: String,
    /// The value, from 1 byte to 16 KiB.
    pub value: Secret,
}

/// `cmd.account.delete_secret`: deletes a named secret of the sender's account. Answer: null.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteSecret {
    /// The name.
    pub name: String,
}

/// `cmd.account.secrets`: the sender's named secrets. Answer: a list of [`StoredSecret`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListSecrets {}

/// A named secret, without its value, which nobody can read again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct StoredSecret {
    /// The name.
    pub name: String,
    /// When the value was stored.
    pub changed_at: Timestamp,
    /// When a job last got the value; `None` if none did since the value was stored.
    pub used_at: Option<Timestamp>,
}

/// `cmd.job.submit`. Answer: [`Submitted`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubmitJob {
    /// The id of the job. A second command with the same id returns the answer of the first.
    pub job: JobId,
    /// The image, the arguments and the resources of the job.
    pub spec: JobSpec,
    /// The machines on which the job may run, and the way to choose among them.
    pub placement: Placement,
    /// The longest time that a run may take, by the wall clock.
    pub time: Seconds,
    /// The highest cost of the job. `None`: the cost of the whole time limit at the placement's price cap; without a
    /// cap, at the price of the most expensive machine that fits now.
    pub budget: Option<MicroUsd>,
    /// The number of times that the job may start; `None`: three.
    pub max_attempts: Option<u32>,
    /// The longest time that the job waits for a machine; `None`: a day.
    pub queue: Option<Seconds>,
    /// The values of the job's environment. They never enter an event: the specification contains only the names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, Secret>,
}

/// Answer of `cmd.job.submit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Submitted {
    /// The job.
    pub job: JobId,
    /// The sequence of `JobSubmitted`.
    pub seq: Seq,
}

/// Answer of `cmd.market.quote`: the machine and the price for a job that is submitted now. A quote writes no event.
/// The command's body is a [`SubmitJob`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Quote {
    /// The machine on which the job would run now; `None` if the job would wait.
    pub machine: Option<MachineId>,
    /// The name of that machine.
    pub machine_name: Option<String>,
    /// Price per hour of that machine.
    pub price: Option<HourlyRate>,
    /// The cost on that machine if the job uses its full time, at most the hold.
    #[serde(default)]
    pub expected: Option<MicroUsd>,
    /// The amount that the market would hold: the budget of the command, or the highest cost of the job.
    pub hold: MicroUsd,
    /// The highest price that the hold pays for the full time. The job does not run on a machine with a higher price.
    /// `None` if the command sets a budget.
    #[serde(default)]
    pub max_price: Option<HourlyRate>,
    /// The money that the account can spend now.
    pub available: MicroUsd,
    /// The latest time at which the job starts. If a suitable machine is free, this is the present time. Otherwise a
    /// running job ends at this time by its time limit, and its machine becomes free. `None` if no machine is
    /// suitable, or if the jobs on every suitable machine are still being prepared: their time limits do not run yet.
    #[serde(default)]
    pub start: Option<Timestamp>,
    /// Number of jobs that already wait for a machine.
    #[serde(default)]
    pub waiting: u32,
    /// The reason why this machine is chosen, or why the job would wait.
    pub placement: PlacementExplanation,
}

/// `cmd.batch.submit`: submits a batch. Answer: [`SubmittedBatch`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubmitBatch {
    /// The id of the batch. A second command with the same id returns the answer of the first.
    pub batch: BatchId,
    /// The program of each task, with placeholders in the command, and its limits. The job's id has the bytes of the
    /// batch's id. The budget is that of one task.
    pub job: SubmitJob,
    /// The tasks.
    pub tasks: TaskList,
    /// The most tasks that machines have at the same time; `None`: 100.
    pub max_running: Option<u32>,
    /// The number of failed tasks after which no other task starts; `None`: a tenth of the tasks, and at least ten.
    pub max_failures: Option<u32>,
}

/// Answer of `cmd.batch.submit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SubmittedBatch {
    /// The batch.
    pub batch: BatchId,
    /// The sequence of `BatchSubmitted`.
    pub seq: Seq,
}

/// Answer of `cmd.batch.quote`, whose body is a [`SubmitBatch`]: the price of a batch that is submitted now. A quote
/// writes no event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BatchQuote {
    /// The quote of one task.
    pub task: Quote,
    /// The number of tasks.
    pub tasks: u32,
    /// The cost of all tasks if each uses its full time, at most the hold.
    pub expected: Option<MicroUsd>,
    /// The amount that the market would hold for all tasks.
    pub hold: MicroUsd,
    /// The most tasks that machines have at the same time.
    pub max_running: u32,
    /// The number of failed tasks after which no other task starts.
    pub max_failures: u32,
}

/// `cmd.batch.cancel`: cancels the tasks of a batch that have not ended. Answer: [`Done`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelBatch {
    /// The batch.
    pub batch: BatchId,
}

/// `cmd.job.cancel`. Answer: [`Done`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelJob {
    /// The job.
    pub job: JobId,
}

/// `cmd.job.explain`: asks why a job waits for a machine. Answer: an explanation, or `null` if the job does not wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainJob {
    /// The job.
    pub job: JobId,
}

/// A change of a machine. The machine's owner or the machine itself asks for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MachineChange {
    /// Take no new jobs.
    Pause,
    /// Take new jobs again.
    Resume,
    /// Sent by the machine itself: its owner is using the machine, so it takes no new jobs.
    Away,
    /// Sent by the machine itself: its owner no longer uses the machine. If the owner also paused the machine, it stays
    /// paused.
    Back,
    /// Finish the running jobs, and take no new ones.
    Drain,
    /// Like `Drain`. Afterwards the owner works on the machine, and missing heartbeats raise no alarm.
    Maintain,
    /// Leave the market.
    Delist,
    /// Offer the machine at another price.
    Reprice(HourlyRate),
    /// Change the settings of the machine, which takes them when it next asks the market.
    Configure(MachineSettings),
}

/// `cmd.market.machine` (sent by the machine's owner) and `cmd.machine.<id>.wish` (sent by the machine itself). Answer:
/// [`Done`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeMachine {
    /// The machine.
    pub machine: MachineId,
    /// The change that the sender wants.
    #[serde(rename = "wish")]
    pub change: MachineChange,
}

/// `cmd.machine.<id>.list`: the machine offers itself on the market. Answer: [`Listed`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListMachine {
    /// The hardware, the price and the terms of the machine.
    pub offer: Offer,
}

/// `cmd.machine.<id>.queue`: the broker has lost the machine's queue of jobs (its consumer), and the machine asks for
/// a new one. Unlike `list`, the command offers nothing: a machine that left the market gets no queue. Answer:
/// [`Listed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreQueue {}

/// Answer of `cmd.machine.<id>.list` and of `cmd.machine.<id>.queue`: the machine is listed, and the broker keeps a
/// queue of jobs for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// The sequence of `MachineListed`. In the answer to `queue`: the sequence of the machine's last event.
    pub seq: Seq,
    /// The broker's stream that the machine's jobs come from.
    pub stream: String,
    /// The broker's consumer on that stream that the machine pulls from.
    pub consumer: String,
}

/// `cmd.machine.<id>.tested`: a machine reports its self-test. Answer: [`Done`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordTest {
    /// The result of every check.
    pub checks: Vec<Check>,
}

/// `query.machine.<id>.days`: the earnings of the machine on each of the last days with a settlement, newest first. The
/// query has no body. Answer: a list of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DayEarnings {
    /// The day (UTC), as the number of days since 1970-01-01.
    pub day: u32,
    /// The money that the machine earned.
    pub earned: MicroUsd,
    /// The number of settled jobs.
    pub jobs: u32,
}

/// `cmd.enrollment.create`: an owner wants to add a machine. Answer: [`EnrollmentCode`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateEnrollment {}

/// A code with which one machine can enroll. The code works only once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EnrollmentCode {
    /// The code that the owner types on the machine.
    pub code: String,
    /// When the code expires.
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
    /// The id of the machine, which the machine made itself.
    pub machine: MachineId,
    /// The machine's public `NKey` (an Ed25519 key in the form of NATS), which begins with `U`. The private part, the
    /// seed, never leaves the machine.
    pub public_key: String,
    /// The machine's public x25519 key, which begins with `X`. The secrets of jobs are sealed for this key.
    pub sealing_key: String,
    /// The signature of the `NKey` over [`Self::signed_text`], base64url.
    pub signature: String,
}

impl fmt::Debug for RedeemEnrollment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedeemEnrollment({})", self.machine)
    }
}

impl RedeemEnrollment {
    /// The text that the machine signs. The signature proves that the machine has the seed.
    pub fn signed_text(&self) -> String {
        format!("enroll.{}.{}.{}", self.machine, self.sealing_key, self.code)
    }
}

/// `cmd.enrollment.challenge`: a machine wants its credential renewed. Answer: [`Challenge`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestChallenge {
    /// The machine.
    pub machine: MachineId,
}

/// A challenge, which a machine signs to prove that it still has its seed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Challenge {
    /// The random text of the challenge.
    pub nonce: String,
    /// When the challenge expires.
    pub expires: Timestamp,
}

/// `cmd.enrollment.renew`: a machine answers a challenge, and gets a new credential. Answer: [`MachineCredential`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewCredential {
    /// The machine.
    pub machine: MachineId,
    /// The challenge's text.
    pub nonce: String,
    /// The signature of the machine's `NKey` over [`Self::signed_text`], base64url.
    pub signature: String,
}

impl RenewCredential {
    /// The text that the machine signs. The machine also signs challenges of the broker with the same key. The prefix
    /// `renew.` keeps both kinds of signature apart, so that a signature for the broker cannot renew a credential.
    pub fn signed_text(&self) -> String {
        format!("renew.{}.{}", self.machine, self.nonce)
    }
}

/// A machine's credential for the broker. The credential is useless without the machine's seed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MachineCredential {
    /// The machine.
    pub machine: MachineId,
    /// The account that owns the machine.
    pub owner: AccountId,
    /// The token that the machine shows to the broker.
    pub jwt: String,
    /// When the token expires.
    pub expires: Timestamp,
}

impl fmt::Debug for MachineCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MachineCredential({}, until {})", self.machine, self.expires)
    }
}

/// `cmd.enrollment.revoke`: a machine's owner, or an operator, makes the machine's credential invalid at once. Answer:
/// [`Revoked`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokeMachine {
    /// The machine.
    pub machine: MachineId,
}

/// Answer of `cmd.enrollment.revoke`: the machine's credential is revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {}
