//! Dead letters: job messages that no machine works on, machines that cannot fetch job messages, and the remedy for
//! each. Job messages are in the broker's stream DISPATCH; each machine fetches its messages through a consumer of its
//! own.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{JobId, Lease, MachineId, Seq},
    time::Timestamp,
};

/// The reason why no machine works on a job message, or why a machine cannot fetch one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeadLetterReason {
    /// The machine has no consumer, and cannot fetch job messages.
    NoConsumer,
    /// The machine no longer holds the lease in the message: the job has ended, or was taken back.
    LeaseOver,
    /// The machine does not fetch the message.
    NotFetched,
    /// The machine fetched the message, but did not accept the job.
    NotAccepted,
}

impl DeadLetterReason {
    /// The likely cause, for people.
    pub const fn cause(self) -> &'static str {
        match self {
            Self::NoConsumer => "the machine has no consumer in DISPATCH: it cannot fetch a job",
            Self::LeaseOver => {
                "the lease in the message is over: the job ended or was taken back while the machine was away"
            }
            Self::NotFetched => "the time to accept the job is over; the machine has not fetched the message",
            Self::NotAccepted => {
                "the time to accept the job is over; the machine fetched the message, and did not accept"
            }
        }
    }

    /// The remedy, for people.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::NoConsumer => "create the consumer again",
            Self::LeaseOver => "clear the message: the market would refuse the machine if it accepted the job",
            Self::NotFetched | Self::NotAccepted => {
                "the scheduler should have taken the job back: see whether gpubnb-services runs and has a leader"
            }
        }
    }

    /// The label of the button that applies the remedy; `None` if the market cannot apply the remedy.
    pub const fn action(self) -> Option<&'static str> {
        match self {
            Self::NoConsumer => Some("Create the consumer"),
            Self::LeaseOver => Some("Clear"),
            Self::NotFetched | Self::NotAccepted => None,
        }
    }
}

/// A job message that no machine works on, or a machine that cannot fetch messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DeadLetter {
    /// The machine that the message is for.
    pub machine: MachineId,
    /// The machine's name.
    pub machine_name: String,
    /// The reason.
    pub trouble: DeadLetterReason,
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

/// The request to apply the remedy to a dead letter. A message that is no longer a dead letter is left alone.
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
