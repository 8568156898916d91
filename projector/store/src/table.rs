//! A model's sorted rows in a tree of sled: blocks of rows, and the checkpoint. Both are written in one atomic batch.
//!
//! Each block is stored under the lowest key that it may hold, and holds the rows up to the key of the next block. The
//! first block may hold any key that is lower than the second block's, and need not exist.

use std::ops::{Bound, RangeBounds};

use sled::IVec;

use crate::{
    RowBytes, StoreError,
    block::{self, Packed},
};

/// A table of sorted rows. Clones are handles on the same one.
#[derive(Clone)]
pub struct Table {
    sled: sled::Tree,
}

/// The key of the checkpoint in sled's tree: lower than that of every block.
pub const CHECKPOINT: &[u8] = b"\0checkpoint";
/// The first byte of a block's key in sled's tree.
const BLOCK: u8 = 1;

/// A row's key and value.
pub type KeyValue = (RowBytes, RowBytes);

/// The key in sled's tree of a block whose lowest row has this key.
fn place(key: &[u8]) -> Vec<u8> {
    let mut place = Vec::with_capacity(1 + key.len());
    place.push(BLOCK);
    place.extend_from_slice(key);
    place
}

impl Table {
    /// The table in a tree of sled.
    pub(crate) fn over(sled: sled::Tree) -> Self {
        Self { sled }
    }

    /// The tree of sled that has the blocks and the checkpoint.
    pub(crate) fn sled(&self) -> &sled::Tree {
        &self.sled
    }

    /// The table's name.
    pub fn name(&self) -> RowBytes {
        RowBytes(self.sled.name())
    }

    /// Removes every row, and the checkpoint.
    pub fn clear(&self) -> Result<(), StoreError> {
        Ok(self.sled.clear()?)
    }

