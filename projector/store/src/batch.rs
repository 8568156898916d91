//! The write batch, and functions that read typed rows. A write batch collects the rows that a series of events
//! changes. The commit writes these rows and the table's checkpoint as one atomic change.
//!
//! The checkpoint is the sequence of the last event that was folded into the table. Beside the checkpoint the table
//! keeps the leaf of that event's message: its hash in the Merkle tree of the log. Another log has another leaf at the
//! same sequence, so the leaf tells whether a table was folded from the present log.

use std::any::Any;

use gpubnb_events::{Seq, message::Hash};
use hashbrown::{HashMap, hash_map::EntryRef};
use serde::{Serialize, de::DeserializeOwned};

use crate::{SnapshotCopy, StoreError, Table, snapshot_copy::CopyLock};

/// A table's checkpoint. `Seq::ZERO` if nothing has been committed to the table.
pub fn checkpoint(table: &Table) -> Result<Seq, StoreError> {
    table.checkpoint_row()?.map_or(Ok(Seq::ZERO), |row| decode_checkpoint(&row))
}

/// Decodes the checkpoint from the bytes of the checkpoint row.
pub fn decode_checkpoint(row: &[u8]) -> Result<Seq, StoreError> {
    let seq = row.get(..8).and_then(|seq| seq.try_into().ok()).map(u64::from_be_bytes);
    seq.map(Seq).ok_or_else(|| corrupt(b"checkpoint", "the checkpoint is not eight bytes"))
}

/// Decodes the leaf from the bytes of the checkpoint row. `None` if the table was committed without a leaf.
pub fn decode_leaf(row: &[u8]) -> Option<Hash> {
    row.get(8..)?.try_into().ok()
}

/// The leaf of the last message that was folded into a table. `None` if the table was committed without a leaf.
pub fn checkpoint_leaf(table: &Table) -> Result<Option<Hash>, StoreError> {
    Ok(table.checkpoint_row()?.and_then(|row| decode_leaf(&row)))
}

fn corrupt(key: &[u8], problem: impl std::fmt::Display) -> StoreError {
    StoreError::corrupt(key, problem)
}

/// Reads a row from a table and decodes its value.
pub fn get<T: DeserializeOwned>(table: &Table, key: &[u8]) -> Result<Option<T>, StoreError> {
    table.get(key)?.map(|bytes| decode(key, &bytes)).transpose()
}

/// Decodes the value of a row from JSON.
pub fn decode<T: DeserializeOwned>(key: &[u8], bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|e| corrupt(key, e))
}

/// A type that can be the value of a row. A batch keeps the value itself, and encodes it as JSON at the commit.
pub trait Row: Any + Send + Serialize + DeserializeOwned + Clone {}

impl<T: Any + Send + Serialize + DeserializeOwned + Clone> Row for T {}

/// The value of a staged row of any type.
trait Value: Any + Send {
    fn encode(&self, to: &mut Vec<u8>) -> Result<(), serde_json::Error>;
}

impl<T: Row> Value for T {
    fn encode(&self, to: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        serde_json::to_writer(to, self)
    }
}

/// A row that was read or changed by this batch.
enum StagedRow {
    Value(Box<dyn Value>),
    Bytes(Vec<u8>),
    /// The row does not exist, or will be removed.
    Absent,
}

/// The rows that a series of events changes. Each row is read and written once, even if many events change the row.
pub struct WriteBatch<'a> {
    table: &'a Table,
    snapshot_copy: Option<&'a SnapshotCopy>,
    staged: HashMap<Vec<u8>, StagedRow>,
}

impl<'a> WriteBatch<'a> {
    /// Makes an empty batch for a table.
    pub fn new(table: &'a Table) -> Self {
        Self { table, snapshot_copy: None, staged: HashMap::new() }
    }

    /// Makes an empty batch for a table that another thread may be copying at the same time.
    pub fn with_snapshot_copy(table: &'a Table, snapshot_copy: &'a SnapshotCopy) -> Self {
        Self { snapshot_copy: Some(snapshot_copy), ..Self::new(table) }
    }

    /// Returns a staged row. If the row is not staged yet, it is read from the table, and `decode` decodes its bytes.
    fn staged_row(
        &mut self,
        key: &[u8],
        decode: impl FnOnce(&[u8]) -> Result<StagedRow, StoreError>,
    ) -> Result<&mut StagedRow, StoreError> {
        match self.staged.entry_ref(key) {
            EntryRef::Occupied(staged) => Ok(staged.into_mut()),
            EntryRef::Vacant(vacant) => {
                let row = match self.table.get(key)? {
                    Some(bytes) => decode(&bytes)?,
                    None => StagedRow::Absent,
                };
                Ok(vacant.insert(row))
            }
        }
    }

    fn staged_value<T: Row>(&mut self, key: &[u8]) -> Result<&mut StagedRow, StoreError> {
        self.staged_row(key, |bytes| Ok(StagedRow::Value(Box::new(decode::<T>(key, bytes)?))))
    }

    fn staged_bytes(&mut self, key: &[u8]) -> Result<&mut StagedRow, StoreError> {
        self.staged_row(key, |bytes| Ok(StagedRow::Bytes(bytes.to_vec())))
    }

