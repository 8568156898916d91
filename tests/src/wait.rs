//! Waits for a condition, with a deadline.
#![allow(clippy::panic, clippy::missing_panics_doc)]

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Longest wait for one condition.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Pause between two checks of the condition.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// Waits until `holds` returns true. Fails the test after a minute, with the name of the condition.
pub async fn wait_until(condition: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !holds().await {
        assert!(Instant::now() < deadline, "this did not happen within {TIMEOUT:?}: {condition}");
        sleep(CHECK_INTERVAL).await;
    }
}