    /// Waits until everything is on disk.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.sled.flush()?;
        Ok(())
    }

    /// The checkpoint's row.
    pub(crate) fn checkpoint_row(&self) -> Result<Option<RowBytes>, StoreError> {
        Ok(self.sled.get(CHECKPOINT)?.map(RowBytes))
    }

    /// Puts a block, or the checkpoint, at the place that it had in another table.
    pub fn put_stored(&self, place: &[u8], stored: impl AsRef<[u8]>) -> Result<(), StoreError> {
        if place != CHECKPOINT && place.first() != Some(&BLOCK) {
            return Err(StoreError::corrupt(place, "this is not the place of a block"));
        }
        self.sled.insert(place, stored.as_ref())?;
        Ok(())
    }

    /// Makes this empty table a copy of another as it is now.
    pub fn copy_from(&self, other: &Self) -> Result<(), StoreError> {
        for entry in &other.sled {
            let (place, block) = entry?;
            self.put_stored(&place, block)?;
        }
        Ok(())
    }

    /// The block that may hold a key: its place, and its stored form; `None` where that is the first and does not
    /// exist.
    fn stored_for(&self, key: &[u8]) -> Result<Option<(IVec, IVec)>, StoreError> {
        Ok(self.sled.range::<Vec<u8>, _>(vec![BLOCK]..=place(key)).next_back().transpose()?)
    }

    /// The block that may hold a key: its place, and its rows.
    fn block_of(&self, key: &[u8]) -> Result<(IVec, IVec), StoreError> {
        match self.stored_for(key)? {
            Some((place, stored)) => Ok((place, block::rows(&stored)?)),
            None => Ok((IVec::from(&[BLOCK]), IVec::default())),
        }
    }

    /// A row's value.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<RowBytes>, StoreError> {
        let (_, block) = self.block_of(key.as_ref())?;
        Ok(block::find(&block, key.as_ref())?.map(|value| RowBytes(block.subslice(value.start, value.len()))))
    }

    /// The rows in a range of keys, from either end.
    pub fn range<K: AsRef<[u8]>>(&self, keys: impl RangeBounds<K>) -> Range {
        let bound = |bound: Bound<&K>| bound.map(|key| IVec::from(key.as_ref()));
        let (from, to) = (bound(keys.start_bound()), bound(keys.end_bound()));
        let (front, back) = (RangeEnd::default(), RangeEnd::default());
        Range { table: self.clone(), from, to, front, back, failed: false }
    }

    /// The rows whose keys begin with a prefix, from either end.
    pub fn scan_prefix(&self, prefix: impl AsRef<[u8]>) -> Range {
        let prefix = prefix.as_ref();
        // The first key after all of them: the prefix with its last byte raised by one, after bytes that are 255
        // already were cut off.
        let mut after = prefix.to_vec();
        while after.last() == Some(&u8::MAX) {
            after.pop();
        }
        match after.last_mut() {
            Some(last) => *last += 1,
            None => return self.range(prefix..),
        }
        self.range(prefix..&after[..])
    }

    /// Every row.
    pub fn all(&self) -> Range {
        self.scan_prefix([])
    }

    /// Writes changes and the checkpoint as one atomic batch. The changes are in the order of their keys. `write`
    /// appends the value of a row, or returns false: then the row is removed. `before` is called with the place of each
    /// block before the block is changed.
    pub(crate) fn write<R>(
        &self,
        changes: Vec<(Vec<u8>, R)>,
        checkpoint: &[u8],
        mut before: impl FnMut(&sled::Tree, &[u8]) -> Result<(), StoreError>,
        mut write: impl FnMut(&[u8], R, &mut Vec<u8>) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        let mut changes = changes.into_iter().peekable();
        while let Some((first, _)) = changes.peek() {
            let (at, block) = self.block_of(first)?;
            let after = (Bound::Excluded(at.clone()), Bound::Excluded(IVec::from(&[BLOCK + 1])));
            let next = self.sled.range::<IVec, _>(after).next().transpose()?.map(|(next, _)| next);
            let within = |key: &[u8]| next.as_ref().is_none_or(|next| key < &next[1..]);
            let of_block = std::iter::from_fn(|| changes.next_if(|(key, _)| within(key)));
            let packed = Packed::changed(&block, of_block, &mut write)?;
            let mut at = Some(at);
            for block in packed.blocks() {
                let (first, stored) = block?;
                let at = at.take().unwrap_or_else(|| place(first).into());
                before(&self.sled, &at)?;
                batch.insert(at, stored);
            }
            if let Some(emptied) = at {
                before(&self.sled, &emptied)?;
                batch.remove(emptied);
            }
        }
        before(&self.sled, CHECKPOINT)?;
        batch.insert(CHECKPOINT, checkpoint);
        self.sled.apply_batch(batch)?;
        Ok(())
    }
}

/// Rows from either end. A row that is written meanwhile may be missing; no row comes twice.
pub struct Range {
    table: Table,
    from: Bound<IVec>,
    to: Bound<IVec>,
    front: RangeEnd,
    back: RangeEnd,
    /// True if an error came: nothing follows it.
    failed: bool,
}

/// One end of a range.
#[derive(Default)]
struct RangeEnd {
    /// The place of the block that was read last.
    place: Option<IVec>,
    rows: std::vec::IntoIter<KeyValue>,
}

impl Range {
    /// The keys of the rows.
    pub fn keys(self) -> impl DoubleEndedIterator<Item = Result<RowBytes, StoreError>> {
        self.map(|row| row.map(|(key, _)| key))
    }

    fn holds(&self, key: &[u8]) -> bool {
        let keys: (Bound<&[u8]>, Bound<&[u8]>) = (self.from.as_ref().map(|k| &k[..]), self.to.as_ref().map(|k| &k[..]));
        RangeBounds::<[u8]>::contains(&keys, key)
    }

    /// The rows of a stored block that are in the range.
    fn rows(&self, stored: &IVec) -> Result<std::vec::IntoIter<KeyValue>, StoreError> {
        let block = block::rows(stored)?;
        let mut rows = Vec::new();
        for row in block::RowSpans::of(&block) {
            let block::RowSpan { key, value } = row?;
            if self.holds(&block[key.clone()]) {
                let bytes = |part: std::ops::Range<usize>| RowBytes(block.subslice(part.start, part.len()));
                rows.push((bytes(key), bytes(value)));
            }
        }
        Ok(rows.into_iter())
    }

