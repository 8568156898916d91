//! The door of a job: its way to the internet. A job has no network. It finds two proxies on its own loopback, one for
//! HTTP and one for SOCKS5. The relay (`provider/relay`) carries their connections to the sockets of this crate, in the
//! worker. This crate decides which hosts a job may reach, and the dialer connects to them.
//!
//! Belongs here: the proxies, the rules, and the counting of bytes. Must not come here: Docker, and the decision which
//! addresses are public, which is the dialer's.

mod http;
mod listen;
mod rate;
mod socks;
mod stream;
#[cfg(test)]
mod tests;
mod traffic;

use std::{
    collections::HashSet,
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use gpubnb_dialer::{DialError, Dialer};
use gpubnb_events::{
    spec::{Egress, MAX_HOST, Traffic, canonical_host},
    text::make_plain,
};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

pub use self::rate::Rate;
use self::{stream::MeteredStream, traffic::TrafficCounter};

/// The HTTP proxy on the job's loopback. The relay listens there.
const HTTP_PROXY: &str = "http://127.0.0.1:3128";
/// The SOCKS5 proxy, which resolves names, too.
const SOCKS_PROXY: &str = "socks5h://127.0.0.1:1080";

/// Most connections of a job at once.
const MAX_CONNECTIONS: usize = 128;
/// Most names that a job looks up at once.
const MAX_LOOKUPS: usize = 4;
/// Most lines about failed connections in a job's log. The same line is written only once.
const MAX_NOTES: usize = 50;

/// The variables by which programs find the proxies of the job's door. Programs disagree about capital letters. `curl`
/// and `git` read only `http_proxy`, in small letters. `ALL_PROXY` is not the SOCKS5 proxy, because Python's `httpx`,
/// which the client of the Hugging Face Hub uses, fails for each request if a SOCKS proxy is named and one of its
/// extras is absent.
pub fn proxy_variables() -> impl Iterator<Item = (&'static str, String)> {
    let proxies = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];
    let proxies = proxies.map(|name| (name, HTTP_PROXY.to_owned()));
    let direct = ["NO_PROXY", "no_proxy"].map(|name| (name, "localhost,127.0.0.1,::1".to_owned()));
    proxies.into_iter().chain(direct).chain([("GPUBNB_SOCKS_PROXY", SOCKS_PROXY.to_owned())])
}

/// The rules of a door.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The hosts that the job asked for.
    pub hosts: Egress,
    /// The hosts that the machine's owner lets jobs reach.
    pub owner: Egress,
    /// The ports that the owner allows.
    pub ports: Vec<u16>,
    /// Most bytes of the attempt, both directions together.
    pub max_bytes: u64,
}

