//! A cache of JSON rows in a key-value bucket that several replicas change. A row is written back only if no replica
//! has changed the row since it was read.
//!
//! A row stays in the cache until the bucket reports a change of the row, and for a few seconds at most. That pays
//! because most requests come from users who made another request a moment ago.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream::kv::{self, Operation};
use futures_util::StreamExt as _;
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::error::Problem;

/// How often a change is tried if other replicas keep changing the same row.
const ATTEMPTS: u32 = 5;
/// How long a cached row is used if no report of a change arrives, because a report may have been lost.
const BELIEVED: Duration = Duration::from_secs(5);
/// Most rows in the cache.
const MOST: usize = 10_000;
/// The pause before the bucket is watched again after a failure.
const RETRY: Duration = Duration::from_millis(500);

fn unavailable(e: impl std::fmt::Display) -> Problem {
    Problem::from(gpubnb_runtime::rpc::Failure::Unavailable(format!("the bucket cannot be reached: {e}")))
}

/// The cached rows, each with the moment when it was read.
#[derive(Default)]
struct Memory {
    rows: Mutex<HashMap<String, (Instant, bytes::Bytes)>>,
    /// Counts reported changes. A row that was requested before a change and arrives after it is not cached.
    changes: AtomicU64,
}

impl Memory {
    fn rows(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Instant, bytes::Bytes)>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, key: &str) {
        let mut rows = self.rows();
        self.changes.fetch_add(1, Ordering::SeqCst);
        rows.remove(key);
    }

    fn forget_all(&self) {
        let mut rows = self.rows();
        self.changes.fetch_add(1, Ordering::SeqCst);
        rows.clear();
    }

    fn recall(&self, key: &str) -> Option<bytes::Bytes> {
        let rows = self.rows();
        let (read, bytes) = rows.get(key)?;
        (read.elapsed() < BELIEVED).then(|| bytes.clone())
    }

    /// Caches a row, unless a change was reported since `before`.
    fn remember(&self, key: &str, bytes: bytes::Bytes, before: u64) {
        let mut rows = self.rows();
        if self.changes.load(Ordering::SeqCst) == before {
            if rows.len() >= MOST {
                rows.clear();
            }
            rows.insert(key.to_owned(), (Instant::now(), bytes));
        }
    }
}

/// A bucket of JSON rows, with its cache.
#[derive(Clone)]
pub(super) struct KvCache {
    bucket: kv::Store,
    memory: Arc<Memory>,
}

impl KvCache {
    pub(super) fn new(bucket: kv::Store) -> Self {
        Self { bucket, memory: Arc::default() }
    }

    /// Follows the reports of changes until shutdown.
    pub(super) async fn listen(self, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            self.memory.forget_all();
            match self.bucket.watch_all().await {
                Ok(mut changes) => {
                    self.memory.forget_all();
                    while let Some(Some(Ok(change))) = shutdown.run_until_cancelled(changes.next()).await {
                        self.memory.forget(&change.key);
                    }
                }
                Err(e) => {
                    warn!(error = %e, bucket = self.bucket.name, "cannot watch the bucket for changes; trying again");
                }
            }
            shutdown.run_until_cancelled(tokio::time::sleep(RETRY)).await;
        }
    }

    async fn entry<T: DeserializeOwned>(&self, key: &str) -> Result<(Option<T>, u64), Problem> {
        let before = self.memory.changes.load(Ordering::SeqCst);
        match self.bucket.entry(key).await.map_err(unavailable)? {
            None => Ok((None, 0)),
            Some(entry) if entry.operation != Operation::Put => Ok((None, entry.revision)),
            Some(entry) => {
                let row = read(&entry.value)?;
                self.memory.remember(key, entry.value, before);
                Ok((Some(row), entry.revision))
            }
        }
    }

    /// Reads a row, from the cache if it is there.
    pub(super) async fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Problem> {
        match self.memory.recall(key) {
            Some(bytes) => read(&bytes).map(Some),
            None => Ok(self.entry(key).await?.0),
        }
    }

    /// Creates a row. False if the key has a row already.
    pub(super) async fn create(&self, key: &str, row: &impl Serialize) -> Result<bool, Problem> {
        let bytes = serde_json::to_vec(row).map_err(|e| Problem::internal(&e))?;
        match self.bucket.create(key, bytes.into()).await {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == kv::CreateErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(unavailable(e)),
        }
    }

    /// Changes a row, which may not exist yet. If another replica changes the row at the same time, `change` is called
    /// again with the new row.
    pub(super) async fn change<T, R>(
        &self,
        key: &str,
        mut change: impl FnMut(&mut Option<T>) -> Result<R, Problem>,
    ) -> Result<R, Problem>
    where
        T: Serialize + DeserializeOwned,
    {
        for _ in 0..ATTEMPTS {
            let (mut row, revision) = self.entry(key).await?;
            let changed = change(&mut row)?;
            let Some(row) = row else { return Ok(changed) };
            let bytes = serde_json::to_vec(&row).map_err(|e| Problem::internal(&e))?;
            let written = self.bucket.update(key, bytes.into(), revision).await;
            // Before the caller learns that the change is done, so that its next request reads the new row.
            self.memory.forget(key);
            match written {
                Ok(_) => return Ok(changed),
                Err(e) if e.kind() == kv::UpdateErrorKind::WrongLastRevision => {}
                Err(e) => return Err(unavailable(e)),
            }
        }
        Err(unavailable("others kept changing the same row"))
    }
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(bytes).map_err(|e| Problem::internal(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_row_is_remembered_until_it_changes_and_for_a_few_seconds_at_the_most() {
        let memory = Memory::default();
        let row = bytes::Bytes::from_static(b"1");
        memory.remember("a", row.clone(), 0);
        assert_eq!(memory.recall("a"), Some(row.clone()));
        memory.forget("a");
        assert_eq!(memory.recall("a"), None);
        // This row was requested before the change and arrives after it.
        memory.remember("a", row.clone(), 0);
        assert_eq!(memory.recall("a"), None);
        memory.remember("a", row.clone(), 1);
        tokio::time::advance(BELIEVED).await;
        assert_eq!(memory.recall("a"), None);
    }
}
