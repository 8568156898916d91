//! The options of the service.

use std::path::PathBuf;

use clap::Args;
use gpubnb_runtime::monitor::MonitorArgs;

/// Options of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub monitor: MonitorArgs,
    /// Where the read models are kept. They can be deleted: they come back by replay.
    #[arg(long, env = "GPUBNB_PROJECTOR_DATA", default_value = "data/projector", value_name = "DIR")]
    pub data: PathBuf,
    /// Another key whose signed heads are believed: the one that this projector's credential had before. May be repeated.
    #[arg(long, value_name = "KEY")]
    pub head_key: Vec<String>,
    /// What sled's cache may hold, MiB, as it lies on the disk. What it does not hold, the system's own cache mostly does.
    #[arg(long, default_value_t = 16)]
    pub cache_mib: u64,
    /// Events after which each model is kept anew in SNAPSHOTS (of a long log: a tenth of it), for a projector that
    /// starts without rows; 0: none is kept, and none is taken up.
    #[arg(long, env = "GPUBNB_PROJECTOR_SNAPSHOT_EVERY", default_value_t = 100_000, value_name = "EVENTS")]
    pub snapshot_every: u64,
    /// Seconds after which a job that stays in one state counts as stuck, where it would not count before: ten minutes
    /// for one that waits, and other times in other states.
    #[arg(long, value_name = "SECONDS")]
    pub stuck_after: Option<u64>,
}
