//! A Docker engine that belongs to one test, which can stop the engine and start it again. The engine runs in a network
//! namespace of its own, because it would disturb the network of the computer's usual engine otherwise.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::process::Process;

/// Longest time from the start of an engine to its first answer.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// A Docker engine of a test. Only root can start one.
pub struct Engine {
    /// The directory of all the engine's files.
    home: PathBuf,
    /// Further options of `dockerd`.
    options: Vec<String>,
    /// The process `dockerd`; `None` while the engine is stopped.
    process: Option<Process>,
}

/// The program of NVIDIA's container toolkit that Docker runs before a container with GPUs starts.
const HOOK: &str = "nvidia-container-runtime-hook";

impl Engine {
    /// Starts an engine that finds a stand-in for NVIDIA's container toolkit. The stand-in gives a container no GPU,
    /// but saves the container's configuration, which names the GPUs that the real toolkit would give.
    pub async fn start_with_gpus(home: &Path) -> anyhow::Result<Self> {
        let programs = home.join("bin");
        fs::create_dir_all(&programs)?;
        let hook = programs.join(HOOK);
        let saved = home.join("config.json").display().to_string();
        // The hook reads the container's state from its standard input. The state names the bundle, which is the
        // directory with the container's configuration.
        let script = format!(
            "#!/bin/sh\n\
             cp \"$(sed -n 's/.*\"bundle\":\"\\([^\"]*\\)\".*/\\1/p')/config.json\" {saved}.partial\n\
             mv {saved}.partial {saved}\n"
        );
        fs::write(&hook, script)?;
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755))?;
        // Workers look for a runtime named `nvidia`; the usual `runc` serves under this name.
        Self::start(home, &["--add-runtime", "nvidia=runc"]).await
    }

    /// The GPUs of the last container that was started with GPUs. Fails if there was no such container yet.
    pub fn gpus_of_last_container(&self) -> anyhow::Result<Vec<String>> {
        let config: Value = serde_json::from_str(&fs::read_to_string(self.home.join("config.json"))?)?;
        let variables = config["process"]["env"].as_array().context("the container has no environment")?;
        let given = variables.iter().filter_map(|v| v.as_str()?.strip_prefix("NVIDIA_VISIBLE_DEVICES="));
        Ok(given.flat_map(|gpus| gpus.split(',')).map(str::to_owned).collect())
    }

    /// Starts an engine whose files are in the directory `home`, with further options of `dockerd`, and loads the image
    /// of the demo jobs into the engine. The engine does not read the computer's own configuration of Docker.
    pub async fn start(home: &Path, options: &[&str]) -> anyhow::Result<Self> {
        fs::create_dir_all(home)?;
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut engine = Self { home: home.to_owned(), options, process: None };
        engine.start_daemon().await?;
        let mut saved = Command::new("docker").args(["save", "gpubnb/workloads:1"]).stdout(Stdio::piped()).spawn()?;
        let image = saved.stdout.take().context("no pipe from docker save")?;
        let loaded = engine.docker().arg("load").stdin(image).output()?;
        ensure!(saved.wait()?.success() && loaded.status.success(), "the image was not loaded: {loaded:?}");
        Ok(engine)
    }

    /// The address of the engine, for the variable `DOCKER_HOST`: `unix://<path of the socket>`.
    pub fn host(&self) -> PathBuf {
        PathBuf::from(format!("unix://{}", self.home.join("docker.sock").display()))
    }

    /// A command of Docker's client that talks to this engine.
    fn docker(&self) -> Command {
        let mut docker = Command::new("docker");
        docker.arg("--host").arg(self.host());
        docker
    }

    /// Stops the engine, as an update of Docker's package does.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Starts the process `dockerd` and waits until it answers. Containers and images of an earlier run are kept.
    pub async fn start_daemon(&mut self) -> anyhow::Result<()> {
        let home = &self.home;
        let mut command = Command::new("unshare");
        // The directory `bin` comes first in PATH, so that the engine finds the stand-in for NVIDIA's hook.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", home.join("bin").display()));
        let configuration = home.join("daemon.json");
        fs::write(&configuration, "{}")?;
        command.args(["--net", "dockerd", "--host"]).arg(self.host()).arg("--config-file").arg(configuration);
        for (option, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")] {
            command.arg(option).arg(home.join(name));
        }
        command.args(["--bridge=none", "--iptables=false", "--ip6tables=false"]).args(&self.options);
        self.process = Some(Process::start("dockerd", &mut command, home)?);
        let deadline = Instant::now() + READY_TIMEOUT;
        while !self.docker().arg("info").output()?.status.success() {
            self.process.as_mut().map_or(Ok(()), Process::check_running)?;
            if Instant::now() > deadline {
                bail!(
                    "the engine does not answer: {}",
                    self.process.as_ref().map_or_else(String::new, Process::last_lines)
                );
            }
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // With Docker's option `live-restore` the containers would outlive the engine, so they are removed first.
        if let Ok(listed) = self.docker().args(["ps", "--all", "--quiet"]).output() {
            let ids = String::from_utf8_lossy(&listed.stdout).into_owned();
            if !ids.trim().is_empty() {
                drop(self.docker().args(["rm", "--force"]).args(ids.split_whitespace()).output());
            }
        }
        self.process = None;
        crate::market::unmount(&self.home);
    }
}
