//! A market of its own: broker, services, projector, web server and workers, each a real process, on free
//! ports of 127.0.0.1, in a temporary directory. Everything ends with it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, bail};
use gpubnb_runtime::nats::NatsArgs;
use tokio::time::{Instant, sleep};

use crate::{
    parts::{binary, free_port, nats_server},
    process::Process,
    web::Web,
};

/// Where the projector has its rows.
const PROJECTOR: &str = "projector";
/// How long a process may take to get ready.
const READY: Duration = Duration::from_secs(30);

/// What differs between markets.
#[derive(Debug, Clone)]
pub struct Options {
    /// Replicas of the services.
    pub replicas: usize,
    /// Whether each service is watched, at an address of its own.
    pub monitored: bool,
    /// A collector that every service sends its traces to.
    pub otlp: Option<String>,
    /// Events after which services and projector keep a snapshot.
    pub snapshot_every: Option<u64>,
    /// Whether the broker leaves it to the system when to write to the disk: for histories that are written as fast as may be.
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
    /// Whether people here may ask as often as they like, which tests do.
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

/// A running market.
pub struct System {
    /// Its directory.
    pub dir: tempfile::TempDir,
    /// The broker; `None` while it is stopped.
    pub nats: Option<Process>,
    /// Replicas of the services.
    pub services: Vec<Process>,
    /// The projector.
    pub projector: Option<Process>,
    /// The web server.
    pub ui: Option<Process>,
    /// The workers, by name.
    pub workers: Vec<Process>,
    /// Environment of the workers that are started from now on.
    pub environment: Vec<(&'static str, PathBuf)>,
    /// The consumer, who has $100 of play money.
    pub web: Web,
    /// The provider, who owns the machines.
    pub owner: Web,
    nats_port: u16,
    ui_port: u16,
    /// How its processes are started.
    pub options: Options,
}

impl System {
    /// Starts everything but workers.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("gpubnb-").tempdir()?;
        let nats_port = free_port()?;
        let ui_port = options.port.map_or_else(free_port, Ok)?;
        let web = Web::new(&format!("http://127.0.0.1:{ui_port}"))?;
        let mut system = Self {
            nats: None,
            services: Vec::new(),
            projector: None,
            ui: None,
            workers: Vec::new(),
            environment: Vec::new(),
            owner: web.clone(),
            web,
            nats_port,
            ui_port,
            options,
            dir,
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

    /// Its directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    fn keys(&self) -> PathBuf {
        self.path().join("keys")
    }

    /// The web server's address.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ui_port)
    }

