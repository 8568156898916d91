//! Waiting for something observable, with a deadline.
#![allow(clippy::panic, clippy::missing_panics_doc)]

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Longest wait of a test for one thing.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// Waits until a condition holds. Fails the test with the name of the condition if it does not within a minute.
pub async fn until(condition: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "this did not come about within {PATIENCE:?}: {condition}");
        sleep(LOOK).await;
    }
}
