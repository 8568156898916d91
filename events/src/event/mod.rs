//! The events of the log, which is the broker's stream MARKET. An event records a decision, and has a frozen name on
//! the wire, such as `JobAssigned.v2`.
//!
//! Events are kept for ever, and every later program must read them. A name or a field therefore changes only in a new
//! version of the event (CONTRIBUTING.md, "Add an event"). Each version has a fixture in `fixtures/`.

mod account;
mod batch;
mod job;
mod machine;
mod upcast;

use std::fmt;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use self::{account::*, batch::*, job::*, machine::*};
use crate::{
    batch::BatchId,
    ids::{AccountId, JobId, MachineId},
};

/// The account, machine, job or batch that an event belongs to. A decision about an aggregate is appended only if the
/// aggregate has got no other event in the meantime. This check is the *guard* of the append.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Aggregate {
    /// An account.
    Account(AccountId),
    /// A machine.
    Machine(MachineId),
    /// A job.
    Job(JobId),
    /// A batch.
    Batch(BatchId),
}

impl fmt::Display for Aggregate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Account(id) => write!(f, "account {id}"),
            Self::Machine(id) => write!(f, "machine {id}"),
            Self::Job(id) => write!(f, "job {id}"),
            Self::Batch(id) => write!(f, "batch {id}"),
        }
    }
}

/// The reason why a message is not an event.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// There is no event with this wire name.
    #[error("unknown event type `{0}`")]
    UnknownType(String),
    /// The payload does not fit the type that the message names.
    #[error("the payload is not a {wire_name}")]
    Payload {
        /// The type that the message names.
        wire_name: String,
        /// The cause.
        source: serde_json::Error,
    },
}

macro_rules! events {
    ($($name:ident = $wire:literal ($kind:ident . $field:ident)),+ $(,)?) => {
        /// Any event of MARKET.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize)]
        #[serde(untagged)]
        pub enum Event {
            $(#[allow(missing_docs)] $name($name)),+
        }

        impl Event {
            /// The wire names that are written today. [`Self::decode`] also reads older ones.
            pub const WIRE_NAMES: &'static [&'static str] = &[$($wire),+];

            /// The name on the wire, with its version.
            pub fn wire_name(&self) -> &'static str {
                match self { $(Self::$name(_) => $wire),+ }
            }

            /// The name without its version.
            pub fn name(&self) -> &'static str {
                match self { $(Self::$name(_) => stringify!($name)),+ }
            }

            /// The aggregate that the event belongs to.
            pub fn aggregate(&self) -> Aggregate {
                match self { $(Self::$name(e) => Aggregate::$kind(e.$field)),+ }
            }

            /// Decodes an event of any version, old or new.
            pub fn decode(wire_name: &str, payload: &[u8]) -> Result<Self, DecodeError> {
                match wire_name {
                    $($wire => read(wire_name, payload).map(Self::$name),)+
                    older => decode_older(older, payload),
                }
            }
        }

        $(impl From<$name> for Event {
            fn from(event: $name) -> Self {
                Self::$name(event)
            }
        })+
    };
}

events! {
    AccountOpened = "AccountOpened.v1" (Account.account),
    FundsDeposited = "FundsDeposited.v1" (Account.account),
    JobSubmitted = "JobSubmitted.v1" (Account.account),
    PayoutRequested = "PayoutRequested.v1" (Account.account),
    PayoutPaid = "PayoutPaid.v1" (Account.account),
    PayoutFailed = "PayoutFailed.v1" (Account.account),
    HoldReleased = "HoldReleased.v1" (Account.account),
    AccountSuspended = "AccountSuspended.v1" (Account.account),
    AccountReinstated = "AccountReinstated.v1" (Account.account),
    AccountClosed = "AccountClosed.v1" (Account.account),
    BatchSubmitted = "BatchSubmitted.v1" (Account.account),
    TasksOpened = "TasksOpened.v1" (Batch.batch),
    BatchClosed = "BatchClosed.v1" (Batch.batch),
    MachineListed = "MachineListed.v1" (Machine.machine),
    MachineRepriced = "MachineRepriced.v1" (Machine.machine),
    MachineSettingsRequested = "MachineSettingsRequested.v1" (Machine.machine),
    MachinePaused = "MachinePaused.v1" (Machine.machine),
    MachineResumed = "MachineResumed.v1" (Machine.machine),
    MachineDrainStarted = "MachineDrainStarted.v1" (Machine.machine),
    MachineDelisted = "MachineDelisted.v1" (Machine.machine),
    MachineTested = "MachineTested.v2" (Machine.machine),
    MachineSuspected = "MachineSuspected.v1" (Machine.machine),
    MachineLost = "MachineLost.v1" (Machine.machine),
    MachineRecovered = "MachineRecovered.v1" (Machine.machine),
    JobAssigned = "JobAssigned.v2" (Job.job),
    Declined = "Declined.v1" (Job.job),
    Accepted = "Accepted.v1" (Job.job),
    Started = "Started.v1" (Job.job),
    Exited = "Exited.v1" (Job.job),
    Requeued = "Requeued.v1" (Job.job),
    CancelRequested = "CancelRequested.v1" (Job.job),
    Completed = "Completed.v1" (Job.job),
    Failed = "Failed.v1" (Job.job),
    Cancelled = "Cancelled.v1" (Job.job),
    Settled = "Settled.v1" (Job.job),
}

/// Decodes an event of an old version, which this program reads and no longer writes.
fn decode_older(wire_name: &str, payload: &[u8]) -> Result<Event, DecodeError> {
    match wire_name {
        "MachineTested.v1" => {
            read::<upcast::MachineTestedV1>(wire_name, payload).map(|old| MachineTested::from(old).into())
        }
        // The present type can read version 1: the sentence that explains the choice is read as `spec::Chosen::Words`.
        "JobAssigned.v1" => read::<JobAssigned>(wire_name, payload).map(Into::into),
        unknown => Err(DecodeError::UnknownType(unknown.chars().take(64).collect())),
    }
}

fn read<T: DeserializeOwned>(wire_name: &str, payload: &[u8]) -> Result<T, DecodeError> {
    serde_json::from_slice(payload).map_err(|source| DecodeError::Payload { wire_name: wire_name.to_owned(), source })
}

impl Event {
    /// The job that the event is about, even if the event belongs to an account.
    pub fn job(&self) -> Option<JobId> {
        match (self, self.aggregate()) {
            (Self::JobSubmitted(e), _) => Some(e.job),
            (_, Aggregate::Job(job)) => Some(job),
            _ => None,
        }
    }
}
