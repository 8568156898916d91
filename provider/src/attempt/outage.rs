//! An outage of Docker, which a running attempt outlives: it may last as long as a restart of Docker takes.

use std::time::Duration;

use bollard::errors::Error;
use gpubnb_events::event::Reason;
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::Problem;

/// After this time without an answer the attempt fails.
const LONGEST: Duration = Duration::from_secs(120);
const RETRY: Duration = Duration::from_secs(1);

/// How long Docker has not answered, if it does not.
#[derive(Debug, Default)]
pub(super) struct Outage {
    since: Option<Instant>,
}

impl Outage {
    /// Returns true where Docker has failed to answer, and was not seen well since.
    pub(super) fn has_begun(&self) -> bool {
        self.since.is_some()
    }

    /// Waits a moment before Docker is asked again. Fails where asking again is of no use.
    pub(super) async fn endure(&mut self, e: Error) -> Result<(), Problem> {
        if matches!(e, Error::DockerResponseServerError { status_code: 404, .. }) {
            return Err(Problem::new(Reason::RuntimeMisconfigured, "the container was removed by someone else"));
        }
        if self.since.get_or_insert_with(Instant::now).elapsed() > LONGEST {
            return Err(Problem::caused(Reason::RuntimeMisconfigured, e));
        }
        warn!(error = %e, "Docker does not answer: asking again");
        sleep(RETRY).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_container_that_is_gone_is_not_waited_for_and_an_outage_has_an_end() {
        let mut outage = Outage::default();
        let gone = Error::DockerResponseServerError { status_code: 404, message: String::new() };
        assert!(outage.endure(gone).await.is_err());
        assert!(!outage.has_begun());
        outage.since = Instant::now().checked_sub(LONGEST + RETRY);
        let problem = outage.endure(Error::RequestTimeoutError).await.unwrap_err();
        assert_eq!(problem.reason, Reason::RuntimeMisconfigured);
    }
}
