//! Reconciles this machine with the platform: the worker sends the list of its attempts, and the platform answers with
//! the desired state of each. A lost message about a cancellation therefore has no lasting effect.

use std::{sync::Arc, time::Duration};

use gpubnb_events::command::{Accept, DesiredMachineState, Inventory};
use gpubnb_runtime::rpc::RpcError;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{control::Availability, lease_table::LeaseTable, platform::Platform, settings::Settings};

/// Time between two lists while attempts run.
const BUSY_INTERVAL: Duration = Duration::from_secs(1);
/// Time between two lists while no attempt runs.
const IDLE_INTERVAL: Duration = Duration::from_secs(10);

/// Reconciles until shutdown.
pub(crate) async fn reconcile(
    platform: Platform,
    table: Arc<LeaseTable>,
    availability: Arc<Availability>,
    settings: Settings,
    shutdown: CancellationToken,
) {
    let mut last = tokio::time::Instant::now();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(BUSY_INTERVAL) => {}
        }
        let leases: Vec<_> =
            table.running().into_iter().map(|running| Accept { job: running.job, lease: running.lease }).collect();
        if leases.is_empty() && last.elapsed() < IDLE_INTERVAL {
            continue;
        }
        last = tokio::time::Instant::now();
        match platform.call::<DesiredMachineState>("sync", &Inventory { leases }).await {
            Ok(desired) => {
                availability.set_takes_jobs(desired.takes_jobs);
                for (lease, state) in desired.leases {
                    table.set_desired(lease, state.into());
                }
                if let Some(desired) = desired.settings {
                    settings.adopt(&desired).await;
                }
            }
            // The attempts go on: a missing answer is no reason to stop an attempt.
            Err(RpcError::Unavailable(problem)) => debug!(%problem, "the list of attempts was not answered"),
            Err(RpcError::Refused(refusal)) => warn!(%refusal, "the list of attempts was refused"),
        }
    }
}