/// A connection that is not made. The text is a line of the job's log and the answer of the proxy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{0}: not allowed; add it to the hosts that the job may reach (egress)")]
    Host(String),
    #[error("{0}: the owner of this machine does not allow this host")]
    Owner(String),
    #[error("{0}: not allowed; a job on this machine may use the ports {1}")]
    Port(String, String),
    #[error("the job has used up the {0} GiB that it may exchange with the internet on this machine")]
    Bytes(u64),
    #[error("{0}")]
    Protocol(&'static str),
    #[error(transparent)]
    Dial(#[from] DialError),
}

impl Refusal {
    /// True if a rule forbids the connection. False if the host does not answer, or the job speaks another protocol.
    pub(crate) fn is_forbidden(&self) -> bool {
        match self {
            Self::Host(_) | Self::Owner(_) | Self::Port(..) | Self::Bytes(_) => true,
            Self::Dial(e) => matches!(e, DialError::NotPublic(_) | DialError::Unresolved { .. }),
            Self::Protocol(_) => false,
        }
    }
}

/// The door of one attempt. The door is closed, with all its connections, when this value is dropped.
#[derive(Debug)]
pub struct OpenDoor {
    door: Arc<Door>,
    ready: watch::Receiver<bool>,
    _closes: DropGuard,
}

impl OpenDoor {
    /// Opens the door: listens on sockets in a directory, which the relay's container mounts, and which belongs to the
    /// relay's user (uid and gid). `before` is the traffic of the attempt that a former run of the worker counted.
    /// Lines for the job's log are sent to `notes`.
    pub fn open(
        directory: &Path,
        relay_user: (u32, u32),
        rules: Rules,
        dialer: Dialer,
        rate: Arc<Rate>,
        before: Traffic,
        notes: mpsc::Sender<String>,
    ) -> io::Result<Self> {
        let closed = CancellationToken::new();
        let door = Arc::new(Door {
            rules,
            // The names that one job looks up delay no other job.
            dialer: dialer.with_own_lookups(MAX_LOOKUPS),
            rate,
            traffic: TrafficCounter::continuing(before),
            notes,
            said: Mutex::default(),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            closed: closed.clone(),
        });
        let ready = listen::listen(&door, directory, relay_user)?;
        Ok(Self { door, ready, _closes: closed.drop_guard() })
    }

    /// Waits until the relay listens on the job's loopback.
    pub async fn wait_until_ready(&self) {
        // The sender lives as long as the door.
        drop(self.ready.clone().wait_for(|is_ready| *is_ready).await);
    }

    /// The traffic until now.
    pub fn traffic(&self) -> Traffic {
        self.door.traffic.traffic()
    }
}

/// The state that all connections of a door share.
#[derive(Debug)]
pub(crate) struct Door {
    rules: Rules,
    dialer: Dialer,
    rate: Arc<Rate>,
    traffic: TrafficCounter,
    notes: mpsc::Sender<String>,
    /// The lines that the job's log has already.
    said: Mutex<HashSet<String>>,
    connections: Arc<Semaphore>,
    closed: CancellationToken,
}

impl Door {
    /// Connects to a host, if the rules allow it. Otherwise a line in the job's log says why.
    pub(crate) async fn connect(self: &Arc<Self>, host: &str, port: u16) -> Result<MeteredStream, Refusal> {
        let name = canonical_host(host.trim_start_matches('[').trim_end_matches(']'));
        let connected = async {
            self.check(&name, port)?;
            let stream = self.dialer.connect(&name, port).await?;
            Ok(MeteredStream::new(stream, Arc::from(name.as_str()), Arc::clone(self)))
        };
        connected.await.inspect_err(|refusal| self.take_note(refusal))
    }

    fn check(&self, host: &str, port: u16) -> Result<(), Refusal> {
        let Rules { hosts, owner, ports, max_bytes } = &self.rules;
        // The report to the market names the hosts. The market would refuse a report with a long name or with control
        // characters, so the door allows only short names in ASCII.
        if host.len() > MAX_HOST || !host.bytes().all(|b| b.is_ascii_graphic()) || !hosts.allows(host) {
            let shown: String = host.chars().take(MAX_HOST).collect();
            return Err(Refusal::Host(make_plain(&shown)));
        }
        if !owner.allows(host) {
            return Err(Refusal::Owner(host.to_owned()));
        }
        if !ports.contains(&port) {
            let allowed: Vec<_> = ports.iter().map(u16::to_string).collect();
            return Err(Refusal::Port(format!("{host}:{port}"), allowed.join(", ")));
        }
        if self.is_used_up() { Err(Refusal::Bytes(max_bytes >> 30)) } else { Ok(()) }
    }

    /// True if the attempt has exchanged as many bytes as it may.
    pub(crate) fn is_used_up(&self) -> bool {
        self.traffic.total() >= self.rules.max_bytes
    }

    /// Counts a refusal, and sends a line to the job's log, each line once.
    pub(crate) fn take_note(&self, refusal: &Refusal) {
        if refusal.is_forbidden() {
            self.traffic.add_refused();
        }
        let line = refusal.to_string();
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        // If the queue is full, the line is lost. The answer of the HTTP proxy has the same text.
        if said.len() < MAX_NOTES && said.insert(line.clone()) {
            drop(self.notes.try_send(line));
        }
    }
}
