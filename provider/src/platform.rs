//! What the worker says to the platform, and how long it keeps saying it.

use std::time::Duration;

use gpubnb_events::{Actor, MachineId, Refusal, subject};
use gpubnb_runtime::rpc::{Caller, Failure};
use serde::{Serialize, de::DeserializeOwned};
use tracing::{debug, warn};

/// First and longest pause between two tries.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The platform, as this machine sees it.
#[derive(Clone)]
pub(crate) struct Platform {
    caller: Caller,
    machine: MachineId,
}

impl Platform {
    pub(crate) fn new(caller: Caller, machine: MachineId) -> Self {
        Self { caller, machine }
    }

    /// Which machine this is.
    pub(crate) fn machine(&self) -> MachineId {
        self.machine
    }

    /// One try.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        verb: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, Failure> {
        let subject = subject::machine_command(self.machine, verb);
        self.caller.call(subject, Actor::Machine(self.machine), body).await
    }

    /// Tries until there is an answer: a yes, or a no. Drop the future to give up.
    pub(crate) async fn insist<T: DeserializeOwned>(
        &self,
        verb: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, Refusal> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.ask(verb, body).await {
                Ok(answer) => return Ok(answer),
                // Others were faster; the platform will decide anew.
                Err(Failure::Refused(refusal)) if refusal.name == "Conflict" => {
                    debug!(verb, "conflict: said again");
                }
                Err(Failure::Refused(refusal)) => return Err(refusal),
                Err(Failure::Unavailable(problem)) => warn!(verb, problem, "the platform is away: said again"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}
