//! The door of an attempt: opens it before the job's container is made, runs its relay, and keeps the count of bytes
//! for a later run of the worker.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use gpubnb_dialer::Dialer;
use gpubnb_door::{OpenDoor, Rate, Rules};
use gpubnb_events::{
    Lease,
    command::Grant,
    event::Reason,
    spec::{Egress, Traffic},
};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use super::{Problem, container::CreateResult, context::AttemptContext};
use crate::{json_file, relay};

/// The directory with a directory for each door, beside the directory of the attempts. A door is not in the attempt's
/// own directory, because a spare disk, made before the attempt, may take the place of that directory.
const DOORS: &str = "doors";
/// The directory with the sockets, which the relay mounts.
const SOCKETS: &str = "sockets";
/// The file with the traffic until now.
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
    /// The uid and gid of the relay, outside of its container.
    pub(crate) relay_user: (u32, u32),
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

/// The directory of the door of an attempt.
fn directory(attempts_dir: &Path, lease: Lease) -> PathBuf {
    attempts_dir.with_file_name(DOORS).join(lease.to_string())
}

/// Removes the relay and the directory of the door of an attempt. An attempt without a door has no such directory.
pub(super) async fn remove(context: &AttemptContext) -> anyhow::Result<()> {
    let directory = directory(&context.tools.attempts_dir, context.lease);
    if directory.try_exists()? {
        context.relay.remove().await?;
        fs::remove_dir_all(directory)?;
    }
    Ok(())
}

/// Removes the directories of all doors, except the doors of the attempts that are resumed.
pub(super) fn remove_others(attempts_dir: &Path, resumed: &HashSet<Lease>) -> io::Result<()> {
    let doors = attempts_dir.with_file_name(DOORS);
    for entry in fs::read_dir(&doors).into_iter().flatten() {
        let entry = entry?;
        let lease = entry.file_name().to_str().and_then(|name| name.parse::<Lease>().ok());
        if lease.is_none_or(|lease| !resumed.contains(&lease)) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Opens the door of an attempt, if its job asks for hosts.
pub(super) fn open(context: &AttemptContext, grant: &Grant) -> Result<(), Problem> {
    if grant.spec.egress.is_none() {
        return Ok(());
    }
    let DoorRules { hosts, ports, max_bytes, rate, dialer, relay_user } = &context.tools.door_rules;
    // The broker tells the machine's address as the broker sees it. A router may lead that address back into the
    // owner's network.
    if let Ok(address) = context.tools.js.client().server_info().client_ip.parse() {
        dialer.refuse_own_address(address);
    }
    let rules =
        Rules { hosts: grant.spec.egress.clone(), owner: hosts.clone(), ports: ports.clone(), max_bytes: *max_bytes };
    let directory = directory(&context.tools.attempts_dir, context.lease);
    let open = || -> io::Result<OpenDoor> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let before = json_file::saved(&directory.join(TRAFFIC_FILE)).unwrap_or_default();
        let notes = context.notes.sender();
        OpenDoor::open(&directory.join(SOCKETS), *relay_user, rules, dialer.clone(), Arc::clone(rate), before, notes)
    };
    let failed = |e| Problem::caused(Reason::RuntimeMisconfigured, anyhow::Error::new(e).context("the job's door"));
    let door = AttemptDoor { open: open().map_err(failed)?, reopened: grant.started.then(Instant::now) };
    // An attempt is carried out once, so its door is opened once.
    context.door.get_or_init(|| door);
    Ok(())
}

/// Starts the relay of an attempt that has a door, unless a former run of the worker started the job.
pub(super) async fn start_relay(context: &AttemptContext, grant: &Grant) -> Result<(), Problem> {
    let Some(door) = context.door.get().filter(|_| !grant.started) else { return Ok(()) };
    let tools = &context.tools;
    let image = relay::image(&tools.docker).await.map_err(|e| Problem::caused(Reason::RuntimeMisconfigured, e))?;
    let directory = directory(&tools.attempts_dir, context.lease).join(SOCKETS);
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

/// Saves the traffic once a second, if the attempt has a door.
pub(super) async fn save_traffic(context: &AttemptContext) {
    let Some(door) = context.door.get() else { return };
    let (path, mut saved) =
        (directory(&context.tools.attempts_dir, context.lease).join(TRAFFIC_FILE), Traffic::default());
    loop {
        sleep(SAVE_INTERVAL).await;
        let traffic = door.traffic();
        if traffic != saved {
            match json_file::save(&path, &traffic) {
                Ok(()) => saved = traffic,
                Err(e) => debug!(error = %e, "the traffic of an attempt could not be saved"),
            }
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
        // A relay that ran out of memory is the job's fault: the memory is enough for all connections, so only an
        // attack uses it up.
        Ok(state) => state.running != Some(true) && state.oom_killed != Some(true),
        Err(e) => {
            warn!(lease = context.lease.0.0, error = %e, "the relay of a job is not found");
            true
        }
    }
}
