//! A copy of a table as of one moment, made while the fold goes on (copy on write). Before the fold changes a block
//! that is not copied yet, the old block is put aside for the copy. The fold waits for one piece of the copy at most.

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

/// Blocks in one piece of a copy.
const PIECE: usize = 64;
/// Most bytes that are put aside. A copy that is so much slower than the fold is given up.
const MOST_ASIDE: usize = 64 << 20;

/// The copy of one table, shared by the fold and the copying thread.
#[derive(Debug, Default)]
pub struct SnapshotCopy {
    copy: Mutex<Option<CopyState>>,
    /// True if the model got another table since `take_replaced` was called last.
    replaced: AtomicBool,
}

/// The state of a copy that is being made.
#[derive(Debug, Default)]
struct CopyState {
    /// The last key that is copied; `None` before the first piece.
    until: Option<Vec<u8>>,
    /// The old form of blocks that were changed before they were copied; `None` for a block that did not exist.
    aside: BTreeMap<Vec<u8>, Option<IVec>>,
    /// The bytes in `aside`.
    bytes: usize,
}

/// The fold's hold on the copy while it writes.
pub(crate) struct CopyLock<'a>(MutexGuard<'a, Option<CopyState>>);

impl SnapshotCopy {
    fn state(&self) -> MutexGuard<'_, Option<CopyState>> {
        // A poisoned lock is safe to use: nothing panics between two changes that belong together.
        self.copy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the copy for the fold, until the fold has written a batch.
    pub(crate) fn lock(&self) -> CopyLock<'_> {
        CopyLock(self.state())
    }

    /// Gives up the copy that is being made, if there is one.
    pub fn give_up(&self) {
        *self.state() = None;
    }

    /// Notes that the model has another table from now on.
    pub fn set_replaced(&self) {
        self.give_up();
        self.replaced.store(true, Ordering::Release);
    }

    /// True if the model got another table since this was called last.
    pub fn take_replaced(&self) -> bool {
        self.replaced.swap(false, Ordering::AcqRel)
    }

    /// Hands the checkpoint and every block of a table to `each`, in order, as they were when this was called. Returns
    /// false where the copy was given up. Only one copy is made at a time. `failed` turns a failure of the store into
    /// the error type of `each`.
    pub fn copy<E>(
        &self,
        table: &Table,
        each: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
        failed: impl Fn(StoreError) -> E,
    ) -> Result<bool, E> {
        *self.state() = Some(CopyState::default());
        let whole = self.pieces(table, each, failed);
        self.give_up();
        whole
    }

    fn pieces<E>(
        &self,
        table: &Table,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
        failed: impl Fn(StoreError) -> E,
    ) -> Result<bool, E> {
        loop {
            let mut state = self.state();
            let Some(copy) = state.as_mut() else { return Ok(false) };
            let (blocks, last) = copy.piece(table.sled()).map_err(&failed)?;
            drop(state);
            blocks.iter().try_for_each(|(place, block)| each(place, block))?;
            if last {
                return Ok(true);
            }
        }
    }
}

fn size(key: &[u8], before: Option<&IVec>) -> usize {
    key.len() + before.map_or(0, |before| before.len())
}

