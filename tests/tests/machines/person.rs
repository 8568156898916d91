//! A person at a terminal, with the client `gpubnb`.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
};

use gpubnb_tests::{market::Market, programs::binary};
use serde_json::Value;

/// A person at a terminal.
pub(crate) struct Person {
    pub(crate) home: PathBuf,
    url: String,
    token: String,
}

impl Person {
    pub(crate) async fn new(market: &Market, name: &str) -> Self {
        let home = market.path().join(name);
        fs::create_dir_all(&home).unwrap();
        let token = market.consumer.new_token(&["jobs:read", "jobs:write"]).await.unwrap();
        Self { home, url: market.url(), token }
    }

    pub(crate) fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.home.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("gpubnb").unwrap());
        command.args(arguments).current_dir(&self.home).env("XDG_CONFIG_HOME", self.home.join("config"));
        command.env("GPUBNB_URL", &self.url).env("GPUBNB_TOKEN", &self.token);
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub(crate) fn run_successfully(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.run_successfully(&[arguments, &["--json"]].concat())).unwrap()
    }

    /// Runs a command beside others.
    pub(crate) fn start(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// The message of a command that must fail.
    pub(crate) fn refusal(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }
}
