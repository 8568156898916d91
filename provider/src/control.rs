//! The control socket: through it the commands of `gpubnb-provider` query and control the running worker on the same
//! machine. The socket is in the worker's directory, and only the worker's user can open it. A request is one line of
//! JSON, and so is its answer.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use async_nats::Client;
use gpubnb_events::{
    MachineId, Timestamp,
    command::{ChangeMachine, Done, MachineChange},
    telemetry::{GpuReading, WorkerState},
};
use gpubnb_runtime::nats::is_connected;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    gpu::Gpus,
    lease_table::{AttemptStatus, LeaseTable},
    owner::ReclaimReason,
    platform::Platform,
};

/// The file of the socket, in the worker's directory.
const SOCKET: &str = "control.sock";
/// Longest request, bytes.
const MAX_REQUEST_BYTES: u64 = 1_024;
/// Longest answer, bytes.
const MAX_ANSWER_BYTES: u64 = 1 << 20;
/// Longest time of a request with its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Most requests that are handled at the same time.
const MAX_CONCURRENT_REQUESTS: usize = 8;

/// A request to the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ControlRequest {
    /// Answer with the worker's status.
    Status,
    /// Take no new jobs.
    Pause,
    /// Take jobs again.
    Resume,
    /// Take no new jobs, and finish the running jobs.
    Drain,
    /// Stop the worker. Running jobs go on.
    Stop,
}

/// The worker's answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ControlAnswer {
    /// The answer to a request for the status.
    Status(Box<Status>),
    /// The request was carried out.
    Done,
    /// The request failed, with a text for people.
    Problem(String),
}

/// The status of a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) machine: MachineId,
    pub(crate) name: String,
    pub(crate) market: String,
    pub(crate) version: String,
    pub(crate) pid: u32,
    /// When the worker started.
    pub(crate) since: Timestamp,
    pub(crate) state: WorkerState,
    /// The reason for which the owner's rules forbid jobs now, for people; `None` if they allow jobs. A pause is not a
    /// rule.
    pub(crate) why: Option<String>,
    /// True while the worker is connected to the broker.
    pub(crate) connected: bool,
    /// Most jobs that run at the same time.
    pub(crate) slots: u32,
    pub(crate) jobs: Vec<AttemptStatus>,
    pub(crate) gpus: Vec<GpuReading>,
}

/// The server of the control socket.
pub(crate) struct ControlServer {
    pub(crate) name: String,
    pub(crate) market: String,
    pub(crate) slots: u32,
    pub(crate) since: Timestamp,
    pub(crate) client: Client,
    pub(crate) platform: Platform,
    pub(crate) leases: Arc<LeaseTable>,
    pub(crate) gpus: Arc<Gpus>,
    pub(crate) reclaimed: watch::Receiver<Option<ReclaimReason>>,
    pub(crate) availability: Arc<Availability>,
    pub(crate) shutdown: CancellationToken,
}

/// The state of the machine on the market: takes jobs, paused or draining. The market sends the state with each answer
/// to the list of attempts (`sync.rs`). A command of the owner changes the state at once.
#[derive(Debug)]
pub(crate) struct Availability {
    takes_jobs: AtomicBool,
    is_draining: AtomicBool,
}

impl Default for Availability {
    fn default() -> Self {
        Self { takes_jobs: AtomicBool::new(true), is_draining: AtomicBool::new(false) }
    }
}

impl Availability {
    /// Sets the state to the market's answer.
    pub(crate) fn set_takes_jobs(&self, takes_jobs: bool) {
        self.takes_jobs.store(takes_jobs, Ordering::Relaxed);
        if takes_jobs {
            self.is_draining.store(false, Ordering::Relaxed);
        }
    }

    /// Sets the state after the owner asked for a change and the market accepted it.
    fn apply_change(&self, change: MachineChange) {
        self.takes_jobs.store(change == MachineChange::Resume, Ordering::Relaxed);
        let is_draining = matches!(change, MachineChange::Drain | MachineChange::Maintain);
        self.is_draining.store(is_draining, Ordering::Relaxed);
    }

    /// The state for heartbeats. `is_reclaimed` is true while the owner needs the machine.
    pub(crate) fn state(&self, is_reclaimed: bool) -> WorkerState {
        match (self.takes_jobs.load(Ordering::Relaxed), self.is_draining.load(Ordering::Relaxed)) {
            (true, _) if !is_reclaimed => WorkerState::Ready,
            (false, true) => WorkerState::Draining,
            _ => WorkerState::Paused,
        }
    }
}