impl CopyState {
    /// The next piece of blocks, and whether it is the last.
    fn piece(&mut self, tree: &sled::Tree) -> Result<(BTreeMap<Vec<u8>, IVec>, bool), StoreError> {
        let after = self.until.take().map_or(Bound::Unbounded, Bound::Excluded);
        let mut blocks = BTreeMap::new();
        // A range of its own for each block: sled bounds its cache by the number of accesses, and one iteration over
        // many pages counts too few.
        let mut next = after;
        while blocks.len() < PIECE
            && let Some((key, value)) = tree.range::<Vec<u8>, _>((next, Bound::Unbounded)).next().transpose()?
        {
            next = Bound::Excluded(key.to_vec());
            blocks.insert(key.to_vec(), value);
        }
        let last = blocks.len() < PIECE;
        self.until = blocks.keys().next_back().cloned();
        // In this piece, blocks that were changed get their old form again.
        let later = match &self.until {
            Some(until) if !last => {
                let mut later = self.aside.split_off(until);
                // `split_off` puts the last key of this piece with the later ones.
                if let Some(own) = later.remove(until) {
                    self.aside.insert(until.clone(), own);
                }
                later
            }
            _ => BTreeMap::new(),
        };
        for (key, before) in std::mem::replace(&mut self.aside, later) {
            self.bytes -= size(&key, before.as_ref());
            match before {
                Some(value) => drop(blocks.insert(key, value)),
                None => drop(blocks.remove(&key)),
            }
        }
        Ok((blocks, last))
    }
}

impl CopyLock<'_> {
    /// Called before a block is changed: puts the old block aside, unless it is copied already.
    pub(crate) fn changes(&mut self, tree: &sled::Tree, key: &[u8]) -> Result<(), StoreError> {
        let Some(copy) = self.0.as_mut() else { return Ok(()) };
        let copied = copy.until.as_deref().is_some_and(|until| key <= until);
        if copied || copy.aside.contains_key(key) {
            return Ok(());
        }
        let before = tree.get(key)?;
        copy.bytes += size(key, before.as_ref());
        copy.aside.insert(key.to_vec(), before);
        if copy.bytes > MOST_ASIDE {
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

    fn blocks(table: &Table) -> BTreeMap<Vec<u8>, Vec<u8>> {
        table.sled().iter().map(|row| row.unwrap()).map(|(k, v)| (k.to_vec(), v.to_vec())).collect()
    }

    fn write(table: &Table, snapshot_copy: &SnapshotCopy, at: u64, changes: &[(u16, Option<u8>)]) {
        let mut rows = WriteBatch::copied(table, snapshot_copy);
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
        /// Whatever is changed in whatever order while a copy is made, the copy is what was there when it began.
        #[test]
        fn a_copy_is_of_one_moment(
            before in prop::collection::vec((0..3_000_u16, any::<Option<u8>>()), 0..1_500),
            meanwhile in prop::collection::vec(
                prop::collection::vec((0..3_000_u16, any::<Option<u8>>()), 1..200),
                0..12,
            ),
        ) {
            let db = Database::temporary(8).unwrap();
            let (table, snapshot_copy) = (db.table("rows").unwrap(), SnapshotCopy::default());
            write(&table, &snapshot_copy, 1, &before);
            let then = blocks(&table);
            let (mut copied, mut next) = (BTreeMap::new(), 2);
            let whole = snapshot_copy.copy(&table, |key, value| {
                // A change is written at the first block of each piece and between some others.
                if copied.len() % 25 == 0 && let Some(changes) = meanwhile.get(next - 2) {
                    write(&table, &snapshot_copy, next as u64, changes);
                    next += 1;
                }
                copied.insert(key.to_vec(), value.to_vec());
                Ok(())
            }, |e| e);
            prop_assert!(whole.unwrap());
            prop_assert_eq!(copied.keys().filter(|key| *key == CHECKPOINT).count(), 1);
            prop_assert_eq!(copied, then);
            prop_assert_eq!(checkpoint(&table).unwrap(), Seq(next as u64 - 1));
        }
    }

    #[test]
    fn a_copy_that_is_given_up_is_not_whole() {
        let db = Database::temporary(8).unwrap();
        let (table, snapshot_copy) = (db.table("rows").unwrap(), SnapshotCopy::default());
        let many: Vec<_> = (0..1_000).map(|key| (key, Some(1))).collect();
        write(&table, &snapshot_copy, 1, &many);
        let whole = snapshot_copy.copy(
            &table,
            |_, _| {
                snapshot_copy.give_up();
                Ok(())
            },
            |e| e,
        );
        assert!(!whole.unwrap());
    }
}
