//! Desired against actual: the worker says what it has in hand and hears what is wanted of each attempt.

use std::{sync::Arc, time::Duration};

use gpubnb_events::command::{Accept, Desired, Inventory};
use gpubnb_runtime::rpc::Failure;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{control::Wanted, hand::Hand, platform::Platform};

const BUSY: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(10);

/// Reconciles until shutdown.
pub(crate) async fn reconcile(platform: Platform, hand: Arc<Hand>, wanted: Arc<Wanted>, shutdown: CancellationToken) {
    let mut last = tokio::time::Instant::now();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(BUSY) => {}
        }
        let leases: Vec<_> =
            hand.leases().into_iter().map(|held| Accept { job: held.job, lease: held.lease }).collect();
        if leases.is_empty() && last.elapsed() < IDLE {
            continue;
        }
        last = tokio::time::Instant::now();
        match platform.ask::<Desired>("sync", &Inventory { leases }).await {
            Ok(desired) => {
                wanted.set(desired.takes_jobs);
                for (lease, wish) in desired.leases {
                    hand.wish(lease, wish.into());
                }
            }
            // Nothing is torn down because nobody answered.
            Err(Failure::Unavailable(problem)) => debug!(problem, "sync"),
            Err(Failure::Refused(refusal)) => warn!(%refusal, "sync"),
        }
    }
}