    /// The rows of the block that `next` finds.
    fn read(
        &mut self,
        next: impl FnOnce(&Self) -> Result<Option<(IVec, IVec)>, StoreError>,
    ) -> Option<Result<RangeEnd, StoreError>> {
        if self.failed {
            return None;
        }
        let found = next(self).transpose()?;
        let read = found.and_then(|(place, block)| Ok(RangeEnd { rows: self.rows(&block)?, place: Some(place) }));
        self.failed = read.is_err();
        Some(read)
    }

    /// The next block from the front that may hold rows of the range.
    fn next_block(&self) -> Result<Option<(IVec, IVec)>, StoreError> {
        let last = match &self.to {
            Bound::Unbounded => Bound::Excluded(vec![BLOCK + 1]),
            Bound::Included(to) | Bound::Excluded(to) => Bound::Included(place(to)),
        };
        let first = match (&self.front.place, &self.from) {
            (Some(before), _) => Bound::Excluded(before.to_vec()),
            (None, Bound::Unbounded) => Bound::Included(vec![BLOCK]),
            (None, Bound::Included(from) | Bound::Excluded(from)) => {
                if let Some(begins) = self.table.stored_for(from)? {
                    return Ok(Some(begins));
                }
                Bound::Included(vec![BLOCK])
            }
        };
        Ok(self.table.sled.range::<Vec<u8>, _>((first, last)).next().transpose()?)
    }

    /// The next block from the back that may hold rows of the range.
    fn next_block_back(&self) -> Result<Option<(IVec, IVec)>, StoreError> {
        let last = match (&self.back.place, &self.to) {
            (Some(before), _) => Bound::Excluded(before.to_vec()),
            (None, Bound::Unbounded) => Bound::Excluded(vec![BLOCK + 1]),
            (None, Bound::Included(to) | Bound::Excluded(to)) => Bound::Included(place(to)),
        };
        let first = Bound::Included(vec![BLOCK]);
        let Some((at, block)) = self.table.sled.range::<Vec<u8>, _>((first, last)).next_back().transpose()? else {
            return Ok(None);
        };
        // The range began in the block that was read before: nothing of it can be in this one.
        let begun = match (&self.back.place, &self.from) {
            (Some(before), Bound::Included(from) | Bound::Excluded(from)) => before[1..] <= from[..],
            _ => false,
        };
        Ok((!begun).then_some((at, block)))
    }
}

