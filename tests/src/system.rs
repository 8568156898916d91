//! The processes of a market of a test's own: broker, services, projector, web server and workers, on free ports of
//! 127.0.0.1, in a temporary directory. All of them end when the [`System`] is dropped.

use std::{
    fs,
    ops::{Deref, DerefMut},
    process::Command,
    time::Duration,
};

use anyhow::bail;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::{
    market::{Market, remove_containers, unmount},
    parts::{binary, free_port, nats_server},
    places::{self, Place},
    process::Process,
    web::Web,
};

/// The directory of the projector's rows.
const PROJECTOR: &str = "projector";
/// How long a process may take to get ready.
pub(crate) const READY: Duration = Duration::from_secs(30);

/// The differences between one market and the usual one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Options {
    /// Replicas of the services.
    pub replicas: usize,
    /// Each service answers a monitor, at an address of its own.
    pub monitored: bool,
    /// Address of a collector, to which every service sends its traces.
    pub otlp: Option<String>,
    /// Number of events after which services and projector keep a snapshot.
    pub snapshot_every: Option<u64>,
    /// The broker leaves it to the operating system when data reaches the disk: for histories that are written as fast
    /// as possible.
    pub unsynced: bool,
    /// How long a process may take to get ready.
    pub patience: Duration,
    /// Memory for the projector's cache, MiB.
    pub cache_mib: u64,
    /// Further options of `gpubnb-services run`.
    pub services: Vec<String>,
    /// Further options of `gpubnb-projector run`.
    pub projector: Vec<String>,
    /// Further options of `gpubnb-ui run`.
    pub ui: Vec<String>,
    /// Port of the web server; a free one if not given.
    pub port: Option<u16>,
    /// The web server's limits on requests are so high that no test meets them.
    pub hurried: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            replicas: 1,
            monitored: false,
            otlp: None,
            snapshot_every: None,
            unsynced: false,
            patience: READY,
            cache_mib: 16,
            services: Vec::new(),
            projector: Vec::new(),
            ui: Vec::new(),
            port: None,
            hurried: true,
        }
    }
}

/// A running market, and the handles of its processes.
pub struct System {
    market: Market,
    /// The broker; `None` while it is stopped.
    pub nats: Option<Process>,
    /// Replicas of the services.
    pub services: Vec<Process>,
    /// The projector.
    pub projector: Option<Process>,
    /// The web server.
    pub ui: Option<Process>,
    /// The workers, in the order in which they were started.
    pub workers: Vec<Process>,
    /// The settings with which its processes are started.
    pub options: Options,
    /// Removed after the processes have ended: see `Drop`.
    _directory: tempfile::TempDir,
    _place: Option<Place>,
}

impl Deref for System {
    type Target = Market;

    fn deref(&self) -> &Market {
        &self.market
    }
}

impl DerefMut for System {
    fn deref_mut(&mut self) -> &mut Market {
        &mut self.market
    }
}

