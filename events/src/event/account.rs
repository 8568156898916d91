//! Events of an account: what changes what it may spend. `JobSubmitted` is one of them, because
//! submitting spends: the guard on the account makes an overdraft impossible.

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

/// Money came in from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FundsDeposited {
    /// The account.
    pub account: AccountId,
    /// The deposit; the id of its command.
    pub deposit: CommandId,
    /// How much.
    pub amount: MicroUsd,
}

/// A job was submitted and its budget is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSubmitted {
    /// The consumer.
    pub account: AccountId,
    /// The job; the id of its command.
    pub job: JobId,
    /// What to run.
    pub spec: JobSpec,
    /// Where.
    pub placement: Placement,
    /// Its bounds.
    pub limits: Limits,
    /// What is held until it is settled.
    pub hold: MicroUsd,
}

/// A provider asked for earnings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayoutRequested {
    /// The account.
    pub account: AccountId,
    /// The payout; the id of its command.
    pub payout: CommandId,
    /// How much.
    pub amount: MicroUsd,
}

/// A payout left the platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayoutPaid {
    /// The account.
    pub account: AccountId,
    /// The payout.
    pub payout: CommandId,
    /// How much.
    pub amount: MicroUsd,
    /// `PayoutRequested`.
    pub requested: Seq,
}

/// A payout could not be made; the money is available again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayoutFailed {
    /// The account.
    pub account: AccountId,
    /// The payout.
    pub payout: CommandId,
    /// How much.
    pub amount: MicroUsd,
    /// `PayoutRequested`.
    pub requested: Seq,
    /// Why.
    pub reason: String,
}

/// The account may not submit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountSuspended {
    /// The account.
    pub account: AccountId,
    /// Why.
    pub reason: String,
}

/// The account may submit again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountReinstated {
    /// The account.
    pub account: AccountId,
}
