//! Finds out whether a job reached its limit of processes and threads. A program only sees that a new thread cannot be
//! made, and most programs do not say why.
//!
//! The kernel counts each refused process or thread in the file `pids.events` of the container's cgroup. The cgroup is
//! gone as soon as the container has ended, so the file is read again and again while the job runs.

use std::{
    convert::Infallible,
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::time::sleep;
use tracing::debug;

use super::context::AttemptContext;

/// Where the cgroups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";
/// Time between two looks at the file. If the program ends sooner after it reached the limit, the report does not name
/// the limit.
const INTERVAL: Duration = Duration::from_millis(100);

/// A watch of the limit. Without a cgroup that the worker can see, nothing is watched.
#[derive(Debug, Default)]
pub(super) struct PidsWatch {
    is_limit_reached: AtomicBool,
}

impl PidsWatch {
    /// Watches the limit of the attempt's container. Never returns.
    pub(super) async fn run(&self, context: &AttemptContext) -> Infallible {
        match find_events_file(context).await {
            Ok(file) => {
                // The file is gone when the container has ended.
                while let Ok(has_refused) = has_refused(&file) {
                    self.is_limit_reached.store(has_refused, Ordering::Relaxed);
                    sleep(INTERVAL).await;
                }
            }
            Err(e) => debug!(error = %e, "the job's limit of processes is not watched"),
        }
        std::future::pending().await
    }

    /// True if the kernel refused the job a process or a thread.
    pub(super) fn is_limit_reached(&self) -> bool {
        self.is_limit_reached.load(Ordering::Relaxed)
    }
}

/// The file with the number of refusals of the attempt's container.
async fn find_events_file(context: &AttemptContext) -> io::Result<PathBuf> {
    let state = context.container.state().await.map_err(io::Error::other)?;
    let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", state.pid.unwrap_or_default()))?;
    events_file(&cgroups).ok_or_else(|| io::Error::other("the process has no cgroup for processes"))
}

/// True if the number of refusals in the file, such as `max 3`, is above zero.
fn has_refused(file: &Path) -> io::Result<bool> {
    let text = fs::read_to_string(file)?;
    Ok(text.split_whitespace().any(|word| word.parse().is_ok_and(|refused: u64| refused > 0)))
}

/// The file `pids.events` of the cgroup, from the text of `/proc/<pid>/cgroup`. Version 2 of cgroups has one line
/// `0::/path`. Version 1 has a line for each controller, such as `7:pids:/path`.
fn events_file(cgroups: &str) -> Option<PathBuf> {
    let parts = || cgroups.lines().map(|line| line.splitn(3, ':').collect::<Vec<_>>());
    let path_below = |root: &Path, path: &str| root.join(path.trim_start_matches('/')).join("pids.events");
    let version_1 = parts().find_map(|parts| match parts[..] {
        [_, controllers, path] if controllers.split(',').any(|name| name == "pids") => {
            Some(path_below(&Path::new(CGROUPS).join("pids"), path))
        }
        _ => None,
    });
    let version_2 = || {
        parts().find_map(|parts| match parts[..] {
            ["0", "", path] => Some(path_below(Path::new(CGROUPS), path)),
            _ => None,
        })
    };
    version_1.or_else(version_2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_found_in_both_versions_of_cgroups() {
        let found = |text: &str| events_file(text).map(|path| path.display().to_string());
        assert_eq!(
            found("0::/system.slice/docker-1.scope\n").as_deref(),
            Some("/sys/fs/cgroup/system.slice/docker-1.scope/pids.events")
        );
        let both = "7:pids:/docker/1\n3:cpu,cpuacct:/docker/1\n0::/docker/1\n";
        assert_eq!(found(both).as_deref(), Some("/sys/fs/cgroup/pids/docker/1/pids.events"));
        assert_eq!(found("3:cpu:/x\n"), None);
    }
}
