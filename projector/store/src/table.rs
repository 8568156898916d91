//! A table of sorted rows, stored in one tree of sled. (A tree is sled's word for a sorted map.)
//!
//! The tree has two kinds of entries: blocks of rows, and one checkpoint. A block's key in the tree is the byte `BLOCK`
//! and the lowest row key that may be in the block. Example: with the block keys `BLOCK`, `BLOCK g` and `BLOCK p`, the
//! row `h` is in the second block, and the row `a` is in the first block. The first block need not exist.

use std::ops::{Bound, RangeBounds};

use sled::IVec;

use crate::{
    RowBytes, StoreError,
    block::{self, RowBuffer},
};

/// A table of sorted rows. Clones share the rows.
#[derive(Clone)]
pub struct Table {
    sled: sled::Tree,
}

/// The key of the checkpoint in sled's tree. This key is lower than the key of every block.
pub const CHECKPOINT: &[u8] = b"\0checkpoint";
/// The first byte of a block's key in sled's tree.
const BLOCK: u8 = 1;

/// A row's key and value.
pub type KeyValue = (RowBytes, RowBytes);

/// Makes the key of a block in sled's tree from the lowest row key that may be in the block.
fn block_key(key: &[u8]) -> Vec<u8> {
    let mut block_key = Vec::with_capacity(1 + key.len());
    block_key.push(BLOCK);
    block_key.extend_from_slice(key);
    block_key
}

impl Table {
    /// Makes the table whose entries are in a tree of sled.
    pub(crate) fn new(sled: sled::Tree) -> Self {
        Self { sled }
    }

    /// The tree of sled that has the table's blocks and checkpoint.
    pub(crate) fn sled_tree(&self) -> &sled::Tree {
        &self.sled
    }

    /// The table's name.
    pub fn name(&self) -> RowBytes {
        RowBytes(self.sled.name())
    }

    /// Removes every row and the checkpoint.
    pub fn clear(&self) -> Result<(), StoreError> {
        Ok(self.sled.clear()?)
    }