impl System {
    /// Starts everything but workers, once there is a place for one more market on this machine.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let place = places::take().await?;
        Self::start_at_once(options, Some(place)).await
    }

    /// Starts everything but workers. A market that many tests share takes no place: it would keep the place to the end.
    pub(crate) async fn start_at_once(options: Options, place: Option<Place>) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("gpubnb-").tempdir()?;
        let ui_port = options.port.map_or_else(free_port, Ok)?;
        let mut system = Self {
            market: Market::new(directory.path(), free_port()?, ui_port),
            nats: None,
            services: Vec::new(),
            projector: None,
            ui: None,
            workers: Vec::new(),
            options,
            _directory: directory,
            _place: place,
        };
        system.bootstrap()?;
        system.start_nats().await?;
        for _ in 0..system.options.replicas {
            system.start_services().await?;
        }
        system.start_projector().await?;
        system.start_ui().await?;
        let url = system.url();
        (system.web, system.owner) = (Web::join(&url, "consumer").await?, Web::join(&url, "provider").await?);
        system.web.deposit("100").await?;
        Ok(system)
    }

    fn bootstrap(&self) -> anyhow::Result<()> {
        let made = Command::new(binary("gpubnb-services")?)
            .args(["bootstrap", "--dir"])
            .arg(self.keys())
            .args(["--listen", &format!("127.0.0.1:{}", self.nats_port()), "--store"])
            .arg(self.path().join("nats"))
            .output()?;
        anyhow::ensure!(made.status.success(), "bootstrap: {}", String::from_utf8_lossy(&made.stderr));
        if self.options.unsynced {
            let conf = self.keys().join("nats.conf");
            let text = fs::read_to_string(&conf)?;
            fs::write(&conf, text.replace("sync_interval: always", "sync_interval: \"2m\""))?;
        }
        Ok(())
    }

    /// One of our programs, with the settings of this market.
    fn process(&self, name: &str) -> anyhow::Result<Command> {
        let mut command = self.command(name)?;
        if self.options.monitored {
            command.env("GPUBNB_MONITOR", "127.0.0.1:0");
        }
        if let Some(every) = self.options.snapshot_every {
            command.env("GPUBNB_SERVICES_SNAPSHOT_EVERY", every.to_string());
            command.env("GPUBNB_PROJECTOR_SNAPSHOT_EVERY", every.to_string());
        }
        if let Some(collector) = &self.options.otlp {
            command.env("GPUBNB_OTLP", collector);
        }
        Ok(command)
    }

    /// Starts the broker, again with what it had stored.
    pub async fn start_nats(&mut self) -> anyhow::Result<()> {
        let mut command = Command::new(nats_server()?);
        command.arg("-c").arg(self.keys().join("nats.conf"));
        let mut nats = Process::start("nats", &mut command, self.path())?;
        let address = ("127.0.0.1", self.nats_port());
        ready(&mut nats, async || tokio::net::TcpStream::connect(address).await.is_ok()).await?;
        self.nats = Some(nats);
        Ok(())
    }

    /// Starts one more replica of the services.
    pub async fn start_services(&mut self) -> anyhow::Result<()> {
        let mut command = self.process("services")?;
        command.args(["run", "--provision", "--test-funds", "--edge-url", &self.url()]);
        command.args(&self.options.services);
        let name = format!("services-{}", self.services.len());
        let mut services = Process::start(&name, &mut command, self.path())?;
        said_ready(&mut services, self.options.patience).await?;
        self.services.push(services);
        Ok(())
    }

    /// Starts the projector, again with what it had folded.
    pub async fn start_projector(&mut self) -> anyhow::Result<()> {
        self.projector = Some(self.another_projector(PROJECTOR).await?);
        Ok(())
    }

    /// The same, and does not wait until it is ready.
    pub fn begin_projector(&self) -> anyhow::Result<Process> {
        self.begin_projector_in(PROJECTOR)
    }

    /// A projector beside the first, with rows of its own in this directory, once it is ready.
    pub async fn another_projector(&self, directory: &str) -> anyhow::Result<Process> {
        let mut projector = self.begin_projector_in(directory)?;
        said_ready(&mut projector, self.options.patience).await?;
        Ok(projector)
    }

    fn begin_projector_in(&self, directory: &str) -> anyhow::Result<Process> {
        let mut command = self.process("projector")?;
        let cache = self.options.cache_mib.to_string();
        command.args(["run", "--cache-mib", &cache, "--data"]).arg(self.path().join(directory));
        command.args(&self.options.projector);
        Process::start(directory, &mut command, self.path())
    }

    /// From now on services and projector keep a snapshot after so many events, once they are started again.
    pub fn keep_snapshots(&mut self, every: u64) {
        self.options.snapshot_every = Some(every);
    }

    /// Starts the web server.
    pub async fn start_ui(&mut self) -> anyhow::Result<()> {
        let mut command = self.process("ui")?;
        command.args(["run", "--listen", &format!("127.0.0.1:{}", self.ui_port())]);
        if self.options.hurried {
            let plenty = "100000";
            command.args(["--requests-per-second", plenty, "--sign-ins-per-minute", plenty]);
            command.args(["--sign-ups-per-minute", plenty]);
        }
        command.args(&self.options.ui);
        let mut ui = Process::start("ui", &mut command, self.path())?;
        let health = format!("{}/healthz", self.url());
        ready(&mut ui, async || reqwest::get(&health).await.is_ok()).await?;
        self.ui = Some(ui);
        Ok(())
    }

    /// Starts a worker, again with the identity it had; waits until its machine is on the market.
    pub async fn start_worker(&mut self, name: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let worker = self.begin_worker(name, arguments).await?;
        self.workers.push(worker);
        Ok(())
    }

    /// Stops every process, workers first and the broker last.
    pub fn stop(&mut self) {
        self.workers.clear();
        self.ui = None;
        self.projector = None;
        self.services.clear();
        self.nats = None;
    }

    /// Fails if any process has ended, with what it printed last.
    pub fn check(&mut self) -> anyhow::Result<()> {
        let single = self.nats.iter_mut().chain(&mut self.projector).chain(&mut self.ui);
        single.chain(&mut self.services).chain(&mut self.workers).try_for_each(Process::check)
    }
}

impl Drop for System {
    fn drop(&mut self) {
        // Workers first, while there is someone to report to; the broker last.
        self.workers.clear();
        // Containers outlive their worker on purpose; here they must end with the test.
        for machine in self.machines() {
            remove_containers(&machine);
        }
        unmount(self.path());
        self.stop();
    }
}

/// Waits until a process says that it is ready, in what it printed since its start.
async fn said_ready(process: &mut Process, patience: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    while !process.has_said("ready") {
        process.check()?;
        if Instant::now() > deadline {
            bail!("not ready within {patience:?}:\n{}", process.last_words());
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

pub(crate) async fn ready(process: &mut Process, is_ready: impl AsyncFn() -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY;
    while !is_ready().await {
        process.check()?;
        if Instant::now() > deadline {
            bail!("not ready within {READY:?}:\n{}", process.last_words());
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
