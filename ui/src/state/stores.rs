//! Looks after the stores of files: measures how full they are, for alerts before files are refused, and removes the
//! files whose time is over.

use std::time::Duration;

use gpubnb_events::{Clock as _, SystemClock};
use gpubnb_files::{Files, FilesError};
use gpubnb_runtime::metric;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Time between two measurements.
const INTERVAL: Duration = Duration::from_secs(30);
/// Expired files are removed at every 120th measurement, which is once an hour.
const EXPIRE_EVERY: u64 = 120;

/// Looks after these stores until shutdown. Each has its name.
pub(crate) async fn watch_stores(stores: [(&'static str, Files); 2], shutdown: CancellationToken) {
    let watching = async {
        for turn in 0_u64.. {
            for (name, files) in &stores {
                if let Err(e) = watch(name, files, turn % EXPIRE_EVERY == 0).await {
                    warn!(store = name, error = %e, "a store of files");
                }
            }
            tokio::time::sleep(INTERVAL).await;
        }
    };
    shutdown.run_until_cancelled(watching).await;
}

async fn watch(name: &'static str, files: &Files, expire: bool) -> Result<(), FilesError> {
    if expire {
        files.remove_expired(SystemClock.now()).await?;
    }
    let room = files.room().await?;
    // A store without a limit is never full. The lost precision does not matter.
    #[allow(clippy::cast_precision_loss)]
    let filled = room.most.map_or(0.0, |most| room.used as f64 / most.max(1) as f64);
    metrics::gauge!(metric::STORE_FILLED, "store" => name).set(filled);
    Ok(())
}
