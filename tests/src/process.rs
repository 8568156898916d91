//! A child process that stops when its handle is dropped. It gets SIGTERM first, and SIGKILL if it does not stop in
//! time.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

/// Time between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(8);
/// Pause between two checks whether a process has ended.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// A running child process. Its output goes to a log file.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// The length of the log file when this process was started, bytes.
    log_start: usize,
}

impl Process {
    /// Starts a command. Its output is appended to `<directory>/<name>.log`.
    pub fn start(name: &str, command: &mut Command, directory: &Path) -> anyhow::Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log)?;
        let log_start = usize::try_from(file.metadata()?.len()).unwrap_or(0);
        // The errors of programs are compared with texts, among which a backtrace is none.
        let child = command
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self { name: name.to_owned(), child, log, log_start })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns true if the process has printed this text since its start.
    pub fn has_printed(&self, expected: &str) -> bool {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.get(self.log_start..).is_some_and(|printed| printed.contains(expected))
    }

    /// The last twelve lines that the process printed.
    pub fn last_lines(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// Fails if the process has ended. The error holds the last lines that it printed.
    pub fn check_running(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => anyhow::bail!("{} ended ({status}):\n{}", self.name, self.last_lines()),
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        // The signal fails if the process has ended, and then it is not needed.
        if let Some(pid) = pid {
            let _ = kill_process(pid, signal);
        }
    }

    /// Kills the process with SIGKILL, so that it has no time to clean up.
    pub fn kill(mut self) {
        self.signal(Signal::KILL);
        drop(self.child.wait());
    }

    /// Stops the process with SIGTERM, and with SIGKILL if it does not stop in time.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(CHECK_INTERVAL);
        }
        self.signal(Signal::KILL);
        drop(self.child.wait());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.stop();
        }
    }
}
