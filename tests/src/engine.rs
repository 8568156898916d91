//! A Docker engine of a test's own, that can be stopped and started again. It lives in a network namespace of its own: an
//! engine beside another one would take the first one's network away.

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

/// How long an engine may take to answer.
const READY: Duration = Duration::from_secs(60);

/// A Docker engine. Needs root.
pub struct Engine {
    home: PathBuf,
    options: Vec<String>,
    process: Option<Process>,
}

/// The program of NVIDIA's container toolkit that Docker runs before a container with GPUs starts.
const HOOK: &str = "nvidia-container-runtime-hook";

impl Engine {
    /// Starts an engine that finds NVIDIA's container toolkit: a stand-in that gives no GPU away, but notes what the
    /// container would see.
    pub async fn with_gpus(home: &Path) -> anyhow::Result<Self> {
        let programs = home.join("bin");
        fs::create_dir_all(&programs)?;
        let hook = programs.join(HOOK);
        let note = home.join("config.json").display().to_string();
        // The hook gets the container's state on its standard input; its bundle holds the container's configuration.
        let script = format!(
            "#!/bin/sh\ncp \"$(sed -n 's/.*\"bundle\":\"\\([^\"]*\\)\".*/\\1/p')/config.json\" {note}.partial\nmv {note}.partial {note}\n"
        );
        fs::write(&hook, script)?;
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755))?;
        Self::start(home, &["--add-runtime", "nvidia=runc"]).await
    }

    /// The GPUs that the last container with GPUs was to see.
    pub fn gpus_given(&self) -> anyhow::Result<Vec<String>> {
        let config: Value = serde_json::from_str(&fs::read_to_string(self.home.join("config.json"))?)?;
        let variables = config["process"]["env"].as_array().context("a container's environment")?;
        let given = variables.iter().filter_map(|v| v.as_str()?.strip_prefix("NVIDIA_VISIBLE_DEVICES="));
        Ok(given.flat_map(|gpus| gpus.split(',')).map(str::to_owned).collect())
    }

    /// Starts an engine in a directory, with these options besides, and gives it the images for jobs. The machine's own
    /// configuration of Docker is left aside.
    pub async fn start(home: &Path, options: &[&str]) -> anyhow::Result<Self> {
        fs::create_dir_all(home)?;
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut engine = Self { home: home.to_owned(), options, process: None };
        engine.again().await?;
        let mut saved = Command::new("docker").args(["save", "gpubnb/workloads:1"]).stdout(Stdio::piped()).spawn()?;
        let images = saved.stdout.take().context("the saved images")?;
        let loaded = engine.docker().arg("load").stdin(images).output()?;
        ensure!(saved.wait()?.success() && loaded.status.success(), "the images were not handed on: {loaded:?}");
        Ok(engine)
    }

    /// The address of the engine, in the form of `DOCKER_HOST`.
    pub fn host(&self) -> PathBuf {
        PathBuf::from(format!("unix://{}", self.home.join("docker.sock").display()))
    }

    fn docker(&self) -> Command {
        let mut docker = Command::new("docker");
        docker.arg("--host").arg(self.host());
        docker
    }

    /// Stops the engine, as a package's update does.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Starts the engine again, with its containers and images.
    pub async fn again(&mut self) -> anyhow::Result<()> {
        let home = &self.home;
        let mut command = Command::new("unshare");
        // Programs that a test left in the directory come first.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", home.join("bin").display()));
        let configuration = home.join("daemon.json");
        fs::write(&configuration, "{}")?;
        command.args(["--net", "dockerd", "--host"]).arg(self.host()).arg("--config-file").arg(configuration);
        for (option, place) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")] {
            command.arg(option).arg(home.join(place));
        }
        command.args(["--bridge=none", "--iptables=false", "--ip6tables=false"]).args(&self.options);
        self.process = Some(Process::start("dockerd", &mut command, home)?);
        let deadline = Instant::now() + READY;
        while !self.docker().arg("info").output()?.status.success() {
            self.process.as_mut().map_or(Ok(()), Process::check)?;
            if Instant::now() > deadline {
                bail!(
                    "the engine does not answer: {}",
                    self.process.as_ref().map_or_else(String::new, Process::last_words)
                );
            }
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // With live-restore the containers would outlive the engine.
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
