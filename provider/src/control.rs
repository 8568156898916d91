//! The socket by which the commands of `gpubnb-provider` ask and steer the running worker on the same machine. It lies
//! in the worker's directory, and only its user can open it. A request and its answer are a line of JSON each.

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
use gpubnb_runtime::nats::connected;
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
    owner::AwayReason,
    platform::Platform,
};

const SOCKET: &str = "control.sock";
/// Longest request and longest answer, bytes.
const MAX_REQUEST: u64 = 1_024;
const MAX_ANSWER: u64 = 1 << 20;
/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// Requests that are answered at once.
const AT_ONCE: usize = 8;

/// A request to the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ControlRequest {
    /// Tell how the worker is.
    Status,
    Pause,
    Resume,
    Drain,
    /// Stop the worker. Jobs that run go on.
    Stop,
}

/// The worker's answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ControlAnswer {
    Status(Box<Status>),
    Done,
    Problem(String),
}

/// How a worker is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) machine: MachineId,
    pub(crate) name: String,
    pub(crate) market: String,
    pub(crate) version: String,
    pub(crate) pid: u32,
    pub(crate) since: Timestamp,
    pub(crate) state: WorkerState,
    /// The reason for taking no jobs, where that is one of the owner's rules and not a command.
    pub(crate) why: Option<String>,
    /// True while the worker is connected to the broker.
    pub(crate) connected: bool,
    pub(crate) slots: u32,
    pub(crate) jobs: Vec<AttemptStatus>,
    pub(crate) gpus: Vec<GpuReading>,
}

/// Serves the socket.
pub(crate) struct ControlServer {
    pub(crate) name: String,
    pub(crate) market: String,
    pub(crate) slots: u32,
    pub(crate) since: Timestamp,
    pub(crate) client: Client,
    pub(crate) platform: Platform,
    pub(crate) leases: Arc<LeaseTable>,
    pub(crate) gpus: Arc<Gpus>,
    pub(crate) away: watch::Receiver<Option<AwayReason>>,
    pub(crate) availability: Arc<Availability>,
    pub(crate) shutdown: CancellationToken,
}

/// The state of the machine on the market: it takes jobs, or is paused, or drains. The market tells the state with each
/// answer to the list of attempts, and a command of the owner changes it in between.
#[derive(Debug)]
pub(crate) struct Availability {
    takes_jobs: AtomicBool,
    draining: AtomicBool,
}

impl Default for Availability {
    fn default() -> Self {
        Self { takes_jobs: AtomicBool::new(true), draining: AtomicBool::new(false) }
    }
}

impl Availability {
    /// Takes the market's word.
    pub(crate) fn set_takes_jobs(&self, takes_jobs: bool) {
        self.takes_jobs.store(takes_jobs, Ordering::Relaxed);
        if takes_jobs {
            self.draining.store(false, Ordering::Relaxed);
        }
    }

    /// Notes a change that the owner asked for and the market accepted.
    fn note_change(&self, change: MachineChange) {
        self.takes_jobs.store(change == MachineChange::Resume, Ordering::Relaxed);
        let drains = matches!(change, MachineChange::Drain | MachineChange::Maintain);
        self.draining.store(drains, Ordering::Relaxed);
    }

    /// The state that heartbeats tell. `away`: the owner uses the machine.
    pub(crate) fn state(&self, away: bool) -> WorkerState {
        match (self.takes_jobs.load(Ordering::Relaxed), self.draining.load(Ordering::Relaxed)) {
            (true, _) if !away => WorkerState::Ready,
            (false, true) => WorkerState::Draining,
            _ => WorkerState::Paused,
        }
    }
}

impl ControlServer {
    fn status(&self) -> Status {
        let away = self.away.borrow().clone();
        let jobs = self.leases.statuses();
        Status {
            machine: self.platform.machine(),
            name: self.name.clone(),
            market: self.market.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            since: self.since,
            state: self.availability.state(away.is_some()),
            why: away.map(|reason| reason.to_string()),
            connected: connected(&self.client),
            slots: self.slots,
            gpus: self.gpus.readings(!jobs.is_empty()),
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
        let command = ChangeMachine { machine: self.platform.machine(), wish: change };
        match self.platform.ask::<Done>("wish", &command).await {
            Ok(_) => {
                self.availability.note_change(change);
                ControlAnswer::Done
            }
            Err(e) => ControlAnswer::Problem(format!("{:#}", anyhow::Error::new(e))),
        }
    }

    /// Answers until shutdown.
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
        let places = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
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
                match timeout(PATIENCE, server.serve_one(stream)).await {
                    Ok(Ok(())) => {}
                    // Most often the command was interrupted, and needs no answer.
                    Ok(Err(e)) => debug!(error = format!("{e:#}"), "a request on the worker's socket failed"),
                    Err(_) => debug!("a request on the worker's socket took too long"),
                }
                drop(place);
            });
        }
        if let Err(e) = fs::remove_file(&path) {
            warn!(path = %path.display(), error = %e, "the worker's socket cannot be removed");
        }
    }

    async fn serve_one(&self, stream: UnixStream) -> anyhow::Result<()> {
        let (read, mut write) = stream.into_split();
        let mut line = String::new();
        BufReader::new(read.take(MAX_REQUEST)).read_line(&mut line).await?;
        let answer = match serde_json::from_str(&line) {
            Ok(request) => self.answer(request).await,
            Err(e) => ControlAnswer::Problem(format!("not understood: {e}")),
        };
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        write.write_all(&text).await?;
        Ok(())
    }
}

fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    // This worker has the lock on the directory. A socket that is here is left from a worker that is gone.
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("opening {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Sends a request to the worker that runs with this directory.
pub(crate) async fn ask(state: &Path, request: ControlRequest) -> anyhow::Result<ControlAnswer> {
    let path = state.join(SOCKET);
    let Ok(stream) = UnixStream::connect(&path).await else {
        bail!(
            "no worker runs with {} (or you may not ask it: try sudo). Start it with `gpubnb-provider run`",
            state.display()
        );
    };
    let talk = async {
        let (read, mut write) = stream.into_split();
        let mut text = serde_json::to_vec(&request)?;
        text.push(b'\n');
        write.write_all(&text).await?;
        let mut line = String::new();
        BufReader::new(read.take(MAX_ANSWER)).read_line(&mut line).await?;
        Ok(serde_json::from_str(&line)?)
    };
    timeout(PATIENCE, talk).await.context("the worker does not answer")?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_ready_where_the_market_the_owner_and_its_rules_agree() {
        let availability = Availability::default();
        assert_eq!(availability.state(false), WorkerState::Ready);
        assert_eq!(availability.state(true), WorkerState::Paused, "the owner uses the machine");
        availability.note_change(MachineChange::Drain);
        assert_eq!(availability.state(false), WorkerState::Draining);
        availability.set_takes_jobs(false);
        assert_eq!(availability.state(true), WorkerState::Draining, "the market does not tell why it gives no jobs");
        availability.note_change(MachineChange::Pause);
        assert_eq!(availability.state(false), WorkerState::Paused);
        availability.set_takes_jobs(true);
        assert_eq!(availability.state(false), WorkerState::Ready);
    }
}
