//! Dead letters: job messages in DISPATCH that nobody works on, and the remedy for each.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{JobId, Lease, MachineId, Seq},
    time::Timestamp,
};

/// The reason why nobody works on a job message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Trouble {
    /// The machine has no consumer, and cannot fetch job messages.
    NoConsumer,
    /// The lease in the message is over.
    LeaseOver,
    /// The machine does not fetch the message.
    NotFetched,
    /// The machine fetched the message, but did not accept the job.
    NotAccepted,
}

impl Trouble {
    /// The likely cause, in words.
    pub const fn cause(self) -> &'static str {
        match self {
            Self::NoConsumer => "the machine has no consumer in DISPATCH: it cannot fetch a job",
            Self::LeaseOver => "its lease is over: the job went elsewhere or ended while the machine was away",
            Self::NotFetched => "its time to be accepted is over; the machine has not fetched it",
            Self::NotAccepted => "its time to be accepted is over; the machine fetched it, and did not accept",
        }
    }

    /// The remedy, in words.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::NoConsumer => "make it anew",
            Self::LeaseOver => "the machine would be refused when it asks: clear it",
            Self::NotFetched | Self::NotAccepted => {
                "the scheduler should have taken the job back: see whether gpubnb-services runs and has a leader"
            }
        }
    }

    /// The label of the button that applies the remedy; `None` where no button can.
    pub const fn action(self) -> Option<&'static str> {
        match self {
            Self::NoConsumer => Some("Make its consumer"),
            Self::LeaseOver => Some("Clear"),
            Self::NotFetched | Self::NotAccepted => None,
        }
    }
}

/// A job message that nobody works on, or a machine that can fetch none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DeadLetter {
    /// The machine that the message is for.
    pub machine: MachineId,
    /// The machine's name.
    pub machine_name: String,
    /// The reason.
    pub trouble: Trouble,
    /// The message; `None` for a machine without a consumer.
    pub message: Option<DeadMessage>,
}

/// A message of DISPATCH.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DeadMessage {
    /// The sequence in DISPATCH.
    pub seq: Seq,
    /// The job.
    pub job: JobId,
    /// The lease.
    pub lease: Lease,
    /// When the message came into DISPATCH.
    pub since: Timestamp,
}

/// Applies the remedy to a dead letter, if it still is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Remedy {
    /// The machine.
    pub machine: MachineId,
    /// The sequence of the message in DISPATCH; `None` for a machine without a consumer.
    #[serde(default)]
    pub seq: Option<Seq>,
}

/// The remedy was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Remedied {}
