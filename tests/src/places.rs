//! Bounds how many markets of tests run at once on this machine, over all test binaries: a market is five processes or
//! more, and with too many of them every test misses its deadlines.

use std::{fs, fs::File, time::Duration};

use anyhow::{Context as _, bail};
use tokio::time::{Instant, sleep};

use crate::parts::root;

/// Longest wait for a place. Longer than a whole run of the tests takes.
const PATIENCE: Duration = Duration::from_secs(3_600);
/// Pause between two looks for a free place.
const LOOK: Duration = Duration::from_millis(50);

/// Permission to run one market. Another test may have the place once this value is dropped, or its process has ended.
pub(crate) struct Place {
    _locked: File,
}

/// The number of markets that may run at once: one for each core, and at least two.
fn most() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).max(2)
}

/// Waits until one of the places is free. Each place is a file that its holder has locked.
pub(crate) async fn take() -> anyhow::Result<Place> {
    let directory = root().join("target/places");
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        for number in 0..most() {
            let file = File::create(directory.join(number.to_string()))?;
            match file.try_lock() {
                Ok(()) => return Ok(Place { _locked: file }),
                Err(fs::TryLockError::WouldBlock) => {}
                Err(fs::TryLockError::Error(e)) => return Err(e).context("locking a place for a market"),
            }
        }
        if Instant::now() > deadline {
            bail!("no place for a market was free within {PATIENCE:?}");
        }
        sleep(LOOK).await;
    }
}
