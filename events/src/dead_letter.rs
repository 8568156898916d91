//! Dead letters: job messages in DISPATCH that nobody works on, and what an operator can do about each.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{JobId, Lease, MachineId, Seq},
    time::Timestamp,
};

/// Why nobody works on a job message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Trouble {
    /// The machine has no consumer: it cannot fetch any.
    NoConsumer,
    /// The lease that it carries is over.
    LeaseOver,
    /// It waits for a machine that does not fetch it.
    NotFetched,
    /// It was given to the machine, which did not accept.
    NotAccepted,
}

impl Trouble {
    /// What is likely wrong.
    pub const fn cause(self) -> &'static str {
        match self {
            Self::NoConsumer => "the machine has no consumer in DISPATCH: it cannot fetch a job",
            Self::LeaseOver => "its lease is over: the job went elsewhere or ended while the machine was away",
            Self::NotFetched => "its time to be accepted is over; the machine has not fetched it",
            Self::NotAccepted => "its time to be accepted is over; the machine fetched it, and did not accept",
        }
    }

    /// What becomes of it, and what can be done.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::NoConsumer => "make it anew",
            Self::LeaseOver => "the machine would be refused when it asks: clear it",
            Self::NotFetched | Self::NotAccepted => {
                "the scheduler should have taken the job back: see whether gpubnb-services runs and has a leader"
            }
        }
    }

    /// What can be done with one click.
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
    /// The machine that it waits for.
    pub machine: MachineId,
    /// The machine's name.
    pub machine_name: String,
    /// Why.
    pub trouble: Trouble,
    /// The message, where there is one.
    pub message: Option<DeadMessage>,
}

/// Which message of DISPATCH that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DeadMessage {
    /// Its sequence in DISPATCH.
    pub seq: Seq,
    /// The job.
    pub job: JobId,
    /// The lease.
    pub lease: Lease,
    /// When it came there.
    pub since: Timestamp,
}

/// Does what can be done about a dead letter with one click. It has to be one still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Remedy {
    /// The machine.
    pub machine: MachineId,
    /// Its message in DISPATCH; none for a machine without a consumer.
    #[serde(default)]
    pub seq: Option<Seq>,
}

/// A remedy was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Remedied {}
