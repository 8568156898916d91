//! A block is many neighbouring rows of a table, stored as one value of sled. `table.rs` chooses the key of a block.
//!
//! Layout of a row: length of the key (u16), length of the value (u32), the key, the value. Layout of a stored block:
//! the byte `RAW` and the rows, or the byte `LZ4`, the length of the rows (u32) and the compressed rows. All numbers
//! are little-endian.

use std::ops::Range;

use sled::IVec;

use crate::StoreError;

/// A block of more than one row is split if its rows have more bytes than this. The size is a compromise. A page of
/// sled has at most sixteen values and costs some hundred bytes of memory, so long blocks save memory. But one changed
/// row writes its whole block, so short blocks save writes.
pub(crate) const MAX_ROWS_BYTES: usize = 8 << 10;
/// A block of more than one row is also split if its stored form has more bytes than this. sled evicts pages from each
/// of the 256 parts of its cache only once in 64 reads, so up to 64 pages per part stay in memory whatever the size of
/// the cache. Therefore pages must be small, even if the rows do not compress (hashes, for example).
pub(crate) const MAX_STORED_BYTES: usize = 3 << 10;
/// The bytes of both lengths before a row's key.
const ROW_HEADER: usize = 6;
/// The first byte of a stored block whose rows are not compressed.
const RAW: u8 = 0;
/// The first byte of a stored block whose rows are compressed.
const LZ4: u8 = 1;
/// The greatest length of a stored block, bytes, including the first byte `RAW` or `LZ4`. So the uncompressed rows of
/// a block must be at least one byte shorter.
pub const MAX_BLOCK_BYTES: usize = 64 << 20;

/// Makes the stored form of a block. Compression is used if the block becomes shorter.
fn encode(rows: &[u8]) -> Result<Vec<u8>, StoreError> {
    if rows.len() >= MAX_BLOCK_BYTES {
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

/// Returns the uncompressed rows of a stored block.
pub(crate) fn decode(stored: &IVec) -> Result<IVec, StoreError> {
    let corrupt = |problem: &str| StoreError::corrupt(b"", problem);
    match stored.split_first() {
        None => Err(corrupt("a stored block is empty")),
        Some((&RAW, rows)) => Ok(stored.subslice(1, rows.len())),
        Some((&LZ4, compressed)) => {
            let (length, compressed) =
                compressed.split_first_chunk().ok_or_else(|| corrupt("a block ends before its length is complete"))?;
            let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
            if length > MAX_BLOCK_BYTES {
                return Err(corrupt("a block is too long"));
            }
            let rows = lz4_flex::block::decompress(compressed, length).map_err(|e| corrupt(&e.to_string()))?;
            Ok(rows.into())
        }
        Some(_) => Err(corrupt("the first byte of a block is neither RAW nor LZ4")),
    }
}

/// The byte ranges of a row's key and value in the uncompressed block.
#[derive(Clone)]
pub(crate) struct RowSpan {
    pub(crate) key: Range<usize>,
    pub(crate) value: Range<usize>,
}

/// Iterates over the rows of an uncompressed block, in order.
pub(crate) struct RowSpans<'b> {
    block: &'b [u8],
    /// The offset of the next row.
    offset: usize,
}

impl<'b> RowSpans<'b> {
    pub(crate) fn new(block: &'b [u8]) -> Self {
        Self { block, offset: 0 }
    }

    fn next_row(&self) -> Option<RowSpan> {
        let (header, _) = self.block.get(self.offset..)?.split_first_chunk::<ROW_HEADER>()?;
        let [k0, k1, v0, v1, v2, v3] = *header;
        let key_length = usize::from(u16::from_le_bytes([k0, k1]));
        let value_length = usize::try_from(u32::from_le_bytes([v0, v1, v2, v3])).ok()?;
        let key_start = self.offset + ROW_HEADER;
        let key = key_start..key_start + key_length;
        let value = key.end..key.end.checked_add(value_length)?;
        (value.end <= self.block.len()).then_some(RowSpan { key, value })
    }
}

impl Iterator for RowSpans<'_> {
    type Item = Result<RowSpan, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.offset >= self.block.len() {
            return None;
        }
        let row = self.next_row();
        // After a damaged row, the offset of the next row is unknown: the iteration ends.
        self.offset = row.as_ref().map_or(self.block.len(), |row| row.value.end);
        Some(row.ok_or_else(|| StoreError::corrupt(b"", "a block ends within a row")))
    }
}

