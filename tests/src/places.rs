//! A limit on the number of test markets that run at once on this computer, counted over all test binaries. A market is
//! five processes or more, and if too many markets run, every test misses its deadlines. The limit is a number of
//! places: a test takes a place before it starts a market of its own.

use std::{fs, fs::File, time::Duration};

use anyhow::{Context as _, bail};
use tokio::time::{Instant, sleep};

use crate::parts::root;

/// Longest wait for a place. A whole run of the tests takes less than this.
const PATIENCE: Duration = Duration::from_secs(3_600);
/// Pause between two searches for a free place.
const PAUSE: Duration = Duration::from_millis(50);

/// Permission to run one market. Another test can take the place once this value is dropped, or once the process that
/// holds this value has ended.
pub(crate) struct Place {
    _locked: File,
}

/// The number of places: one for each core, and at least two.
fn number_of_places() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).max(2)
}

/// Waits until one of the places is free. Each place is a file that its holder has locked.
pub(crate) async fn take() -> anyhow::Result<Place> {
    let directory = root().join("target/places");
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        for number in 0..number_of_places() {
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
        sleep(PAUSE).await;
    }
}
