//! The options of the service, `gpubnb-projector run`.

use std::path::PathBuf;

use clap::Args;
use gpubnb_runtime::monitor::MonitorArgs;

/// Options of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub monitor: MonitorArgs,
    /// Directory of the read models. It can be deleted: they are folded from the log again.
    #[arg(long, env = "GPUBNB_PROJECTOR_DATA", default_value = "data/projector", value_name = "DIR")]
    pub data: PathBuf,
    /// Another public key whose signed heads are trusted, such as this projector's former key. May be repeated.
    #[arg(long, value_name = "KEY")]
    pub head_key: Vec<String>,
    /// Size of the read models' cache, MiB, compressed. The system's page cache mostly holds the rest.
    #[arg(long, default_value_t = 16)]
    pub cache_mib: u64,
    /// Events between two snapshots of each model (on a long log at least a tenth of it). A projector that starts
    /// without rows loads them; 0 = write and load none.
    #[arg(long, env = "GPUBNB_PROJECTOR_SNAPSHOT_EVERY", default_value_t = 100_000, value_name = "EVENTS")]
    pub snapshot_every: u64,
    /// Seconds in one state after which a job counts as stuck at the latest. Without it each state has its own limit,
    /// such as ten minutes of waiting.
    #[arg(long, value_name = "SECONDS")]
    pub stuck_after: Option<u64>,
}
