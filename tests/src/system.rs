//! A market that belongs to one test: broker, services, projector, web server and workers, on free ports of 127.0.0.1,
//! in a temporary directory. All processes stop when the [`System`] is dropped.

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
    api_client::ApiClient,
    market::{Market, remove_containers, unmount},
    market_slots::{self, MarketSlot},
    process::Process,
    programs::{binary, free_port, nats_server, root},
};

/// The directory with the rows of the first projector.
const PROJECTOR_DIRECTORY: &str = "projector";
/// The longest time that a process may take until it is ready.
pub(crate) const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// The settings of a market's processes. The default is what most tests need.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MarketSettings {
    /// Number of brokers. Several brokers are a cluster, and each message has a copy on each.
    pub brokers: usize,
    /// Number of replicas of the services.
    pub replicas: usize,
    /// Services, projector and web server serve their metrics over HTTP, each on a free port that its log names.
    pub has_monitoring: bool,
    /// URL of an OTLP collector, to which services, projector and web server send their traces.
    pub otlp: Option<String>,
    /// Number of events after which services and projector save a snapshot. 0 means never; `None` means the default.
    pub snapshot_every: Option<u64>,
    /// The broker's directory is a disk of its own, of this size in MiB, in memory.
    pub broker_disk_mib: Option<u32>,
    /// The broker does not wait until data is on the disk. For long histories, which are written as fast as possible.
    pub is_fsync_off: bool,
    /// The longest time that a process may take until it is ready.
    pub ready_timeout: Duration,
    /// The projector's cache, MiB.
    pub cache_mib: u64,
    /// Further command-line options of `gpubnb-services run`.
    pub services: Vec<String>,
    /// Further command-line options of `gpubnb-projector run`.
    pub projector: Vec<String>,
    /// Further command-line options of `gpubnb-ui run`.
    pub ui: Vec<String>,
    /// Further environment variables of `gpubnb-ui run`.
    pub ui_environment: Vec<(String, String)>,
    /// Port of the web server. `None` means a free port.
    pub port: Option<u16>,
    /// The web server has its usual rate limits. Otherwise the limits are so high that no test reaches them.
    pub has_rate_limits: bool,
}

impl Default for MarketSettings {
    fn default() -> Self {
        Self {
            brokers: 1,
            replicas: 1,
            has_monitoring: false,
            otlp: None,
            snapshot_every: None,
            broker_disk_mib: None,
            is_fsync_off: false,
            ready_timeout: READY_TIMEOUT,
            cache_mib: 16,
            services: Vec::new(),
            projector: Vec::new(),
            ui: Vec::new(),
            ui_environment: Vec::new(),
            port: None,
            has_rate_limits: false,
        }
    }
}

/// A running market with its processes.
pub struct System {
    market: Market,
    /// The broker; `None` while it is stopped, and in a cluster.
    pub nats: Option<Process>,
    /// The brokers of a cluster, by their names `n0`, `n1`, …; `None` for one that is stopped.
    pub brokers: Vec<Option<Process>>,
    /// The replicas of the services.
    pub services: Vec<Process>,
    /// The projector.
    pub projector: Option<Process>,
    /// The web server.
    pub ui: Option<Process>,
    /// The workers, in the order in which they were started.
    pub workers: Vec<Process>,
    /// The settings with which the processes are started.
    pub settings: MarketSettings,
    /// The address of the broker's own monitoring, for its supervisor; `None` without a supervisor.
    broker_monitor: Option<String>,
    /// This directory is removed after the processes have stopped: see `Drop`.
    _directory: tempfile::TempDir,
    _slot: Option<MarketSlot>,
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
    /// Waits for a free [`MarketSlot`], and starts all processes except workers.
    pub async fn start(settings: MarketSettings) -> anyhow::Result<Self> {
        let slot = market_slots::acquire().await?;
        Self::start_with_slot(settings, Some(slot)).await
    }

