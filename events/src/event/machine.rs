//! Events of a machine: its offer, its owner's wishes, its presence.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{AccountId, MachineId},
    money::HourlyRate,
    record::Speed,
    spec::Offer,
};

/// A machine was offered, or offered anew with changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineListed {
    /// The machine.
    pub machine: MachineId,
    /// Who owns it and earns.
    pub owner: AccountId,
    /// The machine's public key, where it has enrolled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// What is offered.
    pub offer: Offer,
}

/// Its price changed, for jobs assigned from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRepriced {
    /// The machine.
    pub machine: MachineId,
    /// The new price.
    pub price: HourlyRate,
}

/// It takes no new jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachinePaused {
    /// The machine.
    pub machine: MachineId,
    /// Whether the machine did so itself, because it is its owner's turn; else it is the owner's own word.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub away: bool,
}

/// It works again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineResumed {
    /// The machine.
    pub machine: MachineId,
    /// Whether it is spare again; else the owner's own pause ends.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub away: bool,
}

/// It finishes what it runs and takes nothing new.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineDrainStarted {
    /// The machine.
    pub machine: MachineId,
    /// Whether its owner works on it then: its silence is announced.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub maintenance: bool,
}

macro_rules! bare {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        pub struct $name {
            /// The machine.
            pub machine: MachineId,
        }
    )+};
}

bare! {
    /// It left the market.
    MachineDelisted,
    /// It missed heartbeats: new work is withheld.
    MachineSuspected,
    /// It was silent past the grace: what it ran is requeued.
    MachineLost,
    /// It was heard again.
    MachineRecovered,
}

/// A self-test was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineTested {
    /// The machine.
    pub machine: MachineId,
    /// A record per check.
    pub checks: Vec<Check>,
    /// How fast it was found to be: what placement goes by.
    pub speed: Speed,
}

/// One check of a self-test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Check {
    /// Its id, such as `disk.write`.
    pub id: String,
    /// What was measured.
    pub actual: String,
    /// What is required; empty where the check only informs.
    pub required: String,
    /// Unit of both.
    pub unit: String,
    /// Whether it passed.
    pub passed: bool,
    /// What to do where it did not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}
