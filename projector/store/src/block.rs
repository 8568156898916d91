//! Blocks: many neighbouring rows as one value of sled. Their layout, the search in them, and how they are cut.
//!
//! In a block, a row is the length of its key (u16), the length of its value (u32), both little-endian, the key, and
//! the value. A stored block begins with one byte: `RAW`, before the rows as they are, or `LZ4`, before their length
//! and the compressed rows. Under which key a block is stored is decided in `table.rs`.

use std::ops::Range;

use sled::IVec;

use crate::StoreError;

/// A block with more bytes of rows is cut. sled keeps at most sixteen values in a page, and some hundred bytes of
/// memory for each page: with long blocks there are fewer pages, with short blocks less is written for a row that
/// changed.
pub(crate) const MOST: usize = 8 << 10;
/// A block with more bytes in its stored form is cut, too. sled bounds each of the 256 parts of its cache only once in
/// 64 reads, and keeps all pages that are read meanwhile in memory, however small the cache. So pages must be small,
/// also those of blocks that do not compress, such as hashes.
pub(crate) const MOST_STORED: usize = 3 << 10;
const HEAD: usize = 6;
const RAW: u8 = 0;
const LZ4: u8 = 1;
/// The longest block, and so the longest row, in bytes. A block that claims to be longer is corrupt.
pub const LONGEST: usize = 64 << 20;

/// The stored form of a block. Rows of one kind compress well: most of their text is the same.
fn stored(rows: &[u8]) -> Result<Vec<u8>, StoreError> {
    if rows.len() >= LONGEST {
        return Err(StoreError::corrupt(b"", "the row is too long for a block"));
    }
    let mut stored = vec![LZ4; 5 + lz4_flex::block::get_maximum_output_size(rows.len())];
    let length = u32::try_from(rows.len()).unwrap_or(u32::MAX);
    stored[1..5].copy_from_slice(&length.to_le_bytes());
    match lz4_flex::block::compress_into(rows, &mut stored[5..]) {
        Ok(written) if 5 + written < rows.len() => stored.truncate(5 + written),
        _ => {
            stored.clear();
            stored.push(RAW);
            stored.extend_from_slice(rows);
        }
    }
    Ok(stored)
}

/// The rows of a stored block.
pub(crate) fn rows(stored: &IVec) -> Result<IVec, StoreError> {
    let corrupt = |problem: &str| StoreError::corrupt(b"", problem);
    match stored.split_first() {
        None => Ok(IVec::default()),
        Some((&RAW, rows)) => Ok(stored.subslice(1, rows.len())),
        Some((&LZ4, compressed)) => {
            let (length, compressed) =
                compressed.split_first_chunk().ok_or_else(|| corrupt("a block ends within its length"))?;
            let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
            if length > LONGEST {
                return Err(corrupt("a block is too long"));
            }
            let rows = lz4_flex::block::decompress(compressed, length).map_err(|e| corrupt(&e.to_string()))?;
            Ok(rows.into())
        }
        Some(_) => Err(corrupt("a block is of no known kind")),
    }
}

/// The place of a row in its block.
#[derive(Clone)]
pub(crate) struct RowSpan {
    pub(crate) key: Range<usize>,
    pub(crate) value: Range<usize>,
}

/// The places of a block's rows, in order.
pub(crate) struct RowSpans<'b> {
    block: &'b [u8],
    at: usize,
}

impl<'b> RowSpans<'b> {
    pub(crate) fn of(block: &'b [u8]) -> Self {
        Self { block, at: 0 }
    }

    fn next_row(&self) -> Option<RowSpan> {
        let (head, _) = self.block.get(self.at..)?.split_first_chunk::<HEAD>()?;
        let [k0, k1, v0, v1, v2, v3] = *head;
        let key = usize::from(u16::from_le_bytes([k0, k1]));
        let value = usize::try_from(u32::from_le_bytes([v0, v1, v2, v3])).ok()?;
        let key = self.at + HEAD..self.at + HEAD + key;
        let value = key.end..key.end.checked_add(value)?;
        (value.end <= self.block.len()).then_some(RowSpan { key, value })
    }
}

