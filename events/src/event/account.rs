//! Events of an account. `JobSubmitted` belongs to the account, and not to the job, because a submission holds money of
//! the account. The log appends events of one account one after the other, so two submissions cannot hold the same
//! money.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{AccountId, CommandId, JobId, Seq},
    money::MicroUsd,
    spec::{JobSpec, Limits, Placement},
};

/// An account was opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountOpened {
    /// The account.
    pub account: AccountId,
}

/// Money came in from outside the platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FundsDeposited {
    /// The account.
    pub account: AccountId,
    /// The deposit. Its id is the id of the command.
    pub deposit: CommandId,
    /// The amount.
    pub amount: MicroUsd,
}

/// A job was submitted, and its budget is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSubmitted {
    /// The consumer.
    pub account: AccountId,
    /// The job. Its id is the id of the command.
    pub job: JobId,
    /// The specification: what to run.
    pub spec: JobSpec,
    /// The rule by which a machine is chosen.
    pub placement: Placement,
    /// The limits.
    pub limits: Limits,
    /// The money that is held until the job is settled.
    pub hold: MicroUsd,
}

/// A payout was requested.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayoutRequested {
    /// The account.
    pub account: AccountId,
    /// The payout. Its id is the id of the command.
    pub payout: CommandId,
    /// The amount.
    pub amount: MicroUsd,
}

/// A payout left the platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayoutPaid {
    /// The account.
    pub account: AccountId,
    /// The payout.
    pub payout: CommandId,
    /// The amount.
    pub amount: MicroUsd,
    /// The sequence of `PayoutRequested`.
    pub requested: Seq,
}

/// A payout could not be made; the money is available again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayoutFailed {
    /// The account.
    pub account: AccountId,
    /// The payout.
    pub payout: CommandId,
    /// The amount.
    pub amount: MicroUsd,
    /// The sequence of `PayoutRequested`.
    pub requested: Seq,
    /// The reason.
    pub reason: String,
}

/// The hold of a submission that made no job is available again: another account had submitted a job with the same id
/// in the same moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldReleased {
    /// The account.
    pub account: AccountId,
    /// The id that both accounts chose. The job with this id belongs to the other account.
    pub job: JobId,
    /// The sequence of this account's `JobSubmitted`.
    pub submission: Seq,
    /// The hold, micro-dollars.
    pub amount: MicroUsd,
}

/// The account was suspended: it may not submit jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountSuspended {
    /// The account.
    pub account: AccountId,
    /// The reason.
    pub reason: String,
}

/// The suspension of the account ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountReinstated {
    /// The account.
    pub account: AccountId,
}

/// The owner closed the account for ever: the account can do nothing any more. What the market knew of the person
/// beside the log was destroyed (docs/adr/0034).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountClosed {
    /// The account.
    pub account: AccountId,
    /// The money that was still available. The owner gave the money up; the fees of the market get the money.
    pub given_up: MicroUsd,
}
