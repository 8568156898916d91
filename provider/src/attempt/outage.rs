//! An outage of Docker. A running attempt survives an outage that is not longer than a restart of Docker.

use std::time::Duration;

use bollard::errors::Error;
use gpubnb_events::event::Reason;
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::Problem;

/// Longest outage. After that the attempt fails.
const MAX_OUTAGE: Duration = Duration::from_secs(120);
/// Pause between two tries.
const RETRY: Duration = Duration::from_secs(1);

/// The outage of Docker, if Docker does not answer.
#[derive(Debug, Default)]
pub(super) struct Outage {
    /// When Docker failed to answer for the first time.
    since: Option<Instant>,
}

impl Outage {
    /// Returns true if Docker has failed to answer at least once.
    pub(super) fn has_begun(&self) -> bool {
        self.since.is_some()
    }

    /// Waits before the next try. Fails if the container does not exist, or the outage is too long.
    pub(super) async fn wait_before_retry(&mut self, e: Error) -> Result<(), Problem> {
        if matches!(e, Error::DockerResponseServerError { status_code: 404, .. }) {
            return Err(Problem::new(Reason::RuntimeMisconfigured, "the container was removed by someone else"));
        }
        if self.since.get_or_insert_with(Instant::now).elapsed() > MAX_OUTAGE {
            return Err(Problem::caused(Reason::RuntimeMisconfigured, e));
        }
        warn!(error = %e, "Docker does not answer: trying again");
        sleep(RETRY).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_removed_container_and_a_long_outage_are_failures() {
        let mut outage = Outage::default();
        let gone = Error::DockerResponseServerError { status_code: 404, message: String::new() };
        assert!(outage.wait_before_retry(gone).await.is_err());
        assert!(!outage.has_begun());
        outage.since = Instant::now().checked_sub(MAX_OUTAGE + RETRY);
        let problem = outage.wait_before_retry(Error::RequestTimeoutError).await.unwrap_err();
        assert_eq!(problem.reason, Reason::RuntimeMisconfigured);
    }
}
