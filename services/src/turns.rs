//! Commands on the same aggregate take turns within a replica, so that they do not conflict with each
//! other. For speed only: between replicas the guard of the log decides.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use gpubnb_events::Aggregate;
use tokio::sync::OwnedMutexGuard;

type Turn = Arc<tokio::sync::Mutex<()>>;

/// Who waits for whom.
#[derive(Clone, Default)]
pub(crate) struct Turns(Arc<Mutex<HashMap<Aggregate, Turn>>>);

/// A turn; it ends when this is dropped.
pub(crate) struct Guard {
    turns: Turns,
    aggregate: Aggregate,
    held: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    /// Waits for a turn on an aggregate.
    pub(crate) async fn take(&self, aggregate: Aggregate) -> Guard {
        let turn = Arc::clone(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(aggregate).or_default());
        Guard { turns: self.clone(), aggregate, held: Some(turn.lock_owned().await) }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.held = None;
        let mut turns = self.turns.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody else holds or waits for it.
        if turns.get(&self.aggregate).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            turns.remove(&self.aggregate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_events::JobId;

    #[tokio::test]
    async fn one_at_a_time_and_nothing_is_left_behind() {
        let (turns, aggregate) = (Turns::default(), Aggregate::Job(JobId::generate()));
        let first = turns.take(aggregate).await;
        let waiting = tokio::spawn({
            let turns = turns.clone();
            async move { turns.take(aggregate).await }
        });
        drop(turns.take(Aggregate::Job(JobId::generate())).await);
        assert!(!waiting.is_finished());
        drop(first);
        drop(waiting.await.unwrap());
        assert!(turns.0.lock().unwrap().is_empty());
    }
}
