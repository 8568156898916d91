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
    /// Directory of the read models. If you delete the directory, the read models are folded again from the log.
    #[arg(long, env = "GPUBNB_PROJECTOR_DATA", default_value = "data/projector", value_name = "DIR")]
    pub data: PathBuf,
    /// Another public key whose signed tree heads are trusted, such as this projector's former key. May be repeated.
    #[arg(long, value_name = "KEY")]
    pub head_key: Vec<String>,
    /// Size of the cache of the read models, MiB of compressed rows. Other rows are read from the files.
    #[arg(long, default_value_t = 16)]
    pub cache_mib: u64,
    /// Events between two snapshots of each model. On a long log the distance is larger: a tenth of the events that
    /// the last snapshot contains. A projector without read models loads the snapshots when it starts; 0 = write and
    /// load no snapshots.
    #[arg(long, env = "GPUBNB_PROJECTOR_SNAPSHOT_EVERY", default_value_t = 100_000, value_name = "EVENTS")]
    pub snapshot_every: u64,
    /// A job counts as stuck after this many seconds in one state. By default each state has its own limit, for example
    /// ten minutes for a waiting job. This option can only lower a limit.
    #[arg(long, value_name = "SECONDS")]
    pub stuck_after: Option<u64>,
}
