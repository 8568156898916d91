//! The write batch: the rows that a run of events changes, written together with the checkpoint. And reading typed
//! rows.

use std::any::Any;

use gpubnb_events::{Seq, message::Hash};
use hashbrown::{HashMap, hash_map::EntryRef};
use serde::{Serialize, de::DeserializeOwned};

use crate::{SnapshotCopy, StoreError, Table, snapshot_copy::CopyLock};

/// A table's checkpoint: the sequence of the last event in it.
pub fn checkpoint(table: &Table) -> Result<Seq, StoreError> {
    table.checkpoint_row()?.map_or(Ok(Seq::ZERO), |row| checkpoint_in(&row))
}

/// The sequence in a checkpoint's row.
pub fn checkpoint_in(row: &[u8]) -> Result<Seq, StoreError> {
    let seq = row.get(..8).and_then(|seq| seq.try_into().ok()).map(u64::from_be_bytes);
    seq.map(Seq).ok_or_else(|| corrupt(b"checkpoint", "the checkpoint is not eight bytes"))
}

/// The leaf in a checkpoint's row, if there is one: the leaf of the last message.
pub fn leaf_in(row: &[u8]) -> Option<Hash> {
    row.get(8..)?.try_into().ok()
}

/// The leaf of the last message in a table; `None` for tables from before leaves were stored.
pub fn last_leaf(table: &Table) -> Result<Option<Hash>, StoreError> {
    Ok(table.checkpoint_row()?.and_then(|row| leaf_in(&row)))
}

fn corrupt(key: &[u8], problem: impl std::fmt::Display) -> StoreError {
    StoreError::corrupt(key, problem)
}

/// Reads a row.
pub fn get<T: DeserializeOwned>(table: &Table, key: &[u8]) -> Result<Option<T>, StoreError> {
    table.get(key)?.map(|bytes| decode(key, &bytes)).transpose()
}

/// Decodes a row.
pub fn decode<T: DeserializeOwned>(key: &[u8], bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|e| corrupt(key, e))
}

/// The value of a row. In a batch it is read and changed as a value, and encoded as JSON once, at the commit.
pub trait Row: Any + Send + Serialize + DeserializeOwned + Clone {}

impl<T: Any + Send + Serialize + DeserializeOwned + Clone> Row for T {}

/// The value of a staged row, whatever its type.
trait Value: Any + Send {
    fn encode(&self, to: &mut Vec<u8>) -> Result<(), serde_json::Error>;
}

impl<T: Row> Value for T {
    fn encode(&self, to: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        serde_json::to_writer(to, self)
    }
}

/// A staged row.
enum Staged {
    Value(Box<dyn Value>),
    Bytes(Vec<u8>),
    Gone,
}

/// The rows that a run of events changes, before they are written. Each row is read and written once,
/// however many events touch it.
pub struct WriteBatch<'a> {
    table: &'a Table,
    snapshot_copy: Option<&'a SnapshotCopy>,
    staged: HashMap<Vec<u8>, Staged>,
}

impl<'a> WriteBatch<'a> {
    /// An empty batch for a table.
    pub fn new(table: &'a Table) -> Self {
        Self { table, snapshot_copy: None, staged: HashMap::new() }
    }

    /// An empty batch for a table of which a snapshot copy may be made meanwhile.
    pub fn copied(table: &'a Table, snapshot_copy: &'a SnapshotCopy) -> Self {
        Self { snapshot_copy: Some(snapshot_copy), ..Self::new(table) }
    }

    /// A staged row, read from the table by `read` the first time it is touched.
    fn staged(
        &mut self,
        key: &[u8],
        read: impl FnOnce(&[u8]) -> Result<Staged, StoreError>,
    ) -> Result<&mut Staged, StoreError> {
        match self.staged.entry_ref(key) {
            EntryRef::Occupied(staged) => Ok(staged.into_mut()),
            EntryRef::Vacant(vacant) => {
                let row = match self.table.get(key)? {
                    Some(bytes) => read(&bytes)?,
                    None => Staged::Gone,
                };
                Ok(vacant.insert(row))
            }
        }
    }

    fn typed<T: Row>(&mut self, key: &[u8]) -> Result<&mut Staged, StoreError> {
        self.staged(key, |bytes| Ok(Staged::Value(Box::new(decode::<T>(key, bytes)?))))
    }

    /// Reads a row, with the changes of this batch.
    pub fn get<T: Row>(&mut self, key: &[u8]) -> Result<Option<T>, StoreError> {
        Ok(value(self.typed::<T>(key)?, key)?.cloned())
    }

