//! The list of each account's datasets (the bucket DATASETS). The files of the datasets are in the store INPUTS.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use async_nats::jetstream::kv::Store;
use axum::http::StatusCode;
use gpubnb_events::{AccountId, Millis, Seq, Timestamp, dataset::DatasetId};
use gpubnb_log::stream::DATASETS_KEPT;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

use crate::{access::KvCache, error::Problem};

/// Most datasets of one account. When there are more, the oldest without a name is dropped.
const MAX_DATASETS: usize = 200;

/// A dataset of an account. All its files are stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct StoredDataset {
    /// The id: a hash of the content.
    #[schema(value_type = String)]
    pub(crate) dataset: DatasetId,
    /// The name that its owner gave it; the newest dataset with a name is meant by the name.
    pub(crate) name: Option<String>,
    /// Number of files and links.
    pub(crate) files: u32,
    /// Size of all files, bytes.
    pub(crate) bytes: u64,
    /// When the dataset was last uploaded.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) uploaded_at: Timestamp,
    /// The dataset is removed at this time, unless it is uploaded again.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) kept_until: Timestamp,
}

impl StoredDataset {
    /// A dataset whose last missing file has just been stored.
    pub(crate) fn new(dataset: DatasetId, name: Option<String>, files: u32, bytes: u64, now: Timestamp) -> Self {
        let kept = Millis(DATASETS_KEPT.as_millis().try_into().unwrap_or(u64::MAX));
        Self { dataset, name, files, bytes, uploaded_at: now, kept_until: now.plus(kept) }
    }
}

/// Adds a dataset to a list, or renews it. Without a name, the order of the list stays: a name must not get another
/// meaning because a job was run again.
fn add_to(all: &mut Vec<StoredDataset>, added: &StoredDataset) -> Result<StoredDataset, Problem> {
    all.retain(|known| known.kept_until > added.uploaded_at);
    for known in all.iter_mut().filter(|known| known.dataset == added.dataset) {
        (known.uploaded_at, known.kept_until) = (added.uploaded_at, added.kept_until);
    }
    if added.name.is_none()
        && let Some(known) = all.iter().find(|known| known.dataset == added.dataset)
    {
        return Ok(known.clone());
    }
    // The same name again, or the first name.
    all.retain(|known| known.dataset != added.dataset || (known.name.is_some() && known.name != added.name));
    all.insert(0, added.clone());
    if all.len() > MAX_DATASETS {
        let unnamed = all.iter().rposition(|known| known.name.is_none()).filter(|index| *index > 0);
        let Some(unnamed) = unnamed else { return Err(too_many()) };
        all.remove(unnamed);
    }
    Ok(added.clone())
}

fn too_many() -> Problem {
    let detail = format!("You have {MAX_DATASETS} datasets with names: delete one first.");
    Problem::new(StatusCode::CONFLICT, "TooManyDatasets", detail)
}

/// The datasets of all accounts.
#[derive(Clone)]
pub(crate) struct Datasets {
    rows: KvCache,
    /// The sequence of the newest submission of a job with a dataset, by account.
    submissions: Arc<Mutex<HashMap<AccountId, Seq>>>,
}

/// Most accounts whose newest submission is known.
const MAX_SUBMISSIONS: usize = 10_000;

impl Datasets {
    pub(crate) fn new(bucket: Store) -> Self {
        Self { rows: KvCache::new(bucket), submissions: Arc::default() }
    }

    /// Follows the changes that other replicas make, until shutdown.
    pub(crate) async fn listen(self, shutdown: CancellationToken) {
        self.rows.listen(shutdown).await;
    }

    /// Remembers that an account has submitted a job with a dataset.
    pub(crate) fn note_submission(&self, account: AccountId, seq: Seq) {
        let mut all = self.submissions.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_SUBMISSIONS {
            all.clear();
        }
        all.insert(account, seq);
    }

