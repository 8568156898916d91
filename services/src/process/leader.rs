//! Leadership: one replica at a time runs the process managers. Leadership only saves work: if two replicas lead for a
//! moment, the guards of the log keep the market correct.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream::{Context, kv::Store};
use gpubnb_events::Chain;
use gpubnb_log::stream::LEADERS;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

const KEY: &str = "manager";
const RENEW_INTERVAL: Duration = Duration::from_secs(2);

/// Tells whether this replica leads. Clones share the state.
#[derive(Clone, Default)]
pub(crate) struct Leadership(Arc<AtomicBool>);

impl Leadership {
    /// True if this replica leads now.
    pub(crate) fn is_leader(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Acquires the leader's lease (an entry that expires, in the bucket LEADERS) and renews it until shutdown. Then
    /// releases it.
    pub(crate) async fn hold(&self, js: Context, replica_id: String, shutdown: CancellationToken) {
        let mut revision = None;
        loop {
            match acquire_or_renew(&js, &replica_id, revision).await {
                Ok(renewed) => {
                    if revision.is_none() {
                        info!(replica = replica_id, "this replica leads");
                    }
                    revision = Some(renewed);
                }
                Err(e) => {
                    debug!(error = %Chain(e.as_ref()), "this replica does not lead");
                    revision = None;
                }
            }
            self.0.store(revision.is_some(), Ordering::Relaxed);
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep(RENEW_INTERVAL) => {}
            }
        }
        self.0.store(false, Ordering::Relaxed);
        if revision.is_some()
            && let Ok(store) = js.get_key_value(LEADERS).await
            && let Err(e) = store.purge(KEY).await
        {
            debug!(error = %e, "the lease could not be released; it expires by itself");
        }
    }
}

/// Writes the entry of the leader's lease, and returns the entry's new revision. If this replica holds the lease,
/// `revision` is the revision that it wrote last, and the write fails if another replica has written since. Otherwise
/// `revision` is `None`, and the write fails while the entry exists.
async fn acquire_or_renew(js: &Context, replica_id: &str, revision: Option<u64>) -> Result<u64, async_nats::Error> {
    let store: Store = js.get_key_value(LEADERS).await?;
    let value = replica_id.to_owned().into_bytes().into();
    Ok(match revision {
        Some(revision) => store.update(KEY, value, revision).await?,
        None => store.create(KEY, value).await?,
    })
}