impl Iterator for RowSpans<'_> {
    type Item = Result<RowSpan, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.block.len() {
            return None;
        }
        let row = self.next_row();
        // After a row that cannot be read, the next one cannot be found.
        self.at = row.as_ref().map_or(self.block.len(), |row| row.value.end);
        Some(row.ok_or_else(|| StoreError::corrupt(b"", "a block ends within a row")))
    }
}

/// The place of a row's value.
pub(crate) fn find(block: &[u8], key: &[u8]) -> Result<Option<Range<usize>>, StoreError> {
    for row in RowSpans::of(block) {
        let row = row?;
        match block[row.key].cmp(key) {
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Equal => return Ok(Some(row.value)),
            std::cmp::Ordering::Greater => break,
        }
    }
    Ok(None)
}

/// Rows in order, before they are cut into blocks.
#[derive(Default)]
pub(crate) struct Packed {
    bytes: Vec<u8>,
    /// The place at which each row begins.
    starts: Vec<usize>,
}

impl Packed {
    /// Adds a row of another block.
    fn copy(&mut self, block: &[u8], row: &RowSpan) {
        self.starts.push(self.bytes.len());
        self.bytes.extend_from_slice(&block[row.key.start - HEAD..row.value.end]);
    }

    /// Adds a row. `value` appends the row's value, or returns false: then no row is added.
    fn push(
        &mut self,
        key: &[u8],
        value: impl FnOnce(&mut Vec<u8>) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let start = self.bytes.len();
        let key_length = u16::try_from(key.len()).map_err(|e| StoreError::corrupt(key, e))?;
        self.bytes.extend_from_slice(&key_length.to_le_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(key);
        let before = self.bytes.len();
        if !value(&mut self.bytes)? {
            self.bytes.truncate(start);
            return Ok(());
        }
        let value_length = u32::try_from(self.bytes.len() - before).map_err(|e| StoreError::corrupt(key, e))?;
        self.bytes[start + 2..start + HEAD].copy_from_slice(&value_length.to_le_bytes());
        self.starts.push(start);
        Ok(())
    }

    /// The rows of a block after changes. The changes are in the order of their keys, as the rows are.
    pub(crate) fn changed<R>(
        block: &[u8],
        changes: impl Iterator<Item = (Vec<u8>, R)>,
        mut write: impl FnMut(&[u8], R, &mut Vec<u8>) -> Result<bool, StoreError>,
    ) -> Result<Self, StoreError> {
        let mut packed = Self::default();
        let rows: Vec<RowSpan> = RowSpans::of(block).collect::<Result<_, _>>()?;
        let mut rows = rows.into_iter().peekable();
        for (key, change) in changes {
            while let Some(row) = rows.next_if(|row| block[row.key.clone()] < key[..]) {
                packed.copy(block, &row);
            }
            rows.next_if(|row| block[row.key.clone()] == key[..]);
            packed.push(&key, |to| write(&key, change, to))?;
        }
        for row in rows {
            packed.copy(block, &row);
        }
        Ok(packed)
    }

    /// The stored form of the rows as blocks, each with its first key. A block that is too long is cut in half, and its
    /// halves again, down to single rows.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = Result<(&[u8], Vec<u8>), StoreError>> {
        // The ranges of rows that are not stored yet, in reverse order.
        let mut left = Vec::new();
        left.push(0..self.starts.len());
        std::iter::from_fn(move || {
            loop {
                let rows = left.pop().filter(|rows| !rows.is_empty())?;
                let start = self.starts[rows.start];
                let block = &self.bytes[start..self.starts.get(rows.end).copied().unwrap_or(self.bytes.len())];
                if rows.len() == 1 || block.len() <= MOST {
                    let stored = stored(block);
                    if rows.len() == 1 || stored.as_ref().map_or(true, |stored| stored.len() <= MOST_STORED) {
                        let key = usize::from(u16::from_le_bytes([block[0], block[1]]));
                        return Some(stored.map(|stored| (&block[HEAD..HEAD + key], stored)));
                    }
                }
                let middle = start + block.len() / 2;
                let before = self.starts[rows.clone()].partition_point(|start| *start < middle);
                let cut = rows.start + before.clamp(1, rows.len() - 1);
                left.extend([cut..rows.end, rows.start..cut]);
            }
        })
    }
}
