//! The door of an attempt: opens it before the job's container is made, runs its relay, and keeps the count of bytes
//! for a later run of the worker.

use std::{fs, io, os::unix::fs::DirBuilderExt as _, sync::Arc, time::Duration};

use gpubnb_dialer::Dialer;
use gpubnb_door::{OpenDoor, Rate, Rules};
use gpubnb_events::{
    command::Grant,
    event::Reason,
    spec::{Egress, Traffic},
};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use super::{Problem, container::CreateResult, context::AttemptContext};
use crate::{json_file, relay};

/// The directory with the sockets of the door, in the attempt's directory.
const DIRECTORY: &str = "door";
/// The file with the traffic until now, in the attempt's directory.
const TRAFFIC_FILE: &str = "traffic.json";
/// Time between two times at which the traffic is saved.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);
/// Longest time until the relay listens.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// A job that fails within this time after a restart of the worker may have failed because the restart broke its
/// connections.
const RESTART_BREAKS: Duration = Duration::from_secs(60);

/// The owner's rules for the internet, which all attempts on this machine share.
pub(crate) struct DoorRules {
    /// The hosts that the owner lets jobs reach.
    pub(crate) hosts: Egress,
    pub(crate) ports: Vec<u16>,
    /// Most bytes of an attempt.
    pub(crate) max_bytes: u64,
    /// The limit of all attempts together.
    pub(crate) rate: Arc<Rate>,
    pub(crate) dialer: Dialer,
}

/// The door of an attempt.
pub(super) struct AttemptDoor {
    open: OpenDoor,
    /// When this run of the worker opened the door again, for a job that a former run started.
    reopened: Option<Instant>,
}

impl AttemptDoor {
    pub(super) fn traffic(&self) -> Traffic {
        self.open.traffic()
    }
}

/// Opens the door of an attempt whose job asks for hosts. `None`: the job asks for none.
pub(super) fn open(context: &AttemptContext, grant: &Grant) -> Result<Option<AttemptDoor>, Problem> {
    if grant.spec.egress.is_none() {
        return Ok(None);
    }
    let DoorRules { hosts, ports, max_bytes, rate, dialer } = &context.tools.door_rules;
    let rules =
        Rules { hosts: grant.spec.egress.clone(), owner: hosts.clone(), ports: ports.clone(), max_bytes: *max_bytes };
    let directory = context.directory();
    let open = || -> io::Result<OpenDoor> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let before = json_file::saved(&directory.join(TRAFFIC_FILE)).unwrap_or_default();
        let notes = context.notes.sender();
        OpenDoor::open(&directory.join(DIRECTORY), rules, dialer.clone(), Arc::clone(rate), before, notes)
    };
    let failed = |e| Problem::caused(Reason::RuntimeMisconfigured, anyhow::Error::new(e).context("the job's door"));
    Ok(Some(AttemptDoor { open: open().map_err(failed)?, reopened: grant.started.then(Instant::now) }))
}

/// Starts the relay of an attempt that has a door, unless a former run of the worker started the job.
pub(super) async fn start_relay(context: &AttemptContext, grant: &Grant) -> Result<(), Problem> {
    let Some(door) = context.door.get().filter(|_| !grant.started) else { return Ok(()) };
    let tools = &context.tools;
    let image = relay::image(&tools.docker).await.map_err(|e| Problem::caused(Reason::RuntimeMisconfigured, e))?;
    let directory = context.directory().join(DIRECTORY);
    let body = relay::container(tools.machine, context.lease, &image, &directory);
    if context.relay.create(body.clone()).await? == CreateResult::Existed {
        // A former run of the worker made it, and no job has used it yet.
        context.relay.remove().await.map_err(Problem::of_docker)?;
        context.relay.create(body).await?;
    }
    context.relay.start().await?;
    let late = |_| Problem::new(Reason::RuntimeMisconfigured, "the relay of the job's door does not start");
    timeout(READY_TIMEOUT, door.open.wait_until_ready()).await.map_err(late)
}

/// Saves the traffic once a second. Never returns.
pub(super) async fn save_traffic(context: &AttemptContext) -> std::convert::Infallible {
    let mut saved = Traffic::default();
    loop {
        sleep(SAVE_INTERVAL).await;
        let Some(traffic) = context.door.get().map(AttemptDoor::traffic) else { continue };
        if traffic != saved {
            if let Err(e) = json_file::save(&context.directory().join(TRAFFIC_FILE), &traffic) {
                debug!(error = %e, "the traffic of an attempt could not be saved");
            }
            saved = traffic;
        }
    }
}

/// True if the machine may have broken the job's connections: the worker was started again a short time ago, or the
/// relay has ended.
pub(super) async fn is_broken(context: &AttemptContext) -> bool {
    let Some(door) = context.door.get() else { return false };
    if door.reopened.is_some_and(|at| at.elapsed() < RESTART_BREAKS) {
        return true;
    }
    match context.relay.state().await {
        Ok(state) => state.running != Some(true),
        Err(e) => {
            warn!(lease = context.lease.0.0, error = %e, "the relay of a job is not found");
            true
        }
    }
}