    /// Waits until all writes are on disk.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.sled.flush()?;
        Ok(())
    }

    /// The bytes of the checkpoint, which `batch.rs` encodes. `None` if nothing has been committed.
    pub(crate) fn checkpoint_row(&self) -> Result<Option<RowBytes>, StoreError> {
        Ok(self.sled.get(CHECKPOINT)?.map(RowBytes))
    }

    /// Inserts an entry of another table's tree: a stored block, or the checkpoint.
    pub fn put_entry(&self, key: &[u8], stored: impl AsRef<[u8]>) -> Result<(), StoreError> {
        if key != CHECKPOINT && key.first() != Some(&BLOCK) {
            return Err(StoreError::corrupt(key, "this is neither the key of a block nor of the checkpoint"));
        }
        self.sled.insert(key, stored.as_ref())?;
        Ok(())
    }

    /// Copies the present rows and the checkpoint of another table into this empty table.
    pub fn copy_from(&self, other: &Self) -> Result<(), StoreError> {
        for entry in &other.sled {
            let (key, stored) = entry?;
            self.put_entry(&key, stored)?;
        }
        Ok(())
    }

    /// Finds the block that may have the row with this key. Returns the block's key and stored form. `None` if that
    /// block is the first and does not exist.
    fn stored_block_for(&self, key: &[u8]) -> Result<Option<(IVec, IVec)>, StoreError> {
        Ok(self.sled.range::<Vec<u8>, _>(vec![BLOCK]..=block_key(key)).next_back().transpose()?)
    }

    /// Finds the block that may have the row with this key. Returns the block's key and uncompressed rows.
    fn block_for(&self, key: &[u8]) -> Result<(IVec, IVec), StoreError> {
        match self.stored_block_for(key)? {
            Some((block_key, stored)) => Ok((block_key, block::decode(&stored)?)),
            None => Ok((IVec::from(&[BLOCK]), IVec::default())),
        }
    }

    /// Reads a row's value.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<RowBytes>, StoreError> {
        let (_, block) = self.block_for(key.as_ref())?;
        Ok(block::find(&block, key.as_ref())?.map(|value| RowBytes(block.subslice(value.start, value.len()))))
    }

    /// Iterates over the rows in a range of keys, from either end.
    pub fn range<K: AsRef<[u8]>>(&self, keys: impl RangeBounds<K>) -> Range {
        let bound = |bound: Bound<&K>| bound.map(|key| IVec::from(key.as_ref()));
        let (from, to) = (bound(keys.start_bound()), bound(keys.end_bound()));
        let (front, back) = (RangeEnd::default(), RangeEnd::default());
        Range { table: self.clone(), from, to, front, back, has_failed: false }
    }

    /// Iterates over the rows whose keys begin with a prefix, from either end.
    pub fn scan_prefix(&self, prefix: impl AsRef<[u8]>) -> Range {
        let prefix = prefix.as_ref();
        // The end of the range is the first key after all keys with the prefix: without trailing bytes 255, and with
        // the last remaining byte raised by one. Example: the prefix [7, 255] gives the end [8].
        let mut end = prefix.to_vec();
        while end.last() == Some(&u8::MAX) {
            end.pop();
        }
        match end.last_mut() {
            Some(last) => *last += 1,
            None => return self.range(prefix..),
        }
        self.range(prefix..&end[..])
    }

    /// Iterates over every row.
    pub fn all(&self) -> Range {
        self.scan_prefix([])
    }

    /// Writes changes and the checkpoint as one atomic change. The changes must be sorted by key. `write` gets a key,
    /// its change, and the buffer to which it appends the row's new value. If `write` returns false, the row is
    /// removed. `before_change` gets the tree and the key of each entry that the batch will change.
    pub(crate) fn write<R>(
        &self,
        changes: Vec<(Vec<u8>, R)>,
        checkpoint: &[u8],
        mut before_change: impl FnMut(&sled::Tree, &[u8]) -> Result<(), StoreError>,
        mut write: impl FnMut(&[u8], R, &mut Vec<u8>) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        let mut changes = changes.into_iter().peekable();
        while let Some((first, _)) = changes.peek() {
            let (old_key, block) = self.block_for(first)?;
            let later_blocks = (Bound::Excluded(old_key.clone()), Bound::Excluded(IVec::from(&[BLOCK + 1])));
            let next_key = self.sled.range::<IVec, _>(later_blocks).next().transpose()?.map(|(key, _)| key);
            let is_in_block = |key: &[u8]| next_key.as_ref().is_none_or(|next| key < &next[1..]);
            let block_changes = std::iter::from_fn(|| changes.next_if(|(key, _)| is_in_block(key)));
            let merged = RowBuffer::merge(&block, block_changes, &mut write)?;
            // The first new block keeps the key of the old block.
            let mut old_key = Some(old_key);
            for block in merged.blocks() {
                let (first, stored) = block?;
                let key = old_key.take().unwrap_or_else(|| block_key(first).into());
                before_change(&self.sled, &key)?;
                batch.insert(key, stored);
            }
            // No row is left: the old block is removed.
            if let Some(empty) = old_key {
                before_change(&self.sled, &empty)?;
                batch.remove(empty);
            }
        }
        before_change(&self.sled, CHECKPOINT)?;
        batch.insert(CHECKPOINT, checkpoint);
        self.sled.apply_batch(batch)?;
        Ok(())
    }
}

/// An iterator over rows, from either end. A row that is written during the iteration may be missed. No row is returned
/// twice.
pub struct Range {
    table: Table,
    /// The keys that were not returned yet, from `from` to `to`.
    from: Bound<IVec>,
    to: Bound<IVec>,
    front: RangeEnd,
    back: RangeEnd,
    /// True after an error. Then the iteration has ended.
    has_failed: bool,
}

