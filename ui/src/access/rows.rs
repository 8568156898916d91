//! Rows of a bucket that several replicas change: read, changed, written back only where nobody was faster.

use async_nats::jetstream::kv::{self, Operation};
use serde::{Serialize, de::DeserializeOwned};

use crate::error::Problem;

/// How often a change is tried again because somebody else was faster.
const ATTEMPTS: u32 = 5;

fn unavailable(e: impl std::fmt::Display) -> Problem {
    Problem::from(gpubnb_events::rpc::Failure::Unavailable(format!("the bucket cannot be reached: {e}")))
}

/// A bucket of JSON rows.
#[derive(Clone)]
pub(super) struct Rows(pub(super) kv::Store);

impl Rows {
    async fn entry<T: DeserializeOwned>(&self, key: &str) -> Result<(Option<T>, u64), Problem> {
        match self.0.entry(key).await.map_err(unavailable)? {
            None => Ok((None, 0)),
            Some(entry) if entry.operation != Operation::Put => Ok((None, entry.revision)),
            Some(entry) => {
                let row = serde_json::from_slice(&entry.value).map_err(|e| Problem::internal(&e))?;
                Ok((Some(row), entry.revision))
            }
        }
    }

    /// A row.
    pub(super) async fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Problem> {
        Ok(self.entry(key).await?.0)
    }

    /// Makes a row; false where there is one already.
    pub(super) async fn create(&self, key: &str, row: &impl Serialize) -> Result<bool, Problem> {
        let bytes = serde_json::to_vec(row).map_err(|e| Problem::internal(&e))?;
        match self.0.create(key, bytes.into()).await {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == kv::CreateErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(unavailable(e)),
        }
    }

    /// Changes a row, which may not be there yet. The change is made anew where somebody else was faster.
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
            match self.0.update(key, bytes.into(), revision).await {
                Ok(_) => return Ok(changed),
                Err(e) if e.kind() == kv::UpdateErrorKind::WrongLastRevision => {}
                Err(e) => return Err(unavailable(e)),
            }
        }
        Err(unavailable("others kept changing the same row"))
    }
}
