//! Sends this machine's commands to the platform, which is the market's services behind the broker. A command is sent
//! once, or until the platform answers.

use std::time::Duration;

use gpubnb_events::{Actor, MachineId, Refusal, subject};
use gpubnb_runtime::rpc::{Caller, RpcError};
use serde::{Serialize, de::DeserializeOwned};
use tracing::{debug, warn};

/// Pause after the first failed try. Each further pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The client for the platform.
#[derive(Clone)]
pub(crate) struct Platform {
    caller: Caller,
    machine: MachineId,
}

impl Platform {
    pub(crate) fn new(caller: Caller, machine: MachineId) -> Self {
        Self { caller, machine }
    }

    /// The machine that sends the commands.
    pub(crate) fn machine(&self) -> MachineId {
        self.machine
    }

    /// Sends a command once. `verb` is the last part of the subject: `accept` for `cmd.machine.<id>.accept`.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        verb: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, RpcError> {
        let subject = subject::machine_command(self.machine, verb);
        self.caller.call(subject, Actor::Machine(self.machine), body).await
    }

    /// Asks a query once. `name` is the last part of the subject: `days` for `query.machine.<id>.days`.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, name: &str) -> Result<T, RpcError> {
        let subject = subject::machine_query(self.machine, name);
        self.caller.call(subject, Actor::Machine(self.machine), &()).await
    }

    /// Sends a command until the platform accepts or refuses it. Drop the future to give up.
    pub(crate) async fn call_until_answered<T: DeserializeOwned>(
        &self,
        verb: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, Refusal> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.call(verb, body).await {
                Ok(answer) => return Ok(answer),
                // Another command changed the state at the same time. Let the platform decide again from the new state.
                Err(RpcError::Refused(refusal)) if refusal.name == "Conflict" => {
                    debug!(verb, "a conflict: sending the command again");
                }
                Err(RpcError::Refused(refusal)) => return Err(refusal),
                Err(RpcError::Unavailable(problem)) => {
                    warn!(verb, %problem, "the platform does not answer: sending the command again");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}