/// The state of an iteration at one end of the range.
#[derive(Default)]
struct RangeEnd {
    /// The key of the block that was read last.
    block_key: Option<IVec>,
    /// The rows of that block that were not returned yet.
    rows: std::vec::IntoIter<KeyValue>,
}

impl Range {
    /// Iterates over the keys of the rows.
    pub fn keys(self) -> impl DoubleEndedIterator<Item = Result<RowBytes, StoreError>> {
        self.map(|row| row.map(|(key, _)| key))
    }

    fn contains(&self, key: &[u8]) -> bool {
        let keys: (Bound<&[u8]>, Bound<&[u8]>) = (self.from.as_ref().map(|k| &k[..]), self.to.as_ref().map(|k| &k[..]));
        RangeBounds::<[u8]>::contains(&keys, key)
    }

    /// Decodes those rows of a stored block that are in the range.
    fn rows(&self, stored: &IVec) -> Result<std::vec::IntoIter<KeyValue>, StoreError> {
        let block = block::decode(stored)?;
        let mut rows = Vec::new();
        for row in block::RowSpans::new(&block) {
            let block::RowSpan { key, value } = row?;
            if self.contains(&block[key.clone()]) {
                let bytes = |span: std::ops::Range<usize>| RowBytes(block.subslice(span.start, span.len()));
                rows.push((bytes(key), bytes(value)));
            }
        }
        Ok(rows.into_iter())
    }

    /// Reads the rows of the block that `next_block` finds. `None` if there is no more block.
    fn read_block(
        &mut self,
        next_block: impl FnOnce(&Self) -> Result<Option<(IVec, IVec)>, StoreError>,
    ) -> Option<Result<RangeEnd, StoreError>> {
        if self.has_failed {
            return None;
        }
        let found = next_block(self).transpose()?;
        let read = found.and_then(|(key, block)| Ok(RangeEnd { rows: self.rows(&block)?, block_key: Some(key) }));
        self.has_failed = read.is_err();
        Some(read)
    }

    /// Finds the next block from the front that may have rows of the range. Returns the block's key and stored form.
    fn next_block(&self) -> Result<Option<(IVec, IVec)>, StoreError> {
        let last = match &self.to {
            Bound::Unbounded => Bound::Excluded(vec![BLOCK + 1]),
            Bound::Included(to) | Bound::Excluded(to) => Bound::Included(block_key(to)),
        };
        let first = match (&self.front.block_key, &self.from) {
            (Some(previous), _) => Bound::Excluded(previous.to_vec()),
            (None, Bound::Unbounded) => Bound::Included(vec![BLOCK]),
            (None, Bound::Included(from) | Bound::Excluded(from)) => {
                if let Some(block) = self.table.stored_block_for(from)? {
                    return Ok(Some(block));
                }
                Bound::Included(vec![BLOCK])
            }
        };
        Ok(self.table.sled.range::<Vec<u8>, _>((first, last)).next().transpose()?)
    }

    /// Finds the next block from the back that may have rows of the range. Returns the block's key and stored form.
    fn next_block_back(&self) -> Result<Option<(IVec, IVec)>, StoreError> {
        let last = match (&self.back.block_key, &self.to) {
            (Some(previous), _) => Bound::Excluded(previous.to_vec()),
            (None, Bound::Unbounded) => Bound::Excluded(vec![BLOCK + 1]),
            (None, Bound::Included(to) | Bound::Excluded(to)) => Bound::Included(block_key(to)),
        };
        let first = Bound::Included(vec![BLOCK]);
        let Some((key, block)) = self.table.sled.range::<Vec<u8>, _>((first, last)).next_back().transpose()? else {
            return Ok(None);
        };
        // If the range begins in the block that was read before, earlier blocks have no rows of the range.
        let is_done = match (&self.back.block_key, &self.from) {
            (Some(previous), Bound::Included(from) | Bound::Excluded(from)) => previous[1..] <= from[..],
            _ => false,
        };
        Ok((!is_done).then_some((key, block)))
    }
}

