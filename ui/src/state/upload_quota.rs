//! The quota of files that are being uploaded, in the memory of this replica. The object stores know how much is
//! stored; they do not know what is still on its way.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use gpubnb_events::{Millis, Timestamp};

use crate::keyed_limit::{KeyedLimit, Share};

/// Owners whose finished uploads are remembered. Above this number, those whose time is over are forgotten, and if that
/// is not enough, all: a forgotten attempt may upload its full quota once more.
const MOST_REMEMBERED: usize = 10_000;

/// Bytes of uploads, by owner: the lease of an attempt, or an account.
#[derive(Clone, Default)]
pub(crate) struct UploadQuota {
    uploads: KeyedLimit<String>,
    finished: Arc<Mutex<HashMap<String, Finished>>>,
}

/// The finished uploads of one owner, which still count.
struct Finished {
    share: Share<String>,
    until: Timestamp,
}

/// The bytes of one upload. They are given back when this is dropped, unless they are kept.
pub(crate) struct Reservation {
    quota: UploadQuota,
    owner: String,
    share: Share<String>,
}

impl UploadQuota {
    /// Reserves bytes for an upload. `None` if the owner's uploads would then have more than `most` bytes together.
    pub(crate) fn reserve(&self, owner: String, bytes: u64, most: u64) -> Option<Reservation> {
        let share = self.uploads.take(owner.clone(), bytes, most)?;
        Some(Reservation { quota: self.clone(), owner, share })
    }
}

impl Reservation {
    /// The upload is complete: its bytes go on counting for a while.
    pub(crate) fn keep(self, now: Timestamp, remembered: Millis) {
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
        if finished.len() > MOST_REMEMBERED {
            finished.retain(|_, known| known.until > now);
        }
        if finished.len() > MOST_REMEMBERED {
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
    fn an_upload_that_breaks_off_gives_its_bytes_back() {
        let quota = UploadQuota::default();
        let first = reserve(&quota, "a", 6).unwrap();
        assert!(reserve(&quota, "a", 5).is_none());
        assert!(reserve(&quota, "b", 5).is_some());
        drop(first);
        assert!(reserve(&quota, "a", 10).is_some());
    }

    #[test]
    fn a_complete_upload_goes_on_counting() {
        let quota = UploadQuota::default();
        for bytes in [2, 4] {
            reserve(&quota, "a", bytes).unwrap().keep(Timestamp::EPOCH, Millis(1_000));
        }
        assert!(reserve(&quota, "a", 5).is_none());
        assert!(reserve(&quota, "a", 4).is_some());
    }

    #[test]
    fn the_oldest_uploads_are_forgotten_when_there_are_too_many() {
        let quota = UploadQuota::default();
        reserve(&quota, "old", 10).unwrap().keep(Timestamp::EPOCH, Millis(1_000));
        for owner in 0..MOST_REMEMBERED {
            reserve(&quota, &owner.to_string(), 10).unwrap().keep(Timestamp::from_millis(2_000), Millis(1_000));
        }
        assert!(reserve(&quota, "old", 10).is_some());
        assert!(reserve(&quota, "0", 1).is_none());
    }
}