    /// Writes a row.
    pub fn put<T: Row>(&mut self, key: &[u8], row: T) {
        self.staged.insert(key.to_vec(), Staged::Value(Box::new(row)));
    }

    /// Writes a row that has a key and no value.
    pub fn put_key(&mut self, key: Vec<u8>) {
        self.staged.insert(key, Staged::Bytes(Vec::new()));
    }

    /// Writes a row of raw bytes.
    pub fn put_bytes(&mut self, key: Vec<u8>, bytes: Vec<u8>) {
        self.staged.insert(key, Staged::Bytes(bytes));
    }

    /// The bytes of a raw row; empty where there is no row.
    pub fn bytes(&mut self, key: &[u8]) -> Result<Vec<u8>, StoreError> {
        match self.staged(key, |bytes| Ok(Staged::Bytes(bytes.to_vec())))? {
            Staged::Bytes(bytes) => Ok(bytes.clone()),
            Staged::Gone => Ok(Vec::new()),
            Staged::Value(_) => Err(corrupt(key, OTHER_TYPE)),
        }
    }

    /// Removes a row.
    pub fn remove(&mut self, key: &[u8]) {
        self.staged.insert(key.to_vec(), Staged::Gone);
    }

    /// Changes a row in place, if there is one.
    pub fn update<T: Row>(&mut self, key: &[u8], change: impl FnOnce(&mut T)) -> Result<(), StoreError> {
        if let Some(row) = value(self.typed::<T>(key)?, key)? {
            change(row);
        }
        Ok(())
    }

    /// Changes a row in place. Where there is none, its default is changed.
    pub fn upsert<T: Row + Default>(&mut self, key: &[u8], change: impl FnOnce(&mut T)) -> Result<(), StoreError> {
        let staged = self.typed::<T>(key)?;
        if matches!(staged, Staged::Gone) {
            *staged = Staged::Value(Box::new(T::default()));
        }
        if let Some(row) = value(staged, key)? {
            change(row);
        }
        Ok(())
    }

    /// Changes the bytes of a raw row in place. Where there is none, empty bytes are changed.
    pub fn upsert_bytes<R>(&mut self, key: &[u8], change: impl FnOnce(&mut Vec<u8>) -> R) -> Result<R, StoreError> {
        let staged = self.staged(key, |bytes| Ok(Staged::Bytes(bytes.to_vec())))?;
        if matches!(staged, Staged::Gone) {
            *staged = Staged::Bytes(Vec::new());
        }
        match staged {
            Staged::Bytes(bytes) => Ok(change(bytes)),
            Staged::Value(_) | Staged::Gone => Err(corrupt(key, OTHER_TYPE)),
        }
    }

    /// Writes the rows and the checkpoint as one atomic batch.
    pub fn commit(self, checkpoint: Seq) -> Result<(), StoreError> {
        self.commit_of(checkpoint, None)
    }

    /// Writes the rows and the checkpoint as one atomic batch. `leaf` is that of the checkpoint's message, by which the
    /// table is later recognised as folded from this log and not from another.
    pub fn commit_of(self, checkpoint: Seq, leaf: Option<Hash>) -> Result<(), StoreError> {
        // In the order of keys: rows of the same block are written together.
        let mut staged: Vec<_> = self.staged.into_iter().collect();
        staged.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let leaf = leaf.map_or_else(Vec::new, Vec::from);
        let checkpoint = [&checkpoint.0.to_be_bytes()[..], &leaf].concat();
        // A snapshot copy cannot read its next piece before the batch is written.
        let mut copy = self.snapshot_copy.map(SnapshotCopy::lock);
        let before = |tree: &sled::Tree, place: &[u8]| {
            copy.as_mut().map_or(Ok(()), |copy: &mut CopyLock<'_>| copy.changes(tree, place))
        };
        self.table.write(staged, &checkpoint, before, |key, staged, to| {
            match staged {
                Staged::Value(value) => value.encode(to).map_err(|e| corrupt(key, e))?,
                Staged::Bytes(bytes) => to.extend_from_slice(&bytes),
                Staged::Gone => return Ok(false),
            }
            Ok(true)
        })
    }
}

const OTHER_TYPE: &str = "a row of another type stands here";

/// The value of a staged row, if there is one.
fn value<'s, T: Row>(staged: &'s mut Staged, key: &[u8]) -> Result<Option<&'s mut T>, StoreError> {
    match staged {
        Staged::Gone => Ok(None),
        Staged::Value(value) => {
            let value: &mut dyn Any = value.as_mut();
            value.downcast_mut().map(Some).ok_or_else(|| corrupt(key, OTHER_TYPE))
        }
        Staged::Bytes(_) => Err(corrupt(key, OTHER_TYPE)),
    }
}
