//! The control socket: through it the commands of `gpubnb-provider` query and control the running worker on the same
//! machine. The socket is in the worker's directory, and only the worker's user can open it. A request is one line of
//! JSON, and so is its answer.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use gpubnb_events::command::MachineChange;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::timeout,
};
use tracing::{debug, warn};

use super::{ControlAnswer, ControlRequest, WorkerControl};
use crate::page::OwnerPage;

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

/// The server of the control socket.
pub(crate) struct ControlServer {
    control: Arc<WorkerControl>,
    page: OwnerPage,
}

impl ControlServer {
    pub(crate) fn new(control: WorkerControl) -> Self {
        let control = Arc::new(control);
        Self { page: OwnerPage::new(Arc::clone(&control)), control }
    }

    async fn answer(&self, request: ControlRequest) -> ControlAnswer {
        let done = match request {
            ControlRequest::Status => return ControlAnswer::Status(Box::new(self.control.status())),
            ControlRequest::Open(uid) => match self.page.open(uid).await {
                Ok(link) => return ControlAnswer::Page(link),
                Err(e) => Err(e),
            },
            ControlRequest::Stop => {
                self.control.shutdown.cancel();
                Ok(())
            }
            ControlRequest::Pause => self.control.change(MachineChange::Pause).await,
            ControlRequest::PauseFor(pause) => self.control.pause_for(pause),
            ControlRequest::Resume => self.control.resume().await,
            ControlRequest::Drain => self.control.change(MachineChange::Drain).await,
        };
        match done {
            Ok(()) => ControlAnswer::Done,
            Err(e) => ControlAnswer::Problem(format!("{e:#}")),
        }
    }

    /// Serves requests until shutdown.
    pub(crate) async fn serve(self: Arc<Self>) {
        let path = self.control.state.join(SOCKET);
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
                () = self.control.shutdown.cancelled() => break,
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
