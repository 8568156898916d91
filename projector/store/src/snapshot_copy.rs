//! A snapshot copy reads a whole table as it was at one moment, while the fold keeps writing into the table (copy on
//! write). The copy reads the table in pieces of `PIECE` entries. Before the fold changes an entry (a block, or the
//! checkpoint) that is not copied yet, the fold saves the old entry for the copy. The fold waits for at most one piece.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use sled::IVec;

use crate::{StoreError, Table};

/// The number of entries in one piece of a copy.
const PIECE: usize = 64;
/// The most bytes of saved entries. A copy that needs more is cancelled: it is much slower than the fold.
const MAX_SAVED_BYTES: usize = 64 << 20;

/// Lets one thread copy a model's table while the fold writes into the table. The fold and the copying thread share
/// one `SnapshotCopy`.
#[derive(Debug, Default)]
pub struct SnapshotCopy {
    /// `None` while no copy is being made.
    copy: Mutex<Option<CopyState>>,
    /// True if a new snapshot is needed, because the model has got another table since the last call of
    /// `take_replaced`.
    is_replaced: AtomicBool,
}

/// The state of a copy that is being made.
#[derive(Debug, Default)]
struct CopyState {
    /// The key of the last copied entry; `None` before the first piece.
    copied_until: Option<Vec<u8>>,
    /// The old values of entries that were changed before they were copied; `None` for an entry that did not exist.
    saved: BTreeMap<Vec<u8>, Option<IVec>>,
    /// The number of bytes in `saved`.
    saved_bytes: usize,
}

/// The lock on the copy that the fold holds while it writes a batch.
pub(crate) struct CopyLock<'a>(MutexGuard<'a, Option<CopyState>>);

impl SnapshotCopy {
    fn state(&self) -> MutexGuard<'_, Option<CopyState>> {
        // A poisoned lock is safe to use: no code panics between two changes that belong together.
        self.copy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the copy while the fold writes a batch.
    pub(crate) fn lock(&self) -> CopyLock<'_> {
        CopyLock(self.state())
    }

    /// Cancels the copy that is being made, if there is one.
    pub fn cancel(&self) {
        *self.state() = None;
    }

    /// Records that the model has got another table. Cancels a copy of the old table.
    pub fn set_replaced(&self) {
        self.cancel();
        self.is_replaced.store(true, Ordering::Release);
    }

    /// True if the model has got another table since the last call of this function.
    pub fn take_replaced(&self) -> bool {
        self.is_replaced.swap(false, Ordering::AcqRel)
    }

    /// Copies a table as it is at the time of this call. `each` gets the key and the value of every entry of the tree,
    /// in order. Returns false if the copy was cancelled. Do not start a copy while another copy is being made.
    /// `store_error` converts an error of the store into the error type of `each`.
    pub fn copy<E>(
        &self,
        table: &Table,
        each: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
        store_error: impl Fn(StoreError) -> E,
    ) -> Result<bool, E> {
        *self.state() = Some(CopyState::default());
        let is_complete = self.copy_pieces(table, each, store_error);
        self.cancel();
        is_complete
    }

    fn copy_pieces<E>(
        &self,
        table: &Table,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
        store_error: impl Fn(StoreError) -> E,
    ) -> Result<bool, E> {
        loop {
            let mut state = self.state();
            let Some(copy) = state.as_mut() else { return Ok(false) };
            let (entries, is_last) = copy.next_piece(table.sled_tree()).map_err(&store_error)?;
            drop(state);
            entries.iter().try_for_each(|(key, value)| each(key, value))?;
            if is_last {
                return Ok(true);
            }
        }
    }
}

fn entry_bytes(key: &[u8], value: Option<&IVec>) -> usize {
    key.len() + value.map_or(0, |value| value.len())
}

