//! A copy of a table's blocks and checkpoint as they were at one moment, made while the fold goes on. Before the fold changes
//! a block that is not copied yet, the block as it was is put aside; the fold waits for a piece of the copy at the most.

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

/// Blocks that are copied at once.
const PIECE: usize = 64;
/// Most that is put aside, bytes: a copy that is so much slower than the fold is given up.
const MOST_ASIDE: usize = 64 << 20;

/// Copies one tree, and knows what the fold must put aside.
#[derive(Debug, Default)]
pub struct SnapshotCopy {
    copy: Mutex<Option<CopyState>>,
    /// Whether the model has got another table since this was asked last.
    replaced: AtomicBool,
}

/// A copy that is being made.
#[derive(Debug, Default)]
struct CopyState {
    /// Copied up to this key, and this one; `None`: nothing yet.
    until: Option<Vec<u8>>,
    /// Blocks that were changed since and are not copied yet, as they were; `None`: there was none.
    aside: BTreeMap<Vec<u8>, Option<IVec>>,
    /// Bytes of these.
    bytes: usize,
}

/// The fold's hold on the copy while it writes.
pub(crate) struct CopyLock<'a>(MutexGuard<'a, Option<CopyState>>);

impl SnapshotCopy {
    fn state(&self) -> MutexGuard<'_, Option<CopyState>> {
        // Whoever holds it does nothing that can panic half way.
        self.copy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The fold is about to write a batch, and holds this until it is written.
    pub(crate) fn lock(&self) -> CopyLock<'_> {
        CopyLock(self.state())
    }

    /// A copy that is being made is of no use any more.
    pub fn give_up(&self) {
        *self.state() = None;
    }

    /// The model has another table from now on.
    pub fn set_replaced(&self) {
        self.give_up();
        self.replaced.store(true, Ordering::Release);
    }

    /// Whether the model has got another table since this was asked last.
    pub fn take_replaced(&self) -> bool {
        self.replaced.swap(false, Ordering::AcqRel)
    }

    /// Hands every block of a tree to `each`, and the checkpoint, in order, as all of them were when this began. Returns
    /// whether it is whole: it is not when it was given up. One at a time. `failed` makes a failure of the store into the
    /// error of `each`.
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
    /// The next blocks, and whether they are the last.
    fn piece(&mut self, tree: &sled::Tree) -> Result<(BTreeMap<Vec<u8>, IVec>, bool), StoreError> {
        let after = self.until.take().map_or(Bound::Unbounded, Bound::Excluded);
        let mut blocks = BTreeMap::new();
        // Looked up one by one: sled counts what it caches by the accesses to it, and going through pages is one for each.
        let mut next = after;
        while blocks.len() < PIECE
            && let Some((key, value)) = tree.range::<Vec<u8>, _>((next, Bound::Unbounded)).next().transpose()?
        {
            next = Bound::Excluded(key.to_vec());
            blocks.insert(key.to_vec(), value);
        }
        let last = blocks.len() < PIECE;
        self.until = blocks.keys().next_back().cloned();
        // What was changed, up to here, is as it was.
        let later = match &self.until {
            Some(until) if !last => {
                let mut later = self.aside.split_off(until);
                // The key itself is here, not later.
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
    /// A block is about to be changed.
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
            meanwhile in prop::collection::vec(prop::collection::vec((0..3_000_u16, any::<Option<u8>>()), 1..200), 0..12),
        ) {
            let db = Database::temporary(8).unwrap();
            let (table, snapshot_copy) = (db.table("rows").unwrap(), SnapshotCopy::default());
            write(&table, &snapshot_copy, 1, &before);
            let then = blocks(&table);
            let (mut copied, mut next) = (BTreeMap::new(), 2);
            let whole = snapshot_copy.copy(&table, |key, value| {
                // The first of each piece and then some: a change is written in between.
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