    /// Starts all processes except workers. A shared market takes no slot, because it would keep the slot until the
    /// last test has ended.
    pub(crate) async fn start_with_slot(settings: MarketSettings, slot: Option<MarketSlot>) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("gpubnb-").tempdir()?;
        let ui_port = settings.port.map_or_else(free_port, Ok)?;
        let nats_ports = (0..settings.brokers).map(|_| free_port()).collect::<Result<Vec<_>, _>>()?;
        // A broker with a disk of its own may have to be started again.
        let has_supervisor = settings.broker_disk_mib.is_some();
        let broker_monitor = has_supervisor.then(free_port).transpose()?.map(|port| format!("127.0.0.1:{port}"));
        let mut system = Self {
            market: Market::new(directory.path(), nats_ports, ui_port),
            nats: None,
            brokers: Vec::new(),
            services: Vec::new(),
            projector: None,
            ui: None,
            workers: Vec::new(),
            settings,
            broker_monitor,
            _directory: directory,
            _slot: slot,
        };
        system.bootstrap()?;
        system.mount_broker_disk()?;
        if system.settings.brokers > 1 {
            for index in 0..system.settings.brokers {
                system.start_broker(index).await?;
            }
        } else {
            system.start_nats().await?;
        }
        for _ in 0..system.settings.replicas {
            system.start_services().await?;
        }
        system.start_projector().await?;
        system.start_ui().await?;
        let url = system.url();
        (system.consumer, system.machine_owner) =
            (ApiClient::sign_up(&url, "consumer").await?, ApiClient::sign_up(&url, "provider").await?);
        system.consumer.deposit("100").await?;
        Ok(system)
    }

    /// Makes the broker's configuration and the credentials of all processes.
    fn bootstrap(&self) -> anyhow::Result<()> {
        let made = Command::new(binary("gpubnb-services")?)
            .args(["bootstrap", "--dir"])
            .arg(self.keys())
            .args(["--listen", &format!("127.0.0.1:{}", self.nats_ports()[0]), "--store"])
            .arg(self.path().join("nats"))
            .args(self.cluster_arguments()?)
            .args(self.broker_monitor.iter().flat_map(|address| ["--monitor", address]))
            .output()?;
        anyhow::ensure!(made.status.success(), "bootstrap: {}", String::from_utf8_lossy(&made.stderr));
        if self.settings.brokers > 1 {
            return self.separate_brokers();
        }
        if self.settings.is_fsync_off {
            let conf = self.keys().join("nats.conf");
            let text = fs::read_to_string(&conf)?;
            fs::write(&conf, text.replace("sync_interval: always", "sync_interval: \"2m\""))?;
        }
        Ok(())
    }

    /// Mounts the broker's disk, if it has one of its own.
    fn mount_broker_disk(&self) -> anyhow::Result<()> {
        let Some(mib) = self.settings.broker_disk_mib else { return Ok(()) };
        let directory = self.path().join("nats");
        fs::create_dir_all(&directory)?;
        let size = format!("size={mib}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&directory).output()?;
        anyhow::ensure!(mounted.status.success(), "mount: {}", String::from_utf8_lossy(&mounted.stderr));
        Ok(())
    }

    /// The option of `bootstrap` for a cluster.
    fn cluster_arguments(&self) -> anyhow::Result<Vec<String>> {
        if self.settings.brokers == 1 {
            return Ok(Vec::new());
        }
        let member = |index| Ok(format!("n{index}=127.0.0.1:{}", free_port()?));
        let members = (0..self.settings.brokers).map(member).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(vec!["--cluster".to_owned(), members.join(",")])
    }

    /// Gives each broker of a cluster a port and a directory of its own: all of them run on this machine.
    fn separate_brokers(&self) -> anyhow::Result<()> {
        let (first, store) = (self.nats_ports()[0], self.path().join("nats"));
        for (index, port) in self.nats_ports().iter().enumerate() {
            let conf = self.keys().join(format!("nats-n{index}.conf"));
            let text = fs::read_to_string(&conf)?
                .replace(&format!("listen: \"127.0.0.1:{first}\""), &format!("listen: \"127.0.0.1:{port}\""))
                .replace(&store.to_string_lossy().into_owned(), &format!("{}-{index}", store.display()));
            fs::write(&conf, text)?;
        }
        Ok(())
    }

    /// Starts a broker of a cluster. Streams of an earlier run are kept.
    pub async fn start_broker(&mut self, index: usize) -> anyhow::Result<()> {
        let mut command = Command::new(nats_server()?);
        command.arg("-c").arg(self.keys().join(format!("nats-n{index}.conf")));
        let mut broker = Process::start(&format!("nats-n{index}"), &mut command, self.path())?;
        let address = ("127.0.0.1", self.nats_ports()[index]);
        wait_until_ready(&mut broker, async || tokio::net::TcpStream::connect(address).await.is_ok()).await?;
        self.brokers.resize_with(self.settings.brokers, || None);
        self.brokers[index] = Some(broker);
        Ok(())
    }

    /// A command that runs the program `gpubnb-<name>` with the settings of this market.
    fn configured_command(&self, name: &str) -> anyhow::Result<Command> {
        let mut command = self.command(name)?;
        if self.settings.has_monitoring {
            command.env("GPUBNB_MONITOR", "127.0.0.1:0");
        }
        if let Some(every) = self.settings.snapshot_every {
            command.env("GPUBNB_SERVICES_SNAPSHOT_EVERY", every.to_string());
            command.env("GPUBNB_PROJECTOR_SNAPSHOT_EVERY", every.to_string());
        }
        if let Some(collector) = &self.settings.otlp {
            command.env("GPUBNB_OTLP", collector);
        }
        Ok(command)
    }

    /// Starts the broker. Streams of an earlier run are kept.
    pub async fn start_nats(&mut self) -> anyhow::Result<()> {
        let mut command = match &self.broker_monitor {
            None => Command::new(nats_server()?),
            Some(address) => {
                let mut command = Command::new(root().join("deploy/broker.sh"));
                // The broker ends with its supervisor, also when the test kills the supervisor.
                command.args([address, "setpriv", "--pdeathsig", "KILL"]).arg(nats_server()?);
                command
            }
        };
        command.arg("-c").arg(self.keys().join("nats.conf"));
        let mut nats = Process::start("nats", &mut command, self.path())?;
        let address = ("127.0.0.1", self.nats_ports()[0]);
        wait_until_ready(&mut nats, async || tokio::net::TcpStream::connect(address).await.is_ok()).await?;
        self.nats = Some(nats);
        Ok(())
    }

    /// Starts one more replica of the services.
    pub async fn start_services(&mut self) -> anyhow::Result<()> {
        let mut command = self.configured_command("services")?;
        command.args(["run", "--provision", "--test-funds", "--edge-url", &self.url()]);
        command.args(["--replicas", &self.settings.brokers.to_string()]);
        command.args(&self.settings.services);
        let name = format!("services-{}", self.services.len());
        let mut services = Process::start(&name, &mut command, self.path())?;
        wait_for_ready_line(&mut services, self.settings.ready_timeout).await?;
        self.services.push(services);
        Ok(())
    }

    /// Starts the projector, and waits until it is ready. Rows of an earlier run are kept.
    pub async fn start_projector(&mut self) -> anyhow::Result<()> {
        self.projector = Some(self.start_projector_in(PROJECTOR_DIRECTORY).await?);
        Ok(())
    }

    /// Starts the projector, and does not wait until it is ready.
    pub fn spawn_projector(&self) -> anyhow::Result<Process> {
        self.spawn_projector_in(PROJECTOR_DIRECTORY)
    }

    /// Starts a projector with its rows in this directory, and waits until it is ready. It can run beside another
    /// projector.
    pub async fn start_projector_in(&self, directory: &str) -> anyhow::Result<Process> {
        let mut projector = self.spawn_projector_in(directory)?;
        wait_for_ready_line(&mut projector, self.settings.ready_timeout).await?;
        Ok(projector)
    }

    fn spawn_projector_in(&self, directory: &str) -> anyhow::Result<Process> {
        let mut command = self.configured_command("projector")?;
        let cache = self.settings.cache_mib.to_string();
        command.args(["run", "--cache-mib", &cache, "--data"]).arg(self.path().join(directory));
        command.args(&self.settings.projector);
        Process::start(directory, &mut command, self.path())
    }

    /// Starts the notifier, and does not wait until it is ready.
    pub fn spawn_notifier(&self, arguments: &[String]) -> anyhow::Result<Process> {
        let mut command = self.configured_command("notifier")?;
        Process::start("notifier", command.arg("run").args(arguments), self.path())
    }

    /// Sets the number of events between two snapshots, for processes that are started later.
    pub fn set_snapshot_interval(&mut self, events: u64) {
        self.settings.snapshot_every = Some(events);
    }

    /// Starts the web server.
    pub async fn start_ui(&mut self) -> anyhow::Result<()> {
        self.ui = Some(self.start_ui_at(self.ui_port()).await?);
        Ok(())
    }

    /// Starts a web server at this port of 127.0.0.1. The web server can run beside another one.
    pub async fn start_ui_at(&self, port: u16) -> anyhow::Result<Process> {
        let mut command = self.configured_command("ui")?;
        command.args(["run", "--listen", &format!("127.0.0.1:{port}"), "--url", &format!("http://localhost:{port}")]);
        if !self.settings.has_rate_limits {
            let plenty = "100000";
            command.args(["--requests-per-second", plenty, "--sign-ins-per-minute", plenty]);
            command.args(["--sign-ups-per-minute", plenty]);
        }
        command.args(&self.settings.ui).envs(self.settings.ui_environment.clone());
        let mut ui = Process::start("ui", &mut command, self.path())?;
        let health = format!("http://127.0.0.1:{port}/healthz");
        wait_until_ready(&mut ui, async || reqwest::get(&health).await.is_ok()).await?;
        Ok(ui)
    }

    /// Starts a worker, and waits until its machine is online. The machine keeps the identity of an earlier run.
    pub async fn start_worker(&mut self, name: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let worker = self.enroll_and_start_worker(name, arguments).await?;
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
        self.brokers.clear();
    }

    /// Fails if any process has ended. The error holds the last lines that the process printed.
    pub fn check_running(&mut self) -> anyhow::Result<()> {
        let single = self.nats.iter_mut().chain(&mut self.projector).chain(&mut self.ui);
        let brokers = self.brokers.iter_mut().flatten();
        single.chain(brokers).chain(&mut self.services).chain(&mut self.workers).try_for_each(Process::check_running)
    }
}

impl Drop for System {
    fn drop(&mut self) {
        // Workers stop first, so that they can still report.
        self.workers.clear();
        // Containers outlive their worker on purpose, but must not outlive the test.
        for machine in self.machine_ids() {
            remove_containers(&machine);
        }
        self.stop();
        unmount(self.path());
    }
}

/// Waits until a process has printed the word `ready` since its start.
async fn wait_for_ready_line(process: &mut Process, timeout: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + timeout;
    while !process.has_printed("ready") {
        process.check_running()?;
        if Instant::now() > deadline {
            bail!("not ready within {timeout:?}:\n{}", process.last_lines());
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Waits until `is_ready` returns true. Fails if the process ends before.
pub(crate) async fn wait_until_ready(process: &mut Process, is_ready: impl AsyncFn() -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY_TIMEOUT;
    while !is_ready().await {
        process.check_running()?;
        if Instant::now() > deadline {
            bail!("not ready within {READY_TIMEOUT:?}:\n{}", process.last_lines());
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