impl ControlServer {
    fn status(&self) -> Status {
        let reclaimed = self.reclaimed.borrow().clone();
        let jobs = self.leases.statuses();
        Status {
            machine: self.platform.machine(),
            name: self.name.clone(),
            market: self.market.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            since: self.since,
            state: self.availability.state(reclaimed.is_some()),
            why: reclaimed.map(|reason| reason.to_string()),
            connected: is_connected(&self.client),
            slots: self.slots,
            gpus: self.gpus.shown_readings(!jobs.is_empty()),
            jobs,
        }
    }

    async fn answer(&self, request: ControlRequest) -> ControlAnswer {
        let change = match request {
            ControlRequest::Status => return ControlAnswer::Status(Box::new(self.status())),
            ControlRequest::Stop => {
                self.shutdown.cancel();
                return ControlAnswer::Done;
            }
            ControlRequest::Pause => MachineChange::Pause,
            ControlRequest::Resume => MachineChange::Resume,
            ControlRequest::Drain => MachineChange::Drain,
        };
        let command = ChangeMachine { machine: self.platform.machine(), change };
        match self.platform.call::<Done>("wish", &command).await {
            Ok(_) => {
                self.availability.apply_change(change);
                ControlAnswer::Done
            }
            Err(e) => ControlAnswer::Problem(format!("{:#}", anyhow::Error::new(e))),
        }
    }

    /// Serves requests until shutdown.
    pub(crate) async fn serve(self: Arc<Self>, state: PathBuf) {
        let path = state.join(SOCKET);
        let listener = match listen(&path) {
            Ok(listener) => listener,
            Err(e) => {
                return warn!(
                    error = format!("{e:#}"),
                    "the socket cannot be opened: `gpubnb-provider status` will not work"
                );
            }
        };
        let permits = Arc::new(Semaphore::new(MAX_CONCURRENT_REQUESTS));
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            let stream = tokio::select! {
                () = self.shutdown.cancelled() => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(e) => {
                        warn!(error = %e, "a connection to the worker's socket was not accepted");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        continue;
                    }
                },
            };
            let server = Arc::clone(&self);
            tokio::spawn(async move {
                match timeout(REQUEST_TIMEOUT, server.serve_connection(stream)).await {
                    Ok(Ok(())) => {}
                    // The usual cause is that the user interrupted the command. Nobody waits for the answer then.
                    Ok(Err(e)) => debug!(error = format!("{e:#}"), "a request on the worker's socket failed"),
                    Err(_) => debug!("a request on the worker's socket took too long"),
                }
                drop(permit);
            });
        }
        if let Err(e) = fs::remove_file(&path) {
            warn!(path = %path.display(), error = %e, "the worker's socket cannot be removed");
        }
    }

    async fn serve_connection(&self, stream: UnixStream) -> anyhow::Result<()> {
        let (read, mut write) = stream.into_split();
        let mut line = String::new();
        BufReader::new(read.take(MAX_REQUEST_BYTES)).read_line(&mut line).await?;
        let answer = match serde_json::from_str(&line) {
            Ok(request) => self.answer(request).await,
            Err(e) => ControlAnswer::Problem(format!("the request is not understood: {e}")),
        };
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        write.write_all(&text).await?;
        Ok(())
    }
}

fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    // This worker has the lock on the directory. An existing socket was left by a worker that has ended.
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("opening {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Sends a request to the worker whose directory is `state`, and returns the worker's answer.
pub(crate) async fn send_request(state: &Path, request: ControlRequest) -> anyhow::Result<ControlAnswer> {
    let path = state.join(SOCKET);
    let Ok(stream) = UnixStream::connect(&path).await else {
        bail!(
            "no worker runs with {} (or you may not ask it: try sudo). Start it with `gpubnb-provider run`",
            state.display()
        );
    };
    let exchange = async {
        let (read, mut write) = stream.into_split();
        let mut text = serde_json::to_vec(&request)?;
        text.push(b'\n');
        write.write_all(&text).await?;
        let mut line = String::new();
        BufReader::new(read.take(MAX_ANSWER_BYTES)).read_line(&mut line).await?;
        Ok(serde_json::from_str(&line)?)
    };
    timeout(REQUEST_TIMEOUT, exchange).await.context("the worker does not answer")?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_ready_only_if_the_market_the_owner_and_the_rules_allow_it() {
        let availability = Availability::default();
        assert_eq!(availability.state(false), WorkerState::Ready);
        assert_eq!(availability.state(true), WorkerState::Paused, "the owner uses the machine");
        availability.apply_change(MachineChange::Drain);
        assert_eq!(availability.state(false), WorkerState::Draining);
        availability.set_takes_jobs(false);
        assert_eq!(availability.state(true), WorkerState::Draining, "the market does not say why it gives no jobs");
        availability.apply_change(MachineChange::Pause);
        assert_eq!(availability.state(false), WorkerState::Paused);
        availability.set_takes_jobs(true);
        assert_eq!(availability.state(false), WorkerState::Ready);
    }
}
