//! A limit on the number of test markets that run at once on this computer, counted over all test binaries. A market is
//! five processes or more, and if too many markets run, every test misses its deadlines. The limit is a number of
//! slots: a test takes a slot before it starts its own market.

use std::{fs, fs::File, time::Duration};

use anyhow::{Context as _, bail};
use tokio::time::{Instant, sleep};

use crate::programs::root;

/// Longest wait for a slot. A whole run of the tests takes less than this.
const TIMEOUT: Duration = Duration::from_secs(3_600);
/// Pause between two searches for a free slot.
const PAUSE: Duration = Duration::from_millis(50);

/// Permission to run one market. The slot is free again when this value is dropped or when its process ends.
pub(crate) struct MarketSlot {
    _locked_file: File,
}

/// The number of slots: one for each core, and at least two.
fn number_of_slots() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).max(2)
}

/// Waits until a slot is free, and takes it. Each slot is a file in `target/market-slots`. The file of a taken slot is
/// locked.
pub(crate) async fn acquire() -> anyhow::Result<MarketSlot> {
    let directory = root().join("target/market-slots");
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let deadline = Instant::now() + TIMEOUT;
    loop {
        for number in 0..number_of_slots() {
            let file = File::create(directory.join(number.to_string()))?;
            match file.try_lock() {
                Ok(()) => return Ok(MarketSlot { _locked_file: file }),
                Err(fs::TryLockError::WouldBlock) => {}
                Err(fs::TryLockError::Error(e)) => return Err(e).context("locking a slot for a market"),
            }
        }
        if Instant::now() > deadline {
            bail!("no slot for a market was free within {TIMEOUT:?}");
        }
        sleep(PAUSE).await;
    }
}