/// Finds the row with this key in an uncompressed block, and returns the byte range of its value.
pub(crate) fn find(block: &[u8], key: &[u8]) -> Result<Option<Range<usize>>, StoreError> {
    for row in RowSpans::new(block) {
        let row = row?;
        match block[row.key].cmp(key) {
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Equal => return Ok(Some(row.value)),
            std::cmp::Ordering::Greater => break,
        }
    }
    Ok(None)
}

/// Sorted rows that will be split into blocks.
#[derive(Default)]
pub(crate) struct RowBuffer {
    bytes: Vec<u8>,
    /// The offset at which each row begins.
    starts: Vec<usize>,
}

impl RowBuffer {
    /// Appends a row of another block.
    fn push_copy(&mut self, block: &[u8], row: &RowSpan) {
        self.starts.push(self.bytes.len());
        self.bytes.extend_from_slice(&block[row.key.start - ROW_HEADER..row.value.end]);
    }

    /// Appends a row. `write_value` appends the row's value and returns true. If `write_value` returns false, no row is
    /// added.
    fn push(
        &mut self,
        key: &[u8],
        write_value: impl FnOnce(&mut Vec<u8>) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let start = self.bytes.len();
        let key_length = u16::try_from(key.len()).map_err(|e| StoreError::corrupt(key, e))?;
        self.bytes.extend_from_slice(&key_length.to_le_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(key);
        let value_start = self.bytes.len();
        if !write_value(&mut self.bytes)? {
            self.bytes.truncate(start);
            return Ok(());
        }
        let value_length = u32::try_from(self.bytes.len() - value_start).map_err(|e| StoreError::corrupt(key, e))?;
        self.bytes[start + 2..start + ROW_HEADER].copy_from_slice(&value_length.to_le_bytes());
        self.starts.push(start);
        Ok(())
    }

    /// Merges sorted changes into the rows of an uncompressed block. `write` gets a key, its change, and the buffer to
    /// which it appends the row's new value. If `write` returns false, the row is removed.
    pub(crate) fn merge<R>(
        block: &[u8],
        changes: impl Iterator<Item = (Vec<u8>, R)>,
        mut write: impl FnMut(&[u8], R, &mut Vec<u8>) -> Result<bool, StoreError>,
    ) -> Result<Self, StoreError> {
        let mut merged = Self::default();
        let rows: Vec<RowSpan> = RowSpans::new(block).collect::<Result<_, _>>()?;
        let mut rows = rows.into_iter().peekable();
        for (key, change) in changes {
            while let Some(row) = rows.next_if(|row| block[row.key.clone()] < key[..]) {
                merged.push_copy(block, &row);
            }
            rows.next_if(|row| block[row.key.clone()] == key[..]);
            merged.push(&key, |to| write(&key, change, to))?;
        }
        for row in rows {
            merged.push_copy(block, &row);
        }
        Ok(merged)
    }

    /// Splits the rows into blocks, and returns the first key and the stored form of each block. A block that is too
    /// long is split in half, and each half again if necessary, down to single rows.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = Result<(&[u8], Vec<u8>), StoreError>> {
        // A stack of row ranges that are not stored yet. The range with the lowest keys is on top.
        let mut remaining = Vec::new();
        remaining.push(0..self.starts.len());
        std::iter::from_fn(move || {
            loop {
                let rows = remaining.pop().filter(|rows| !rows.is_empty())?;
                let start = self.starts[rows.start];
                let block = &self.bytes[start..self.starts.get(rows.end).copied().unwrap_or(self.bytes.len())];
                if rows.len() == 1 || block.len() <= MAX_ROWS_BYTES {
                    let stored = encode(block);
                    if rows.len() == 1 || stored.as_ref().map_or(true, |stored| stored.len() <= MAX_STORED_BYTES) {
                        let key_length = usize::from(u16::from_le_bytes([block[0], block[1]]));
                        return Some(stored.map(|stored| (&block[ROW_HEADER..ROW_HEADER + key_length], stored)));
                    }
                }
                let middle = start + block.len() / 2;
                let rows_before = self.starts[rows.clone()].partition_point(|start| *start < middle);
                let split = rows.start + rows_before.clamp(1, rows.len() - 1);
                remaining.extend([split..rows.end, rows.start..split]);
            }
        })
    }
}