    /// Reads a row as it is after the changes of this batch.
    pub fn get<T: Row>(&mut self, key: &[u8]) -> Result<Option<T>, StoreError> {
        Ok(downcast(self.staged_value::<T>(key)?, key)?.cloned())
    }

    /// Writes a row.
    pub fn put<T: Row>(&mut self, key: &[u8], row: T) {
        self.staged.insert(key.to_vec(), StagedRow::Value(Box::new(row)));
    }

    /// Writes a row with an empty value.
    pub fn put_key(&mut self, key: Vec<u8>) {
        self.staged.insert(key, StagedRow::Bytes(Vec::new()));
    }

    /// Writes a row whose value is raw bytes, not JSON.
    pub fn put_bytes(&mut self, key: Vec<u8>, bytes: Vec<u8>) {
        self.staged.insert(key, StagedRow::Bytes(bytes));
    }

    /// Reads the raw bytes of a row. Empty if the row does not exist.
    pub fn bytes(&mut self, key: &[u8]) -> Result<Vec<u8>, StoreError> {
        match self.staged_bytes(key)? {
            StagedRow::Bytes(bytes) => Ok(bytes.clone()),
            StagedRow::Absent => Ok(Vec::new()),
            StagedRow::Value(_) => Err(corrupt(key, OTHER_TYPE)),
        }
    }

    /// Removes a row.
    pub fn remove(&mut self, key: &[u8]) {
        self.staged.insert(key.to_vec(), StagedRow::Absent);
    }

    /// Changes a row, if the row exists.
    pub fn update<T: Row>(&mut self, key: &[u8], change: impl FnOnce(&mut T)) -> Result<(), StoreError> {
        if let Some(row) = downcast(self.staged_value::<T>(key)?, key)? {
            change(row);
        }
        Ok(())
    }

    /// Changes a row. If the row does not exist, `change` gets the default value.
    pub fn upsert<T: Row + Default>(&mut self, key: &[u8], change: impl FnOnce(&mut T)) -> Result<(), StoreError> {
        let staged = self.staged_value::<T>(key)?;
        if matches!(staged, StagedRow::Absent) {
            *staged = StagedRow::Value(Box::new(T::default()));
        }
        if let Some(row) = downcast(staged, key)? {
            change(row);
        }
        Ok(())
    }

    /// Changes a row of raw bytes. If the row does not exist, `change` gets empty bytes.
    pub fn upsert_bytes<R>(&mut self, key: &[u8], change: impl FnOnce(&mut Vec<u8>) -> R) -> Result<R, StoreError> {
        let staged = self.staged_bytes(key)?;
        if matches!(staged, StagedRow::Absent) {
            *staged = StagedRow::Bytes(Vec::new());
        }
        match staged {
            StagedRow::Bytes(bytes) => Ok(change(bytes)),
            StagedRow::Value(_) | StagedRow::Absent => Err(corrupt(key, OTHER_TYPE)),
        }
    }

    /// Writes the rows and the checkpoint as one atomic change, without a leaf.
    pub fn commit(self, checkpoint: Seq) -> Result<(), StoreError> {
        self.commit_with_leaf(checkpoint, None)
    }

    /// Writes the rows, the checkpoint and the leaf of the checkpoint's message as one atomic change.
    pub fn commit_with_leaf(self, checkpoint: Seq, leaf: Option<Hash>) -> Result<(), StoreError> {
        // Sorted by key, so that all changes of a block are neighbours.
        let mut staged: Vec<_> = self.staged.into_iter().collect();
        staged.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let leaf = leaf.map_or_else(Vec::new, Vec::from);
        let checkpoint = [&checkpoint.0.to_be_bytes()[..], &leaf].concat();
        // While this lock is held, the snapshot copy waits before its next piece.
        let mut copy = self.snapshot_copy.map(SnapshotCopy::lock);
        let before_change = |tree: &sled::Tree, block_key: &[u8]| {
            copy.as_mut().map_or(Ok(()), |copy: &mut CopyLock<'_>| copy.save_before_change(tree, block_key))
        };
        self.table.write(staged, &checkpoint, before_change, |key, staged, to| {
            match staged {
                StagedRow::Value(value) => value.encode(to).map_err(|e| corrupt(key, e))?,
                StagedRow::Bytes(bytes) => to.extend_from_slice(&bytes),
                StagedRow::Absent => return Ok(false),
            }
            Ok(true)
        })
    }
}

const OTHER_TYPE: &str = "the row has another type";

/// The value of a staged row as a `T`. `None` if the row does not exist.
fn downcast<'s, T: Row>(staged: &'s mut StagedRow, key: &[u8]) -> Result<Option<&'s mut T>, StoreError> {
    match staged {
        StagedRow::Absent => Ok(None),
        StagedRow::Value(value) => {
            let value: &mut dyn Any = value.as_mut();
            value.downcast_mut().map(Some).ok_or_else(|| corrupt(key, OTHER_TYPE))
        }
        StagedRow::Bytes(_) => Err(corrupt(key, OTHER_TYPE)),
    }
}
