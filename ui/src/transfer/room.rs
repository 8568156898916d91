//! What files take while they are put: by attempt and by account, in the memory of this replica. The stores themselves
//! know what is there, and not what is on its way.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use gpubnb_events::Timestamp;

/// Owners that are remembered before those whose time is over are forgotten.
const FORGET_AT: usize = 10_000;

/// Bytes taken, by owner: an attempt's lease, or an account.
#[derive(Clone, Default)]
pub(crate) struct Room(Arc<Mutex<HashMap<String, Taken>>>);

#[derive(Default)]
struct Taken {
    bytes: u64,
    /// Until when it counts although nothing is on its way.
    until: Option<Timestamp>,
    on_the_way: usize,
}

/// Room for one file. What is not kept is given back.
pub(super) struct Place {
    room: Room,
    owner: String,
    bytes: u64,
}

impl Room {
    fn taken(&self) -> MutexGuard<'_, HashMap<String, Taken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes room for so many bytes, if no more than `most` are then taken.
    pub(super) fn take(&self, owner: String, bytes: u64, most: u64) -> Option<Place> {
        let mut all = self.taken();
        let taken = all.entry(owner.clone()).or_default();
        let fits = taken.bytes.checked_add(bytes).is_some_and(|sum| sum <= most);
        if fits {
            taken.bytes += bytes;
            taken.on_the_way += 1;
        }
        drop(all);
        fits.then(|| Place { room: self.clone(), owner, bytes })
    }
}

impl Place {
    /// The file is there: its room stays taken until then.
    pub(super) fn keep_until(mut self, until: Timestamp) {
        let mut all = self.room.taken();
        if all.len() > FORGET_AT {
            all.retain(|_, taken| taken.on_the_way > 0 || taken.until.is_some_and(|end| end > until));
        }
        if let Some(taken) = all.get_mut(&self.owner) {
            taken.until = Some(until);
        }
        drop(all);
        self.bytes = 0;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.room.taken();
        if let Some(taken) = all.get_mut(&self.owner) {
            taken.bytes = taken.bytes.saturating_sub(self.bytes);
            taken.on_the_way = taken.on_the_way.saturating_sub(1);
            if taken.on_the_way == 0 && taken.until.is_none() {
                all.remove(&self.owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_taken_once_and_given_back_unless_it_is_kept() {
        let room = Room::default();
        let first = room.take("a".to_owned(), 6, 10).unwrap();
        assert!(room.take("a".to_owned(), 5, 10).is_none());
        assert!(room.take("b".to_owned(), 5, 10).is_some());
        assert!(room.take("a".to_owned(), u64::MAX, u64::MAX).is_none());
        drop(first);
        assert_eq!(room.taken().len(), 0);
        room.take("a".to_owned(), 6, 10).unwrap().keep_until(Timestamp::from_millis(1));
        assert!(room.take("a".to_owned(), 5, 10).is_none());
        assert!(room.take("a".to_owned(), 4, 10).is_some());
    }
}
