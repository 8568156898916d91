//! One lock per aggregate: commands on the same aggregate run one after the other within a replica, so that they do not
//! conflict with each other.
//!
//! The locks only save retries. Two replicas may still decide about one aggregate at the same time; then the guard of
//! the log accepts one append and refuses the other.

use std::{collections::HashMap, sync::Arc};

use gpubnb_events::Aggregate;
use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

type Lock = Arc<tokio::sync::Mutex<()>>;

/// The locks that commands hold or wait for. An aggregate without such a command has no entry.
///
/// The outer mutex blocks its thread: it is held for one access to the map and never across an `await`. The inner
/// mutexes are tokio's, because a command holds its lock while it waits for the broker.
#[derive(Clone, Default)]
pub(crate) struct AggregateLocks(Arc<Mutex<HashMap<Aggregate, Lock>>>);

/// The lock of one aggregate, held until this value is dropped.
pub(crate) struct HeldLock {
    locks: AggregateLocks,
    aggregate: Aggregate,
    guard: Option<OwnedMutexGuard<()>>,
}

impl AggregateLocks {
    /// Waits for the lock of an aggregate.
    pub(crate) async fn lock(&self, aggregate: Aggregate) -> HeldLock {
        let lock = Arc::clone(self.0.lock().entry(aggregate).or_default());
        HeldLock { locks: self.clone(), aggregate, guard: Some(lock.lock_owned().await) }
    }
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        self.guard = None;
        let mut locks = self.locks.0.lock();
        // A count of one means that only the map has the lock: no command holds it or waits for it.
        if locks.get(&self.aggregate).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            locks.remove(&self.aggregate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_events::JobId;

    #[tokio::test]
    async fn commands_on_one_aggregate_wait_and_unused_locks_are_removed() {
        let (locks, aggregate) = (AggregateLocks::default(), Aggregate::Job(JobId::generate()));
        let first = locks.lock(aggregate).await;
        let waiting = tokio::spawn({
            let locks = locks.clone();
            async move { locks.lock(aggregate).await }
        });
        drop(locks.lock(Aggregate::Job(JobId::generate())).await);
        assert!(!waiting.is_finished());
        drop(first);
        drop(waiting.await.unwrap());
        assert!(locks.0.lock().is_empty());
    }
}
