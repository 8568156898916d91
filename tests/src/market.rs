//! A running market as a test sees it: the addresses of its broker and web server, its directory, and the clients of a
//! consumer and of a provider.

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
    api_client::ApiClient,
    process::Process,
    programs::binary,
    system::{READY_TIMEOUT, wait_until_ready},
};

/// A running market. It belongs to one test, or several tests share it.
#[derive(Serialize, Deserialize)]
pub struct Market {
    directory: PathBuf,
    /// The ports of the brokers; one if there is no cluster.
    nats_ports: Vec<u16>,
    ui_port: u16,
    /// The client of a consumer, who has $100 of play money.
    pub consumer: ApiClient,
    /// The client of the provider who owns all machines of the market.
    pub machine_owner: ApiClient,
    /// The client of the operator of a shared market. `None` in a market that belongs to one test.
    operator: Option<ApiClient>,
    /// Environment variables of every worker that is started from now on.
    #[serde(skip)]
    pub environment: Vec<(&'static str, PathBuf)>,
}

/// A worker that one test starts in a market that other tests share. When this value is dropped, the worker stops, and
/// the containers and the mounted file systems of its jobs are removed.
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
    /// Describes a market whose consumer and provider have not signed up yet.
    pub(crate) fn new(directory: &Path, nats_ports: Vec<u16>, ui_port: u16) -> Self {
        let visitor = ApiClient::new(&format!("http://127.0.0.1:{ui_port}"));
        let (consumer, machine_owner, directory) = (visitor.clone(), visitor, directory.to_owned());
        Self { directory, nats_ports, ui_port, consumer, machine_owner, operator: None, environment: Vec::new() }
    }

    /// Signs up the operator that all tests of a shared market use.
    pub(crate) async fn sign_up_shared_operator(&mut self) -> anyhow::Result<()> {
        self.operator = Some(ApiClient::sign_up_operator(self).await?);
        Ok(())
    }

    /// The client of the operator of a shared market. Fails if the market belongs to one test: see
    /// [`ApiClient::sign_up_operator`].
    pub fn operator(&self) -> anyhow::Result<ApiClient> {
        self.operator.clone().context("this market is not shared: use ApiClient::sign_up_operator")
    }

    /// Signs up a new consumer, who has $100 of play money and is not used by any other test.
    pub async fn new_consumer(&self) -> anyhow::Result<ApiClient> {
        let consumer = ApiClient::sign_up(&self.url(), &CommandId::generate().to_string()).await?;
        consumer.deposit("100").await?;
        Ok(consumer)
    }

    /// The directory of the market.
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// The directory with the broker credentials of the processes.
    pub(crate) fn keys(&self) -> PathBuf {
        self.path().join("keys")
    }

    pub(crate) fn nats_ports(&self) -> &[u16] {
        &self.nats_ports
    }

    pub(crate) fn ui_port(&self) -> u16 {
        self.ui_port
    }