impl Iterator for Range {
    type Item = Result<KeyValue, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.front.rows.next() {
                // `next_back` may have returned this row already.
                if !self.contains(&key) {
                    return None;
                }
                self.from = Bound::Excluded(key.0.clone());
                return Some(Ok((key, value)));
            }
            match self.read_block(Self::next_block)? {
                Ok(end) => self.front = end,
                Err(e) => return Some(Err(e)),
            }
        }
    }
}

impl DoubleEndedIterator for Range {
    fn next_back(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.back.rows.next_back() {
                if !self.contains(&key) {
                    return None;
                }
                self.to = Bound::Excluded(key.0.clone());
                return Some(Ok((key, value)));
            }
            match self.read_block(Self::next_block_back)? {
                Ok(end) => self.back = end,
                Err(e) => return Some(Err(e)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::Database;

    type Reference = BTreeMap<Vec<u8>, Vec<u8>>;

    fn empty_table() -> Table {
        Database::temporary(8).unwrap().table("rows").unwrap()
    }

    fn write(table: &Table, changes: &Reference, removed: &[Vec<u8>]) {
        let changes = changes.iter().map(|(key, value)| (key.clone(), Some(value)));
        let mut all: BTreeMap<_, _> = changes.collect();
        all.extend(removed.iter().map(|key| (key.clone(), None)));
        let written = table.write(
            all.into_iter().collect(),
            b"checkpoint",
            |_, _| Ok(()),
            |_, value, to| {
                to.extend_from_slice(value.map_or(&[], |value| value));
                Ok(value.is_some())
            },
        );
        written.unwrap();
    }

    fn collect(rows: impl Iterator<Item = Result<KeyValue, StoreError>>) -> Vec<(Vec<u8>, Vec<u8>)> {
        rows.map(|row| row.unwrap()).map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
    }

    /// Generates short keys, keys with common prefixes, and keys that consist of bytes 255.
    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..3),
            (0..4_u8, any::<u16>()).prop_map(|(letter, n)| [&[letter][..], &n.to_be_bytes()].concat()),
            (0..3_usize).prop_map(|n| vec![u8::MAX; n]),
        ]
    }