impl Iterator for Range {
    type Item = Result<KeyValue, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.front.rows.next() {
                // The other end of the range may have returned this row already.
                if !self.holds(&key) {
                    return None;
                }
                self.from = Bound::Excluded(key.0.clone());
                return Some(Ok((key, value)));
            }
            match self.read(Self::next_block)? {
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
                if !self.holds(&key) {
                    return None;
                }
                self.to = Bound::Excluded(key.0.clone());
                return Some(Ok((key, value)));
            }
            match self.read(Self::next_block_back)? {
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

    fn fresh() -> Table {
        Database::temporary(8).unwrap().table("rows").unwrap()
    }

    fn write(table: &Table, changes: &Reference, gone: &[Vec<u8>]) {
        let changes = changes.iter().map(|(key, value)| (key.clone(), Some(value)));
        let mut all: BTreeMap<_, _> = changes.collect();
        all.extend(gone.iter().map(|key| (key.clone(), None)));
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

    fn of(rows: impl Iterator<Item = Result<KeyValue, StoreError>>) -> Vec<(Vec<u8>, Vec<u8>)> {
        rows.map(|row| row.unwrap()).map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
    }

    /// Keys with common prefixes, keys of bytes 255, and short keys.
    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..3),
            (0..4_u8, any::<u16>()).prop_map(|(letter, n)| [&[letter][..], &n.to_be_bytes()].concat()),
            (0..3_usize).prop_map(|n| vec![u8::MAX; n]),
        ]
    }

    /// Values of one repeated byte, and values that do not compress.
    fn value() -> impl Strategy<Value = Vec<u8>> {
        let length = prop_oneof![Just(0_usize), 1..60_usize, 500..1_500_usize, Just(9_000)];
        (any::<u64>(), length, any::<bool>()).prop_map(|(seed, length, one)| {
            let mut state = seed | 1;
            let mut byte = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                state.to_be_bytes()[0]
            };
            if one { vec![byte(); length] } else { std::iter::repeat_with(byte).take(length).collect() }
        })
    }

    fn batches() -> impl Strategy<Value = Vec<(Reference, Vec<usize>)>> {
        let batch = (prop::collection::btree_map(key(), value(), 0..60), prop::collection::vec(any::<usize>(), 0..60));
        prop::collection::vec(batch, 1..12)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever is written in whatever batches, the rows are those of a sorted map.
        #[test]
        fn rows_are_where_they_belong(batches in batches(), from in key(), to in key()) {
            let (table, mut model) = (fresh(), Reference::new());
            for (changes, gone) in batches {
                let keys: Vec<_> = model.keys().cloned().collect();
                let gone: Vec<_> = gone.iter().filter_map(|n| keys.get(n % keys.len().max(1)).cloned()).collect();
                write(&table, &changes, &gone);
                model.extend(changes);
                model.retain(|key, _| !gone.contains(key));

                let expected: Vec<_> = model.clone().into_iter().collect();
                prop_assert_eq!(of(table.all()), expected.clone());
                prop_assert_eq!(of(table.all().rev()), expected.iter().rev().cloned().collect::<Vec<_>>());
                for key in keys.iter().chain([&from, &to]) {
                    prop_assert_eq!(table.get(key).unwrap().map(|value| value.to_vec()), model.get(key).cloned());
                }
                let prefixed: Vec<_> = expected.iter().filter(|(key, _)| key.starts_with(&from)).cloned().collect();
                prop_assert_eq!(of(table.scan_prefix(&from)), prefixed);
                if from <= to {
                    let part = model.range(from.clone()..to.clone());
                    let part: Vec<_> = part.map(|(k, v)| (k.clone(), v.clone())).collect();
                    let mut backwards = of(table.range(from.clone()..to.clone()).rev());
                    backwards.reverse();
                    prop_assert_eq!(backwards, part.clone());
                    prop_assert_eq!(of(table.range(from.clone()..to.clone())), part);
                }
                let nothing = || table.range(from.clone()..from.clone());
                prop_assert_eq!(nothing().count() + nothing().rev().count(), 0);
                let inverted = || table.range([&to[..], &[0]].concat()..to.clone());
                prop_assert_eq!(inverted().count() + inverted().rev().count(), 0);
                for stored in table.sled().range([BLOCK]..).values() {
                    let stored = stored.unwrap();
                    let block = block::rows(&stored).unwrap();
                    let rows = block::RowSpans::of(&block).count();
                    let short = block.len() <= block::MOST && stored.len() <= block::MOST_STORED;
                    prop_assert!(rows == 1 || rows > 0 && short, "{} in {rows}, {} stored", block.len(), stored.len());
                }
            }
            prop_assert_eq!(&*table.checkpoint_row().unwrap().unwrap(), b"checkpoint".as_slice());
        }

        /// Writing during an iteration moves rows to other blocks. No row that stays is missed or comes twice, from
        /// either end.
        #[test]
        fn rows_that_stay_come_once(
            before in prop::collection::btree_map(key(), value(), 1..80),
            batches in batches(),
        ) {
            let table = fresh();
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
            let mut once = front.clone();
            once.dedup();
            prop_assert_eq!(&once, &front);
            prop_assert!(before.keys().all(|key| once.contains(key)));
        }
    }

    #[test]
    fn a_block_that_was_cut_short_is_said_to_be() {
        let table = fresh();
        write(&table, &Reference::from([(b"row".to_vec(), b"value".to_vec())]), &[]);
        let block = table.sled().get([BLOCK]).unwrap().unwrap();
        table.sled().insert([BLOCK], &block[..block.len() - 1]).unwrap();
        assert!(table.get("row").unwrap_err().to_string().contains("ends within a row"));
        assert_eq!(table.all().count(), 1, "nothing comes after the error");
        assert_eq!(table.all().rev().filter(Result::is_err).count(), 1);
    }
}
