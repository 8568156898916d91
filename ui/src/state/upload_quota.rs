//! The quota of uploads, counted in the memory of this replica. An object store knows only the size of complete files;
//! the quota also counts uploads in progress.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use gpubnb_events::{Millis, Timestamp};

use crate::keyed_limit::{KeyedLimit, Share};

/// The maximum number of owners whose finished uploads are remembered. Above this number, expired owners are removed.
/// If that is not enough, all owners are removed, and each of them may upload its full quota again.
const MAX_FINISHED: usize = 10_000;

/// The uploaded bytes of each owner. An owner is a text that the caller chooses, for example the lease of an attempt, a
/// store of files (`INPUTS`), or a share of a store (`INPUTS/<account>`, see `transfer/share.rs`).
#[derive(Clone, Default)]
pub(crate) struct UploadQuota {
    uploads: KeyedLimit<String>,
    finished: Arc<Mutex<HashMap<String, Finished>>>,
}

/// The finished uploads of one owner. They count until this entry is removed.
struct Finished {
    share: Share<String>,
    /// After this time the entry may be removed.
    until: Timestamp,
}

/// The reserved bytes of one upload. Dropping the reservation releases the bytes; [`Reservation::complete`] does not.
pub(crate) struct Reservation {
    quota: UploadQuota,
    owner: String,
    share: Share<String>,
}

impl UploadQuota {
    /// Reserves bytes for an upload. `None` if the owner's uploads would have more than `max_bytes` together.
    pub(crate) fn reserve(&self, owner: String, bytes: u64, max_bytes: u64) -> Option<Reservation> {
        let share = self.uploads.take(owner.clone(), bytes, max_bytes)?;
        Some(Reservation { quota: self.clone(), owner, share })
    }

    /// The bytes that an owner's uploads have reserved.
    pub(crate) fn reserved(&self, owner: &str) -> u64 {
        self.uploads.amount(owner)
    }
}

impl Reservation {
    /// Ends the upload successfully. Its bytes count for at least the time `remembered`, unless there are too many
    /// owners.
    pub(crate) fn complete(self, now: Timestamp, remembered: Millis) {
        let until = now.plus(remembered);
        let mut finished = self.quota.finished.lock().unwrap_or_else(PoisonError::into_inner);
        match finished.get_mut(&self.owner) {
            Some(known) => {
                known.share.merge(self.share);
                known.until = until;
            }
            None => {
                finished.insert(self.owner, Finished { share: self.share, until });
            }
        }
        if finished.len() > MAX_FINISHED {
            finished.retain(|_, known| known.until > now);
        }
        if finished.len() > MAX_FINISHED {
            finished.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reserve(quota: &UploadQuota, owner: &str, bytes: u64) -> Option<Reservation> {
        quota.reserve(owner.to_owned(), bytes, 10)
    }

    #[test]
    fn an_interrupted_upload_releases_its_bytes() {
        let quota = UploadQuota::default();
        let first = reserve(&quota, "a", 6).unwrap();
        assert!(reserve(&quota, "a", 5).is_none());
        assert!(reserve(&quota, "b", 5).is_some());
        drop(first);
        assert!(reserve(&quota, "a", 10).is_some());
    }

    #[test]
    fn a_complete_upload_still_counts() {
        let quota = UploadQuota::default();
        for bytes in [2, 4] {
            reserve(&quota, "a", bytes).unwrap().complete(Timestamp::EPOCH, Millis(1_000));
        }
        assert!(reserve(&quota, "a", 5).is_none());
        assert!(reserve(&quota, "a", 4).is_some());
    }

    #[test]
    fn expired_uploads_are_removed_when_there_are_too_many_owners() {
        let quota = UploadQuota::default();
        reserve(&quota, "old", 10).unwrap().complete(Timestamp::EPOCH, Millis(1_000));
        for owner in 0..MAX_FINISHED {
            reserve(&quota, &owner.to_string(), 10).unwrap().complete(Timestamp::from_millis(2_000), Millis(1_000));
        }
        assert!(reserve(&quota, "old", 10).is_some());
        assert!(reserve(&quota, "0", 1).is_none());
    }
}