    /// Generates values of one repeated byte, and values that do not compress.
    fn value() -> impl Strategy<Value = Vec<u8>> {
        let length = prop_oneof![Just(0_usize), 1..60_usize, 500..1_500_usize, Just(9_000)];
        (any::<u64>(), length, any::<bool>()).prop_map(|(seed, length, is_repeated)| {
            let mut state = seed | 1;
            let mut byte = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                state.to_be_bytes()[0]
            };
            if is_repeated { vec![byte(); length] } else { std::iter::repeat_with(byte).take(length).collect() }
        })
    }

    /// Generates batches: the rows that each batch writes, and numbers that choose the rows that it removes.
    fn batches() -> impl Strategy<Value = Vec<(Reference, Vec<usize>)>> {
        let batch = (prop::collection::btree_map(key(), value(), 0..60), prop::collection::vec(any::<usize>(), 0..60));
        prop::collection::vec(batch, 1..12)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// After any series of batches, a table has the same rows as a sorted map.
        #[test]
        fn a_table_behaves_like_a_sorted_map(batches in batches(), from in key(), to in key()) {
            let (table, mut reference) = (empty_table(), Reference::new());
            for (changes, removed) in batches {
                let keys: Vec<_> = reference.keys().cloned().collect();
                let removed: Vec<_> = removed.iter().filter_map(|n| keys.get(n % keys.len().max(1)).cloned()).collect();
                write(&table, &changes, &removed);
                reference.extend(changes);
                reference.retain(|key, _| !removed.contains(key));

                let expected: Vec<_> = reference.clone().into_iter().collect();
                prop_assert_eq!(collect(table.all()), expected.clone());
                prop_assert_eq!(collect(table.all().rev()), expected.iter().rev().cloned().collect::<Vec<_>>());
                for key in keys.iter().chain([&from, &to]) {
                    prop_assert_eq!(table.get(key).unwrap().map(|value| value.to_vec()), reference.get(key).cloned());
                }
                let prefixed: Vec<_> = expected.iter().filter(|(key, _)| key.starts_with(&from)).cloned().collect();
                prop_assert_eq!(collect(table.scan_prefix(&from)), prefixed);
                if from <= to {
                    let in_range = reference.range(from.clone()..to.clone());
                    let in_range: Vec<_> = in_range.map(|(k, v)| (k.clone(), v.clone())).collect();
                    let mut backwards = collect(table.range(from.clone()..to.clone()).rev());
                    backwards.reverse();
                    prop_assert_eq!(backwards, in_range.clone());
                    prop_assert_eq!(collect(table.range(from.clone()..to.clone())), in_range);
                }
                let empty = || table.range(from.clone()..from.clone());
                prop_assert_eq!(empty().count() + empty().rev().count(), 0);
                let inverted = || table.range([&to[..], &[0]].concat()..to.clone());
                prop_assert_eq!(inverted().count() + inverted().rev().count(), 0);
                for stored in table.sled_tree().range([BLOCK]..).values() {
                    let stored = stored.unwrap();
                    let block = block::decode(&stored).unwrap();
                    let rows = block::RowSpans::new(&block).count();
                    let is_short = block.len() <= block::MAX_ROWS_BYTES && stored.len() <= block::MAX_STORED_BYTES;
                    let lengths = format!("{rows} rows of {} bytes, stored in {}", block.len(), stored.len());
                    prop_assert!(rows == 1 || rows > 0 && is_short, "{lengths}");
                }
            }
            prop_assert_eq!(&*table.checkpoint_row().unwrap().unwrap(), b"checkpoint".as_slice());
        }

        /// A write during an iteration may move rows to other blocks. The iteration still returns every old row exactly
        /// once, from one end or the other.
        #[test]
        fn an_iteration_returns_each_row_once_while_others_are_written(
            before in prop::collection::btree_map(key(), value(), 1..80),
            batches in batches(),
        ) {
            let table = empty_table();
            write(&table, &before, &[]);
            let (mut rows, mut ends, mut batches) = (table.all(), [Vec::new(), Vec::new()], batches.into_iter());
            for n in 0.. {
                let row = if n % 3 == 0 { rows.next_back() } else { rows.next() };
                let Some(row) = row else { break };
                ends[usize::from(n % 3 == 0)].push(row.unwrap().0.to_vec());
                if n % 5 == 0 && let Some((mut changes, _)) = batches.next() {
                    changes.retain(|key, _| !before.contains_key(key));
                    write(&table, &changes, &[]);
                }
            }
            let [mut front, mut back] = ends;
            prop_assert!(front.is_sorted() && back.iter().rev().is_sorted());
            front.extend(back.drain(..).rev());
            let mut distinct = front.clone();
            distinct.dedup();
            prop_assert_eq!(&distinct, &front);
            prop_assert!(before.keys().all(|key| distinct.contains(key)));
        }
    }

    #[test]
    fn reading_a_truncated_block_fails() {
        let table = empty_table();
        write(&table, &Reference::from([(b"row".to_vec(), b"value".to_vec())]), &[]);
        let block = table.sled_tree().get([BLOCK]).unwrap().unwrap();
        table.sled_tree().insert([BLOCK], &block[..block.len() - 1]).unwrap();
        assert!(table.get("row").unwrap_err().to_string().contains("ends within a row"));
        assert_eq!(table.all().count(), 1, "the error is the last item");
        assert_eq!(table.all().rev().filter(Result::is_err).count(), 1);
    }
}
