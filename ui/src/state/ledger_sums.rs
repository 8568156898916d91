//! The sums of the ledger for the console. The projector adds up every account for them, so they are asked for rarely,
//! however many consoles are open.

use std::sync::Arc;

use gpubnb_events::{Actor, Millis, Timestamp};
use gpubnb_query::{QueryClient, view::ops::LedgerSums};
use gpubnb_runtime::rpc::RpcError;
use tokio::sync::Mutex;

/// The sums are asked for again after this time.
const FRESH: Millis = Millis(10_000);

/// The last sums, and when they were asked for. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct RecentSums(Arc<Mutex<Option<(LedgerSums, Timestamp)>>>);

impl RecentSums {
    /// The sums, at most ten seconds old. One question at a time is asked, and all who wait get its answer.
    pub(crate) async fn recent(
        &self,
        queries: &QueryClient,
        actor: Actor,
        now: Timestamp,
    ) -> Result<LedgerSums, RpcError> {
        let mut last = self.0.lock().await;
        if let Some((sums, at)) = &*last
            && now.since(*at) < FRESH
        {
            return Ok(*sums);
        }
        let sums = queries.accounts(actor, None).await?.sums;
        *last = Some((sums, now));
        Ok(sums)
    }
}
