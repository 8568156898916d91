//! Reconciles with the platform: the worker lists its attempts, and the platform answers with the state in which each
//! should be.

use std::{sync::Arc, time::Duration};

use gpubnb_events::command::{Accept, Desired, Inventory};
use gpubnb_runtime::rpc::Failure;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{control::Availability, lease_table::LeaseTable, platform::Platform};

/// Time between two lists, while there are attempts and while there are none.
const BUSY: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(10);

/// Reconciles until shutdown.
pub(crate) async fn reconcile(
    platform: Platform,
    table: Arc<LeaseTable>,
    availability: Arc<Availability>,
    shutdown: CancellationToken,
) {
    let mut last = tokio::time::Instant::now();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(BUSY) => {}
        }
        let leases: Vec<_> =
            table.running().into_iter().map(|held| Accept { job: held.job, lease: held.lease }).collect();
        if leases.is_empty() && last.elapsed() < IDLE {
            continue;
        }
        last = tokio::time::Instant::now();
        match platform.ask::<Desired>("sync", &Inventory { leases }).await {
            Ok(desired) => {
                availability.set_takes_jobs(desired.takes_jobs);
                for (lease, state) in desired.leases {
                    table.set_desired(lease, state.into());
                }
            }
            // The attempts run on: an answer that did not come is no reason to stop one.
            Err(Failure::Unavailable(problem)) => debug!(%problem, "the list of attempts was not answered"),
            Err(Failure::Refused(refusal)) => warn!(%refusal, "the list of attempts was refused"),
        }
    }
}