    /// The sequence that the list of an account's jobs must have, so that it has every job with a dataset.
    pub(crate) fn newest_submission(&self, account: AccountId) -> Seq {
        let all = self.submissions.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&account).copied().unwrap_or(Seq::ZERO)
    }

    /// The datasets of an account, newest first. A dataset with two names is there twice.
    pub(crate) async fn of(&self, account: AccountId, now: Timestamp) -> Result<Vec<StoredDataset>, Problem> {
        let all: Vec<StoredDataset> = self.rows.get(&account.to_string()).await?.unwrap_or_default();
        Ok(all.into_iter().filter(|dataset| dataset.kept_until > now).collect())
    }

    /// Adds a dataset, or renews it under all its names. Returns the dataset under the given name.
    pub(crate) async fn add(&self, account: AccountId, added: &StoredDataset) -> Result<StoredDataset, Problem> {
        let change = |row: &mut Option<Vec<StoredDataset>>| add_to(row.get_or_insert_default(), added);
        self.rows.change(&account.to_string(), change).await
    }

    /// Removes a dataset from the list.
    pub(crate) async fn remove(&self, account: AccountId, dataset: &DatasetId) -> Result<(), Problem> {
        let change = |row: &mut Option<Vec<StoredDataset>>| {
            row.get_or_insert_default().retain(|known| known.dataset != *dataset);
            Ok(())
        };
        self.rows.change(&account.to_string(), change).await
    }

    /// Removes the list of an account.
    pub(crate) async fn forget(&self, account: AccountId) -> Result<(), Problem> {
        self.rows.remove(&account.to_string()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dataset(digit: u32, name: Option<&str>, at: i64) -> StoredDataset {
        let id = format!("{digit:064}").parse().unwrap();
        StoredDataset::new(id, name.map(ToOwned::to_owned), 1, 1, Timestamp::from_millis(at))
    }

    fn list(added: &[StoredDataset]) -> Vec<(String, Option<String>)> {
        let mut all = Vec::new();
        for one in added {
            add_to(&mut all, one).unwrap();
        }
        all.into_iter().map(|one| (one.dataset.to_string()[63..].to_owned(), one.name)).collect()
    }

    #[test]
    fn a_name_stays_with_its_dataset_until_it_is_given_to_another() {
        let named = |digit: &str, name: &str| (digit.to_owned(), Some(name.to_owned()));
        let two = [dataset(1, Some("v1"), 1), dataset(1, Some("latest"), 2)];
        assert_eq!(list(&two), [named("1", "latest"), named("1", "v1")], "a dataset may have two names");
        // Running old code again does not make it the newest.
        let again = [dataset(1, Some("code"), 1), dataset(2, Some("code"), 2), dataset(1, None, 3)];
        assert_eq!(list(&again), [named("2", "code"), named("1", "code")]);
        let back = [dataset(1, Some("code"), 1), dataset(2, Some("code"), 2), dataset(1, Some("code"), 3)];
        assert_eq!(list(&back), [named("1", "code"), named("2", "code")]);
        let later = [dataset(1, None, 1), dataset(1, Some("code"), 2)];
        assert_eq!(list(&later), [named("1", "code")]);
    }

    #[test]
    fn an_upload_renews_a_dataset_and_the_oldest_without_a_name_gives_way() {
        let mut all = Vec::new();
        add_to(&mut all, &dataset(1, Some("a"), 1)).unwrap();
        let renewed = add_to(&mut all, &dataset(1, None, 500)).unwrap();
        assert_eq!((renewed.name.as_deref(), renewed.uploaded_at), (Some("a"), Timestamp::from_millis(500)));
        for digit in 2..=300 {
            add_to(&mut all, &dataset(digit, None, 600)).unwrap();
        }
        assert_eq!((all.len(), all.last().unwrap().name.as_deref()), (MAX_DATASETS, Some("a")));
        let many: Vec<_> = (0..200).map(|n| dataset(n, Some("n"), 1)).collect();
        assert!(add_to(&mut many.clone(), &dataset(999, Some("n"), 2)).is_err());
    }
}