    /// The broker's address.
    pub fn nats_url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.nats_port)
    }

    /// How a process connects to the broker.
    pub fn nats_args(&self, process: &str) -> NatsArgs {
        NatsArgs { nats: self.nats_url(), nats_creds: self.keys().join(process), nats_ca: None }
    }

    fn bootstrap(&self) -> anyhow::Result<()> {
        let made = Command::new(binary("gpubnb-services")?)
            .args(["bootstrap", "--dir"])
            .arg(self.keys())
            .args(["--listen", &format!("127.0.0.1:{}", self.nats_port), "--store"])
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

    fn command(&self, name: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(binary(&format!("gpubnb-{name}"))?);
        command.env("GPUBNB_NATS_URL", self.nats_url());
        command.env("GPUBNB_NATS_CREDS", self.keys().join(name));
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
        let address = ("127.0.0.1", self.nats_port);
        ready(&mut nats, async || tokio::net::TcpStream::connect(address).await.is_ok()).await?;
        self.nats = Some(nats);
        Ok(())
    }

    /// Starts one more replica of the services.
    pub async fn start_services(&mut self) -> anyhow::Result<()> {
        let mut command = self.command("services")?;
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
        let mut command = self.command("projector")?;
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
        let mut command = self.command("ui")?;
        command.args(["run", "--listen", &format!("127.0.0.1:{}", self.ui_port)]);
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
        let state = self.path().join(name);
        if !state.join("enrollment.json").exists() {
            self.enroll(name, &self.owner).await?;
        }
        let mut command = Command::new(binary("gpubnb-provider")?);
        command.args(["run", "--name", name, "--state"]).arg(&state).args(arguments);
        command.envs(self.environment.iter().map(|(name, value)| (*name, value)));
        if !arguments.contains(&"--heartbeat") {
            command.args(["--heartbeat", "1"]);
        }
        let mut worker = Process::start(name, &mut command, self.path())?;
        let stranger = self.web.stranger();
        let online = async || {
            let machines = stranger.get("/machines").await.unwrap_or_default();
            let named = |m: &&serde_json::Value| m["offer"]["name"] == name && m["presence"] == "Online";
            machines["rows"].as_array().is_some_and(|all| all.iter().any(|m| named(&m)))
        };
        ready(&mut worker, online).await?;
        self.workers.push(worker);
        Ok(())
    }

    /// Enrolls a machine for an account, with a code of its own.
    pub async fn enroll(&self, name: &str, owner: &Web) -> anyhow::Result<()> {
        let code = owner.post("/enrollments", &serde_json::json!({})).await?;
        let code = code["code"].as_str().context("a code")?;
        let enrolled = Command::new(binary("gpubnb-provider")?)
            .args(["enroll", code, "--market", &self.url(), "--state"])
            .arg(self.path().join(name))
            .output()?;
        anyhow::ensure!(enrolled.status.success(), "enroll: {}", String::from_utf8_lossy(&enrolled.stderr));
        Ok(())
    }

    /// Gives a worker's command, such as `status`, and returns whether it succeeded, and what it printed.
    pub fn worker(&self, name: &str, arguments: &[&str]) -> anyhow::Result<(bool, String)> {
        let mut command = Command::new(binary("gpubnb-provider")?);
        command.args(arguments).arg("--state").arg(self.path().join(name));
        let output = command.envs(self.environment.iter().map(|(name, value)| (*name, value))).output()?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        Ok((output.status.success(), format!("{out}{err}")))
    }

    /// Where the broker keeps a stream.
    pub fn stream_files(&self, stream: &str) -> Option<PathBuf> {
        fn below(directory: &Path, wanted: &Path) -> Option<PathBuf> {
            let entries: Vec<_> = fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path()).collect();
            let here = entries.iter().find(|path| path.ends_with(wanted)).cloned();
            here.or_else(|| entries.iter().filter(|path| path.is_dir()).find_map(|path| below(path, wanted)))
        }
        below(&self.path().join("nats"), &Path::new("streams").join(stream))
    }

    /// Runs the operator's tool.
    pub fn tool(&self, arguments: &[&str]) -> anyhow::Result<std::process::Output> {
        Ok(self.tool_command()?.args(arguments).output()?)
    }

    /// The operator's tool, to be told what to do.
    pub fn tool_command(&self) -> anyhow::Result<Command> {
        let nats = self.nats_args("projector");
        let mut command = Command::new(binary("gpubnb-projector")?);
        command.args(["--nats", &nats.nats, "--nats-creds"]).arg(nats.nats_creds);
        Ok(command)
    }

    /// Runs a command of the services' program, such as `backup`.
    pub fn services_tool(&self, arguments: &[&str]) -> anyhow::Result<std::process::Output> {
        Ok(self.command("services")?.args(arguments).output()?)
    }

    /// Stops every process, workers first and the broker last.
    pub fn stop(&mut self) {
        self.workers.clear();
        self.ui = None;
        self.projector = None;
        self.services.clear();
        self.nats = None;
    }

    /// A machine as the market shows it.
    pub async fn machine_view(&self, name: &str) -> anyhow::Result<serde_json::Value> {
        self.web.stranger().get(&format!("/machines/{}", self.machine(name)?)).await
    }

    /// Waits until a machine is as wanted, and returns it.
    pub async fn machine_until(
        &self,
        name: &str,
        wanted: impl Fn(&serde_json::Value) -> bool,
    ) -> anyhow::Result<serde_json::Value> {
        let deadline = Instant::now() + READY;
        loop {
            let view = self.machine_view(name).await?;
            if wanted(&view) {
                return Ok(view);
            }
            if Instant::now() > deadline {
                bail!("{name} did not get there within {READY:?}: {view:#}\n{}", self.log(name));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// The machine that a worker made its own.
    pub fn machine(&self, name: &str) -> anyhow::Result<String> {
        let path = self.path().join(name).join("machine");
        Ok(fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?.trim().to_owned())
    }

    /// Every machine that a worker of this market made its own.
    fn machines(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path()).into_iter().flatten().flatten();
        entries.filter_map(|entry| fs::read_to_string(entry.path().join("machine")).ok()).collect()
    }

    /// What a process printed.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path().join(format!("{name}.log"))).unwrap_or_default()
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
        // What they ran would go on without them, which is right anywhere but here.
        for machine in self.machines() {
            remove_containers(&machine);
        }
        unmount(self.path());
        self.stop();
    }
}

/// Removes the containers of a machine, and no others.
fn remove_containers(machine: &str) {
    let label = format!("label=gpubnb.machine={}", machine.trim());
    let listed = Command::new("docker").args(["ps", "--all", "--quiet", "--filter", &label]).output();
    let Ok(listed) = listed else { return };
    let ids = String::from_utf8_lossy(&listed.stdout).into_owned();
    if !ids.trim().is_empty() {
        let removed = Command::new("docker").args(["rm", "--force", "--volumes"]).args(ids.split_whitespace()).output();
        if let Err(e) = removed {
            eprintln!("containers of machine {machine} are left: {e}");
        }
    }
}

/// Takes down the file systems of jobs below a directory, so that it can be removed.
pub(crate) fn unmount(dir: &Path) {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    for place in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        if Path::new(place).starts_with(dir) {
            let done = Command::new("umount").arg(place).status();
            if !done.as_ref().is_ok_and(std::process::ExitStatus::success) {
                eprintln!("{place} is still mounted: {done:?}");
            }
        }
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

async fn ready(process: &mut Process, is_ready: impl AsyncFn() -> bool) -> anyhow::Result<()> {
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
