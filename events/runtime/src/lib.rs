//! Code that several processes share: the connection to the broker, requests and answers, log lines, metrics, traces,
//! the modes of files, and permits for file transfers.
//!
//! Must not come here: access to the stream MARKET (`gpubnb-log`), or code that only one process needs.

#[cfg(feature = "monitor")]
mod collector;
pub mod metric;
#[cfg(feature = "monitor")]
pub mod monitor;
pub mod nats;
pub mod observe;
pub mod permit;
pub mod rpc;
pub mod trace;
mod turns;

/// Lets only the user of this process read the files, and list the directories, that the process makes from now on,
/// unless the code gives a file another mode. Others can pass through the directories (mode 0711), because Docker may
/// map the root of a container to another user. Call this function before any file is made.
pub fn make_files_private() {
    use rustix::fs::Mode;
    rustix::process::umask(Mode::RGRP | Mode::WGRP | Mode::ROTH | Mode::WOTH);
}

/// Lets this process have as many open files as the system allows. Without this, most systems stop at 1,024.
pub fn allow_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // A refusal leaves the limit as it was, which is enough for a few jobs.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