    /// The web server's address.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ui_port)
    }

    /// The addresses of the brokers, separated by commas.
    pub fn nats_url(&self) -> String {
        let urls: Vec<_> = self.nats_ports.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
        urls.join(",")
    }

    /// The address of the broker and the credential of a process, such as `services` or `projector`.
    pub fn nats_args(&self, process: &str) -> NatsArgs {
        NatsArgs { nats: self.nats_url(), nats_creds: self.keys().join(process), nats_ca: None }
    }

    /// A command that runs the program `gpubnb-<name>` with the broker's address and the program's credential.
    pub(crate) fn command(&self, name: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(binary(&format!("gpubnb-{name}"))?);
        command.env("GPUBNB_NATS_URL", self.nats_url());
        command.env("GPUBNB_NATS_CREDS", self.keys().join(name));
        Ok(command)
    }

    /// Starts a worker that stops when the returned [`Worker`] is dropped. Waits until its machine is online.
    pub async fn start_scoped_worker(&self, name: &str, arguments: &[&str]) -> anyhow::Result<Worker> {
        let process = self.enroll_and_start_worker(name, arguments).await?;
        Ok(Worker { process, directory: self.path().join(name) })
    }

    /// Enrolls a machine if it is not enrolled yet, starts its worker, and waits until the machine is online. The
    /// worker stops when the returned process is dropped.
    pub(crate) async fn enroll_and_start_worker(&self, name: &str, arguments: &[&str]) -> anyhow::Result<Process> {
        let state = self.path().join(name);
        if !state.join("enrollment.json").exists() {
            self.enroll(name, &self.machine_owner).await?;
        }
        let mut command = Command::new(binary("gpubnb-provider")?);
        command.args(["run", "--name", name, "--state"]).arg(&state).args(arguments);
        command.envs(self.environment.iter().map(|(name, value)| (*name, value)));
        if !arguments.contains(&"--heartbeat") {
            command.args(["--heartbeat", "1"]);
        }
        let mut worker = Process::start(name, &mut command, self.path())?;
        let stranger = self.consumer.stranger();
        wait_until_ready(&mut worker, async || is_online(&stranger, name).await).await?;
        Ok(worker)
    }

    /// Enrolls a new machine with an enrollment code of the account `owner`. The machine's keys go to the directory
    /// `name`.
    pub async fn enroll(&self, name: &str, owner: &ApiClient) -> anyhow::Result<()> {
        let code = owner.post("/enrollments", &json!({})).await?;
        let code = code["code"].as_str().context("an answer without a code")?;
        let enrolled = Command::new(binary("gpubnb-provider")?)
            .args(["enroll", code, "--market", &self.url(), "--state"])
            .arg(self.path().join(name))
            .output()?;
        anyhow::ensure!(enrolled.status.success(), "enroll: {}", String::from_utf8_lossy(&enrolled.stderr));
        Ok(())
    }

    /// Runs a command of the worker's program, such as `status`. Returns true if the command succeeded, and its output:
    /// first stdout, then stderr.
    pub fn run_worker_command(&self, name: &str, arguments: &[&str]) -> anyhow::Result<(bool, String)> {
        let mut command = Command::new(binary("gpubnb-provider")?);
        command.args(arguments).arg("--state").arg(self.path().join(name));
        let output = command.envs(self.environment.iter().map(|(name, value)| (*name, value))).output()?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        Ok((output.status.success(), format!("{out}{err}")))
    }

    /// The directory in which the broker keeps the files of a stream. `None` if the stream does not exist.
    pub fn stream_directory(&self, stream: &str) -> Option<PathBuf> {
        fn find_below(directory: &Path, wanted: &Path) -> Option<PathBuf> {
            let entries: Vec<_> = fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path()).collect();
            let here = entries.iter().find(|path| path.ends_with(wanted)).cloned();
            here.or_else(|| entries.iter().filter(|path| path.is_dir()).find_map(|path| find_below(path, wanted)))
        }
        find_below(&self.path().join("nats"), &Path::new("streams").join(stream))
    }

    /// Runs the operator's tool, `gpubnb-projector`, with arguments such as `verify`.
    pub fn run_operator_tool(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        Ok(self.operator_tool_command()?.args(arguments).output()?)
    }

    /// A command that runs the operator's tool with the broker's address. The caller adds the other arguments.
    pub fn operator_tool_command(&self) -> anyhow::Result<Command> {
        let nats = self.nats_args("projector");
        let mut command = Command::new(binary("gpubnb-projector")?);
        command.args(["--nats", &nats.nats, "--nats-creds"]).arg(nats.nats_creds);
        Ok(command)
    }

    /// Runs a command of the services' program, such as `backup`.
    pub fn run_services_tool(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        Ok(self.command("services")?.args(arguments).output()?)
    }

    /// The machine of a worker as the API shows it to a stranger.
    pub async fn machine_view(&self, name: &str) -> anyhow::Result<Value> {
        self.consumer.stranger().get(&format!("/machines/{}", self.machine_id(name)?)).await
    }

    /// Waits until `wanted` returns true for the machine of a worker, as the API shows it. Returns that view.
    pub async fn wait_for_machine(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            let view = self.machine_view(name).await?;
            if wanted(&view) {
                return Ok(view);
            }
            if Instant::now() > deadline {
                bail!(
                    "machine {name} is not in the wanted state after {READY_TIMEOUT:?}: {view:#}\n{}",
                    self.process_log(name)
                );
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// The id of a worker's machine, read from the worker's directory.
    pub fn machine_id(&self, name: &str) -> anyhow::Result<String> {
        let path = self.path().join(name).join("machine");
        Ok(fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?.trim().to_owned())
    }

    /// The ids of the machines of all workers of this market.
    pub(crate) fn machine_ids(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path()).into_iter().flatten().flatten();
        entries.filter_map(|entry| fs::read_to_string(entry.path().join("machine")).ok()).collect()
    }

    /// The output of a process up to this moment. Empty if there is no such process.
    pub fn process_log(&self, name: &str) -> String {
        fs::read_to_string(self.path().join(format!("{name}.log"))).unwrap_or_default()
    }
}

/// Returns true if the market lists a machine of this name, and the machine is online.
pub(crate) async fn is_online(stranger: &ApiClient, name: &str) -> bool {
    let machines = stranger.get("/machines").await.unwrap_or_default();
    let named = |m: &Value| m["offer"]["name"] == name && m["presence"] == "Online";
    machines["rows"].as_array().is_some_and(|all| all.iter().any(named))
}

/// Removes all containers of a machine, and their volumes: the containers of its jobs, and the relays beside them,
/// which carry the connections of jobs to the internet.
pub(crate) fn remove_containers(machine: &str) {
    let ids: String =
        ["machine", "relay"].map(|kind| listed_containers(&format!("gpubnb.{kind}={}", machine.trim()))).concat();
    if !ids.trim().is_empty() {
        let removed = Command::new("docker").args(["rm", "--force", "--volumes"]).args(ids.split_whitespace()).output();
        if let Err(e) = removed {
            eprintln!("containers of machine {machine} are left: {e}");
        }
    }
}

/// The ids of the containers with a label, one on each line.
fn listed_containers(label: &str) -> String {
    let listed =
        Command::new("docker").args(["ps", "--all", "--quiet", "--filter", &format!("label={label}")]).output();
    listed.map(|listed| String::from_utf8_lossy(&listed.stdout).into_owned()).unwrap_or_default()
}

/// Unmounts the file systems of jobs below a directory, so that the directory can be removed.
pub(crate) fn unmount(dir: &Path) {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    for mount_point in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        if Path::new(mount_point).starts_with(dir) {
            let done = Command::new("umount").arg(mount_point).status();
            if !done.as_ref().is_ok_and(std::process::ExitStatus::success) {
                eprintln!("{mount_point} is still mounted: {done:?}");
            }
        }
    }
}