impl CopyState {
    /// Reads the next piece of entries. Also returns true if this piece is the last.
    fn next_piece(&mut self, tree: &sled::Tree) -> Result<(BTreeMap<Vec<u8>, IVec>, bool), StoreError> {
        let mut next = self.copied_until.take().map_or(Bound::Unbounded, Bound::Excluded);
        let mut entries = BTreeMap::new();
        // Each entry is read with a new `range`. sled evicts pages from its cache after a number of accesses, and
        // counts one long iteration as too few accesses: the cache would grow.
        while entries.len() < PIECE
            && let Some((key, value)) = tree.range::<Vec<u8>, _>((next, Bound::Unbounded)).next().transpose()?
        {
            next = Bound::Excluded(key.to_vec());
            entries.insert(key.to_vec(), value);
        }
        let is_last = entries.len() < PIECE;
        self.copied_until = entries.keys().next_back().cloned();
        // Entries of this piece that were changed since the copy began get their old values.
        let later = match &self.copied_until {
            Some(until) if !is_last => {
                let mut later = self.saved.split_off(until);
                // `split_off` also moves the entry at `until` to the later entries, but that entry is in this piece.
                if let Some(value) = later.remove(until) {
                    self.saved.insert(until.clone(), value);
                }
                later
            }
            _ => BTreeMap::new(),
        };
        for (key, old) in std::mem::replace(&mut self.saved, later) {
            self.saved_bytes -= entry_bytes(&key, old.as_ref());
            match old {
                Some(value) => drop(entries.insert(key, value)),
                None => drop(entries.remove(&key)),
            }
        }
        Ok((entries, is_last))
    }
}

impl CopyLock<'_> {
    /// Saves the old value of an entry, unless the entry is copied or saved already. The fold calls this function
    /// before it changes the entry.
    pub(crate) fn save_before_change(&mut self, tree: &sled::Tree, key: &[u8]) -> Result<(), StoreError> {
        let Some(copy) = self.0.as_mut() else { return Ok(()) };
        let is_copied = copy.copied_until.as_deref().is_some_and(|until| key <= until);
        if is_copied || copy.saved.contains_key(key) {
            return Ok(());
        }
        let old = tree.get(key)?;
        copy.saved_bytes += entry_bytes(key, old.as_ref());
        copy.saved.insert(key.to_vec(), old);
        if copy.saved_bytes > MAX_SAVED_BYTES {
            *self.0 = None;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use gpubnb_events::Seq;
    use proptest::prelude::*;

    use super::*;
    use crate::{CHECKPOINT, Database, WriteBatch, checkpoint};

    fn entries(table: &Table) -> BTreeMap<Vec<u8>, Vec<u8>> {
        table.sled_tree().iter().map(|row| row.unwrap()).map(|(k, v)| (k.to_vec(), v.to_vec())).collect()
    }

    fn write(table: &Table, snapshot_copy: &SnapshotCopy, at: u64, changes: &[(u16, Option<u8>)]) {
        let mut rows = WriteBatch::with_snapshot_copy(table, snapshot_copy);
        for (key, value) in changes {
            let key = format!("row {key:05}").into_bytes();
            match value {
                Some(value) => rows.put_bytes(key, vec![*value; 700]),
                None => rows.remove(&key),
            }
        }
        rows.commit(Seq(at)).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// The copy equals the table at the start of the copy, also if rows are written during the copy.
        #[test]
        fn a_copy_has_the_table_as_it_was_at_the_start(
            before in prop::collection::vec((0..3_000_u16, any::<Option<u8>>()), 0..1_500),
            meanwhile in prop::collection::vec(
                prop::collection::vec((0..3_000_u16, any::<Option<u8>>()), 1..200),
                0..12,
            ),
        ) {
            let db = Database::temporary(8).unwrap();
            let (table, snapshot_copy) = (db.table("rows").unwrap(), SnapshotCopy::default());
            write(&table, &snapshot_copy, 1, &before);
            let at_start = entries(&table);
            let (mut copied, mut next) = (BTreeMap::new(), 2);
            let is_complete = snapshot_copy.copy(&table, |key, value| {
                // A batch is written after every 25 copied entries, so also within a piece.
                if copied.len() % 25 == 0 && let Some(changes) = meanwhile.get(next - 2) {
                    write(&table, &snapshot_copy, next as u64, changes);
                    next += 1;
                }
                copied.insert(key.to_vec(), value.to_vec());
                Ok(())
            }, |e| e);
            prop_assert!(is_complete.unwrap());
            prop_assert_eq!(copied.keys().filter(|key| *key == CHECKPOINT).count(), 1);
            prop_assert_eq!(copied, at_start);
            prop_assert_eq!(checkpoint(&table).unwrap(), Seq(next as u64 - 1));
        }
    }

    #[test]
    fn a_cancelled_copy_is_incomplete() {
        let db = Database::temporary(8).unwrap();
        let (table, snapshot_copy) = (db.table("rows").unwrap(), SnapshotCopy::default());
        let many: Vec<_> = (0..1_000).map(|key| (key, Some(1))).collect();
        write(&table, &snapshot_copy, 1, &many);
        let is_complete = snapshot_copy.copy(
            &table,
            |_, _| {
                snapshot_copy.cancel();
                Ok(())
            },
            |e| e,
        );
        assert!(!is_complete.unwrap());
    }
}
