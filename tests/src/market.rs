//! A running market as a test sees it: the addresses of its broker and web server, its directory, and its two people,
//! a consumer and a provider.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context as _, bail};
use gpubnb_events::CommandId;
use gpubnb_runtime::nats::NatsArgs;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    parts::binary,
    process::Process,
    system::{READY, ready},
    web::Web,
};

/// A running market: one that a test started for itself, or one that tests share.
#[derive(Serialize, Deserialize)]
pub struct Market {
    directory: PathBuf,
    nats_port: u16,
    ui_port: u16,
    /// A consumer, who has $100 of play money.
    pub web: Web,
    /// The provider, who owns the machines.
    pub owner: Web,
    /// The operator of a shared market. A market of one test has none until the test calls `Web::operator`.
    operator: Option<Web>,
    /// Environment variables of every worker that is started from now on.
    #[serde(skip)]
    pub environment: Vec<(&'static str, PathBuf)>,
}

/// A worker of one test at a market that other tests share. When this value is dropped, the worker stops, and the
/// containers and the mounted file systems of its jobs are removed.
pub struct Worker {
    /// The worker's process.
    pub process: Process,
    directory: PathBuf,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.process.stop();
        if let Ok(machine) = fs::read_to_string(self.directory.join("machine")) {
            remove_containers(&machine);
        }
        unmount(&self.directory);
    }
}

impl Market {
    /// A market whose consumer and provider have not signed up yet.
    pub(crate) fn new(directory: &Path, nats_port: u16, ui_port: u16) -> Self {
        let visitor = Web::new(&format!("http://127.0.0.1:{ui_port}"));
        let (web, owner, directory) = (visitor.clone(), visitor, directory.to_owned());
        Self { directory, nats_port, ui_port, web, owner, operator: None, environment: Vec::new() }
    }

    /// Signs up the operator whom all tests of a shared market use.
    pub(crate) async fn appoint_operator(&mut self) -> anyhow::Result<()> {
        self.operator = Some(Web::operator(self).await?);
        Ok(())
    }

    /// The operator of a shared market. Fails at a market of one test.
    pub fn operator(&self) -> anyhow::Result<Web> {
        self.operator.clone().context("this market is not shared: use Web::operator")
    }

    /// A new consumer, whom no other test uses, with $100 of play money.
    pub async fn newcomer(&self) -> anyhow::Result<Web> {
        let web = Web::join(&self.url(), &CommandId::generate().to_string()).await?;
        web.deposit("100").await?;
        Ok(web)
    }

    /// The directory of the market.
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// The directory with the broker credentials of the processes.
    pub(crate) fn keys(&self) -> PathBuf {
        self.path().join("keys")
    }

    pub(crate) fn nats_port(&self) -> u16 {
        self.nats_port
    }

    pub(crate) fn ui_port(&self) -> u16 {
        self.ui_port
    }

