//! Sends this machine's commands to the platform: once, or again until the platform answers.

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

    /// The machine in whose name the commands are sent.
    pub(crate) fn machine(&self) -> MachineId {
        self.machine
    }

    /// Sends a command once.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        verb: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, Failure> {
        let subject = subject::machine_command(self.machine, verb);
        self.caller.call(subject, Actor::Machine(self.machine), body).await
    }

    /// Sends a command until the platform accepts or refuses it. Drop the future to give up.
    pub(crate) async fn insist<T: DeserializeOwned>(
        &self,
        verb: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, Refusal> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.ask(verb, body).await {
                Ok(answer) => return Ok(answer),
                // Another command came first. The platform decides again from the new state.
                Err(Failure::Refused(refusal)) if refusal.name == "Conflict" => {
                    debug!(verb, "a conflict: sending the command again");
                }
                Err(Failure::Refused(refusal)) => return Err(refusal),
                Err(Failure::Unavailable(problem)) => {
                    warn!(verb, %problem, "the platform does not answer: sending the command again");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}
