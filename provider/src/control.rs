//! How the running worker is asked how it fares and told what to do, on its own machine: a socket in its directory that
//! only its user can open. A line of JSON each way.

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
use tracing::warn;

use crate::{
    gpu::Gpus,
    hand::{Hand, InHand},
    owner::Turn,
    platform::Platform,
};

const SOCKET: &str = "control.sock";
/// Longest question and longest answer, bytes.
const MAX_ASK: u64 = 1_024;
const MAX_ANSWER: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(15);
/// Questions answered at once.
const AT_ONCE: usize = 8;

/// What a worker is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ask {
    /// How it fares.
    Status,
    Pause,
    Resume,
    Drain,
    /// To stop: jobs that run go on.
    Stop,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Status(Box<Status>),
    Done,
    Problem(String),
}

/// How a worker fares.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) machine: MachineId,
    pub(crate) name: String,
    pub(crate) market: String,
    pub(crate) version: String,
    pub(crate) pid: u32,
    pub(crate) since: Timestamp,
    pub(crate) state: WorkerState,
    /// Why it takes no jobs, where it is not its owner's own word.
    pub(crate) why: Option<String>,
    /// Whether the broker hears it.
    pub(crate) connected: bool,
    pub(crate) slots: u32,
    pub(crate) jobs: Vec<InHand>,
    pub(crate) gpus: Vec<GpuReading>,
}

/// The running worker, as it is seen from this machine.
pub(crate) struct Desk {
    pub(crate) name: String,
    pub(crate) market: String,
    pub(crate) slots: u32,
    pub(crate) since: Timestamp,
    pub(crate) client: Client,
    pub(crate) platform: Platform,
    pub(crate) hand: Arc<Hand>,
    pub(crate) gpus: Arc<Gpus>,
    pub(crate) turn: watch::Receiver<Option<Turn>>,
    /// What the market said of it last: whether it gives it jobs.
    pub(crate) wanted: Arc<Wanted>,
    pub(crate) shutdown: CancellationToken,
}

/// Whether the market gives this machine jobs, as far as its owner is concerned.
#[derive(Debug)]
pub(crate) struct Wanted {
    takes_jobs: AtomicBool,
    draining: AtomicBool,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { takes_jobs: AtomicBool::new(true), draining: AtomicBool::new(false) }
    }
}

impl Wanted {
    pub(crate) fn set(&self, takes_jobs: bool) {
        self.takes_jobs.store(takes_jobs, Ordering::Relaxed);
        if takes_jobs {
            self.draining.store(false, Ordering::Relaxed);
        }
    }

    fn wished(&self, wish: MachineChange) {
        self.takes_jobs.store(wish == MachineChange::Resume, Ordering::Relaxed);
        let drains = matches!(wish, MachineChange::Drain | MachineChange::Maintain);
        self.draining.store(drains, Ordering::Relaxed);
    }

    pub(crate) fn state(&self, away: bool) -> WorkerState {
        match (self.takes_jobs.load(Ordering::Relaxed), self.draining.load(Ordering::Relaxed)) {
            (true, _) if !away => WorkerState::Ready,
            (false, true) => WorkerState::Draining,
            _ => WorkerState::Paused,
        }
    }
}

impl Desk {
    fn status(&self) -> Status {
        let turn = self.turn.borrow().clone();
        let jobs = self.hand.in_hand();
        Status {
            machine: self.platform.machine(),
            name: self.name.clone(),
            market: self.market.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            since: self.since,
            state: self.wanted.state(turn.is_some()),
            why: turn.map(|turn| turn.words().to_owned()),
            connected: connected(&self.client),
            slots: self.slots,
            gpus: self.gpus.readings(!jobs.is_empty()),
            jobs,
        }
    }

    async fn answer(&self, ask: Ask) -> Answer {
        let wish = match ask {
            Ask::Status => return Answer::Status(Box::new(self.status())),
            Ask::Stop => {
                self.shutdown.cancel();
                return Answer::Done;
            }
            Ask::Pause => MachineChange::Pause,
            Ask::Resume => MachineChange::Resume,
            Ask::Drain => MachineChange::Drain,
        };
        let change = ChangeMachine { machine: self.platform.machine(), wish };
        match self.platform.ask::<Done>("wish", &change).await {
            Ok(_) => {
                self.wanted.wished(wish);
                Answer::Done
            }
            Err(e) => Answer::Problem(e.to_string()),
        }
    }

    /// Answers until shutdown.
    pub(crate) async fn serve(self: Arc<Self>, state: PathBuf) {
        let path = state.join(SOCKET);
        let listener = match listen(&path) {
            Ok(listener) => listener,
            Err(e) => return warn!(error = format!("{e:#}"), "`gpubnb-provider status` will not work"),
        };
        let places = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let stream = tokio::select! {
                () = self.shutdown.cancelled() => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(e) => {
                        warn!(error = %e, "the worker's socket");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        continue;
                    }
                },
            };
            let desk = Arc::clone(&self);
            tokio::spawn(async move {
                // Who hangs up has no need of an answer.
                drop(timeout(PATIENCE, desk.talk(stream)).await);
                drop(place);
            });
        }
        drop(fs::remove_file(&path));
    }

    async fn talk(&self, stream: UnixStream) -> anyhow::Result<()> {
        let (read, mut write) = stream.into_split();
        let mut line = String::new();
        BufReader::new(read.take(MAX_ASK)).read_line(&mut line).await?;
        let answer = match serde_json::from_str(&line) {
            Ok(ask) => self.answer(ask).await,
            Err(e) => Answer::Problem(format!("not understood: {e}")),
        };
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        write.write_all(&text).await?;
        Ok(())
    }
}

fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    // The lock on the directory is ours: whoever made it is gone.
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("opening {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Asks the worker that runs with this directory.
pub(crate) async fn ask(state: &Path, ask: Ask) -> anyhow::Result<Answer> {
    let path = state.join(SOCKET);
    let Ok(stream) = UnixStream::connect(&path).await else {
        bail!(
            "no worker runs with {} (or you may not ask it: try sudo). Start it with `gpubnb-provider run`",
            state.display()
        );
    };
    let talk = async {
        let (read, mut write) = stream.into_split();
        let mut text = serde_json::to_vec(&ask)?;
        text.push(b'\n');
        write.write_all(&text).await?;
        let mut line = String::new();
        BufReader::new(read.take(MAX_ANSWER)).read_line(&mut line).await?;
        Ok(serde_json::from_str(&line)?)
    };
    timeout(PATIENCE, talk).await.context("the worker does not answer")?
}
