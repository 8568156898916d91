//! A cache of JSON rows in a key-value bucket that several replicas change. A row is written back only if no replica
//! has changed the row since it was read.
//!
//! A cached row is used until the bucket reports a change of the row, and at most for [`MAX_AGE`]. The cache saves work
//! because most requests come from users who sent another request seconds before.

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

/// The maximum number of attempts to change a row, if other replicas change the row at the same time.
const MAX_ATTEMPTS: u32 = 5;
/// The time for which a cached row is used. It is limited because the report of a change may be lost.
const MAX_AGE: Duration = Duration::from_secs(5);
/// The maximum number of rows in the cache.
const MAX_ROWS: usize = 10_000;
/// The pause before the bucket is watched again after a failure.
const RETRY: Duration = Duration::from_millis(500);

fn unavailable(e: impl std::fmt::Display) -> Problem {
    Problem::from(gpubnb_runtime::rpc::RpcError::Unavailable(format!("the bucket cannot be reached: {e}")))
}

/// The cached rows. Each row has the time at which it was read, and its JSON.
#[derive(Default)]
struct CachedRows {
    rows: Mutex<HashMap<String, (Instant, bytes::Bytes)>>,
    /// The number of reported changes. A row whose reading began before a change may be old, so it is not cached.
    changes: AtomicU64,
}

impl CachedRows {
    fn rows(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Instant, bytes::Bytes)>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self, key: &str) {
        let mut rows = self.rows();
        self.changes.fetch_add(1, Ordering::SeqCst);
        rows.remove(key);
    }

    fn remove_all(&self) {
        let mut rows = self.rows();
        self.changes.fetch_add(1, Ordering::SeqCst);
        rows.clear();
    }

    fn get(&self, key: &str) -> Option<bytes::Bytes> {
        let rows = self.rows();
        let (read, bytes) = rows.get(key)?;
        (read.elapsed() < MAX_AGE).then(|| bytes.clone())
    }

    /// Caches a row, unless the number of reported changes differs from `changes_before`.
    fn insert(&self, key: &str, bytes: bytes::Bytes, changes_before: u64) {
        let mut rows = self.rows();
        if self.changes.load(Ordering::SeqCst) == changes_before {
            if rows.len() >= MAX_ROWS {
                rows.clear();
            }
            rows.insert(key.to_owned(), (Instant::now(), bytes));
        }
    }
}

/// A bucket of JSON rows with its cache. Clones share the cache.
#[derive(Clone)]
pub(crate) struct KvCache {
    bucket: kv::Store,
    cached: Arc<CachedRows>,
}

impl KvCache {
    pub(crate) fn new(bucket: kv::Store) -> Self {
        Self { bucket, cached: Arc::default() }
    }

    /// Removes each row that the bucket reports as changed, until shutdown.
    pub(crate) async fn listen(self, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            self.cached.remove_all();
            match self.bucket.watch_all().await {
                Ok(mut changes) => {
                    self.cached.remove_all();
                    while let Some(Some(Ok(change))) = shutdown.run_until_cancelled(changes.next()).await {
                        self.cached.remove(&change.key);
                    }
                }
                Err(e) => {
                    warn!(error = %e, bucket = self.bucket.name, "cannot watch the bucket for changes; trying again");
                }
            }
            shutdown.run_until_cancelled(tokio::time::sleep(RETRY)).await;
        }
    }

    /// Reads a row from the bucket, with its revision.
    async fn entry<T: DeserializeOwned>(&self, key: &str) -> Result<(Option<T>, u64), Problem> {
        let changes_before = self.cached.changes.load(Ordering::SeqCst);
        match self.bucket.entry(key).await.map_err(unavailable)? {
            None => Ok((None, 0)),
            Some(entry) if entry.operation != Operation::Put => Ok((None, entry.revision)),
            Some(entry) => {
                let row = read(&entry.value)?;
                self.cached.insert(key, entry.value, changes_before);
                Ok((Some(row), entry.revision))
            }
        }
    }

    /// Reads a row, from the cache if the row is cached.
    pub(crate) async fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Problem> {
        match self.cached.get(key) {
            Some(bytes) => read(&bytes).map(Some),
            None => Ok(self.entry(key).await?.0),
        }
    }

    /// Creates a row. Returns false if the key already has a row.
    pub(crate) async fn create(&self, key: &str, row: &impl Serialize) -> Result<bool, Problem> {
        let bytes = serde_json::to_vec(row).map_err(|e| Problem::internal(&e))?;
        match self.bucket.create(key, bytes.into()).await {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == kv::CreateErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(unavailable(e)),
        }
    }

    /// Removes a row.
    pub(crate) async fn remove(&self, key: &str) -> Result<(), Problem> {
        let removed = self.bucket.purge(key).await;
        self.cached.remove(key);
        removed.map_err(unavailable)
    }

    /// Changes a row, or creates it: `change` gets `None` if there is no row. If another replica changes the row at the
    /// same time, `change` is called again with the new row.
    pub(crate) async fn change<T, R>(
        &self,
        key: &str,
        mut change: impl FnMut(&mut Option<T>) -> Result<R, Problem>,
    ) -> Result<R, Problem>
    where
        T: Serialize + DeserializeOwned,
    {
        for _ in 0..MAX_ATTEMPTS {
            let (mut row, revision) = self.entry(key).await?;
            let changed = change(&mut row)?;
            let Some(row) = row else { return Ok(changed) };
            let bytes = serde_json::to_vec(&row).map_err(|e| Problem::internal(&e))?;
            let written = self.bucket.update(key, bytes.into(), revision).await;
            // This comes before the return, so that the caller's next request reads the new row.
            self.cached.remove(key);
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
    async fn a_row_is_cached_until_it_changes_and_no_longer_than_its_maximum_age() {
        let cached = CachedRows::default();
        let row = bytes::Bytes::from_static(b"1");
        cached.insert("a", row.clone(), 0);
        assert_eq!(cached.get("a"), Some(row.clone()));
        cached.remove("a");
        assert_eq!(cached.get("a"), None);
        // The reading of this row began before the change.
        cached.insert("a", row.clone(), 0);
        assert_eq!(cached.get("a"), None);
        cached.insert("a", row.clone(), 1);
        tokio::time::advance(MAX_AGE).await;
        assert_eq!(cached.get("a"), None);
    }
}