    /// The web server's address.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ui_port)
    }

    /// The broker's address.
    pub fn nats_url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.nats_port)
    }

    /// The options with which a process connects to the broker.
    pub fn nats_args(&self, process: &str) -> NatsArgs {
        NatsArgs { nats: self.nats_url(), nats_creds: self.keys().join(process), nats_ca: None }
    }

    /// A command that runs the program `gpubnb-<name>` with the address of the broker and the program's credential.
    pub(crate) fn command(&self, name: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(binary(&format!("gpubnb-{name}"))?);
        command.env("GPUBNB_NATS_URL", self.nats_url());
        command.env("GPUBNB_NATS_CREDS", self.keys().join(name));
        Ok(command)
    }

    /// Starts a worker that ends when the returned value is dropped, before the market ends. Waits until the worker's
    /// machine is online on the market.
    pub async fn own_worker(&self, name: &str, arguments: &[&str]) -> anyhow::Result<Worker> {
        let process = self.begin_worker(name, arguments).await?;
        Ok(Worker { process, directory: self.path().join(name) })
    }

    /// Enrolls a worker where that is needed, starts the worker, and waits until its machine is online on the market.
    /// The caller keeps the process.
    pub(crate) async fn begin_worker(&self, name: &str, arguments: &[&str]) -> anyhow::Result<Process> {
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
        ready(&mut worker, async || online(&stranger, name).await).await?;
        Ok(worker)
    }

    /// Enrolls the machine of a worker for an account, with a new enrollment code of that account.
    pub async fn enroll(&self, name: &str, owner: &Web) -> anyhow::Result<()> {
        let code = owner.post("/enrollments", &json!({})).await?;
        let code = code["code"].as_str().context("an answer without a code")?;
        let enrolled = Command::new(binary("gpubnb-provider")?)
            .args(["enroll", code, "--market", &self.url(), "--state"])
            .arg(self.path().join(name))
            .output()?;
        anyhow::ensure!(enrolled.status.success(), "enroll: {}", String::from_utf8_lossy(&enrolled.stderr));
        Ok(())
    }

    /// Runs a command of the worker's program, such as `status`. Returns true if the command succeeded, and its output.
    pub fn worker(&self, name: &str, arguments: &[&str]) -> anyhow::Result<(bool, String)> {
        let mut command = Command::new(binary("gpubnb-provider")?);
        command.args(arguments).arg("--state").arg(self.path().join(name));
        let output = command.envs(self.environment.iter().map(|(name, value)| (*name, value))).output()?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        Ok((output.status.success(), format!("{out}{err}")))
    }

    /// The directory in which the broker keeps the files of a stream; `None` if there is none.
    pub fn stream_files(&self, stream: &str) -> Option<PathBuf> {
        fn below(directory: &Path, wanted: &Path) -> Option<PathBuf> {
            let entries: Vec<_> = fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path()).collect();
            let here = entries.iter().find(|path| path.ends_with(wanted)).cloned();
            here.or_else(|| entries.iter().filter(|path| path.is_dir()).find_map(|path| below(path, wanted)))
        }
        below(&self.path().join("nats"), &Path::new("streams").join(stream))
    }

    /// Runs the operator's tool, `gpubnb-projector`, with arguments such as `verify`.
    pub fn tool(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        Ok(self.tool_command()?.args(arguments).output()?)
    }

    /// The operator's tool with its options for the broker. The caller adds the other arguments.
    pub fn tool_command(&self) -> anyhow::Result<Command> {
        let nats = self.nats_args("projector");
        let mut command = Command::new(binary("gpubnb-projector")?);
        command.args(["--nats", &nats.nats, "--nats-creds"]).arg(nats.nats_creds);
        Ok(command)
    }

    /// Runs a command of the services' program, such as `backup`.
    pub fn services_tool(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        Ok(self.command("services")?.args(arguments).output()?)
    }

    /// The machine of a worker as the API shows it to a stranger.
    pub async fn machine_view(&self, name: &str) -> anyhow::Result<Value> {
        self.web.stranger().get(&format!("/machines/{}", self.machine(name)?)).await
    }

    /// Waits until `wanted` is true of the machine of a worker, as the API shows it, and returns that answer.
    pub async fn machine_until(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let deadline = Instant::now() + READY;
        loop {
            let view = self.machine_view(name).await?;
            if wanted(&view) {
                return Ok(view);
            }
            if Instant::now() > deadline {
                bail!("machine {name} is not in the wanted state after {READY:?}: {view:#}\n{}", self.log(name));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// The id of a worker's machine, which the worker keeps in its directory.
    pub fn machine(&self, name: &str) -> anyhow::Result<String> {
        let path = self.path().join(name).join("machine");
        Ok(fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?.trim().to_owned())
    }

    /// The ids of the machines of all workers of this market.
    pub(crate) fn machines(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path()).into_iter().flatten().flatten();
        entries.filter_map(|entry| fs::read_to_string(entry.path().join("machine")).ok()).collect()
    }

    /// The output of a process so far.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path().join(format!("{name}.log"))).unwrap_or_default()
    }
}

/// Returns true if the market lists a machine of this name, and the machine is online.
pub(crate) async fn online(stranger: &Web, name: &str) -> bool {
    let machines = stranger.get("/machines").await.unwrap_or_default();
    let named = |m: &Value| m["offer"]["name"] == name && m["presence"] == "Online";
    machines["rows"].as_array().is_some_and(|all| all.iter().any(named))
}

/// Removes the containers of a machine, and no others.
pub(crate) fn remove_containers(machine: &str) {
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

/// Unmounts the file systems of jobs below a directory, so that the directory can be removed.
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
