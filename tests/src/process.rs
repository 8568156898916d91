//! A child process that is ended with its owner: asked first, then killed, always by its pid.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

/// How long a process may take to stop by itself.
const GRACE: Duration = Duration::from_secs(8);
const LOOK: Duration = Duration::from_millis(20);

/// A running child process; its output goes to a file.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// The place in the log where this run begins.
    begins: usize,
}

impl Process {
    /// Starts a command. Its output goes to `<directory>/<name>.log`.
    pub fn start(name: &str, command: &mut Command, directory: &Path) -> anyhow::Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log)?;
        let begins = usize::try_from(file.metadata()?.len()).unwrap_or(0);
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self { name: name.to_owned(), child, log, begins })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells whether the process has printed this text since its start.
    pub fn has_said(&self, words: &str) -> bool {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.get(self.begins..).is_some_and(|said| said.contains(words))
    }

    /// The last lines that the process printed.
    pub fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// Fails if the process has ended, with the last lines that it printed.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => anyhow::bail!("{} ended ({status}):\n{}", self.name, self.last_words()),
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        // A process that has ended cannot be signalled, and need not be.
        if let Some(pid) = pid {
            let _ = kill_process(pid, signal);
        }
    }

    /// Kills the process, as a power cut would.
    pub fn kill(mut self) {
        self.signal(Signal::KILL);
        drop(self.child.wait());
    }

    /// Asks the process to stop and waits; kills the process if it does not stop in time.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(LOOK);
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
