//! Rows in sled: one tree per model and version, in which rows and checkpoint are written as one batch.

use std::{any::Any, collections::HashMap, path::Path};

use gpubnb_events::Seq;
use serde::{Serialize, de::DeserializeOwned};

/// A failure of the store. The model stops at it, visibly.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// sled failed.
    #[error("sled: {0}")]
    Sled(#[from] sled::Error),
    /// A row is not what it must be.
    #[error("row {key:?} cannot be read: {problem}")]
    Corrupt {
        /// Its key.
        key: String,
        /// What is wrong.
        problem: String,
    },
}

const CHECKPOINT: &[u8] = b"\0checkpoint";

/// Opens the database with a bounded cache.
pub fn open(path: &Path, cache_mib: u64) -> Result<sled::Db, StoreError> {
    Ok(sled::Config::new().path(path).cache_capacity(cache_mib.max(8) << 20).open()?)
}

/// The tree of one model in one version. Trees of its older versions are dropped.
pub fn tree(db: &sled::Db, name: &str, version: u32) -> Result<sled::Tree, StoreError> {
    let current = format!("{name}.v{version}");
    for other in db.tree_names() {
        let other_name = String::from_utf8_lossy(&other).into_owned();
        if other_name != current && other_name.starts_with(&format!("{name}.v")) {
            db.drop_tree(&other)?;
        }
    }
    Ok(db.open_tree(current)?)
}

/// How far a tree is.
pub fn checkpoint(tree: &sled::Tree) -> Result<Seq, StoreError> {
    match tree.get(CHECKPOINT)? {
        None => Ok(Seq::ZERO),
        Some(bytes) => {
            let bytes = <[u8; 8]>::try_from(bytes.as_ref())
                .map_err(|_| corrupt(CHECKPOINT, "the checkpoint is not eight bytes"))?;
            Ok(Seq(u64::from_be_bytes(bytes)))
        }
    }
}

fn corrupt(key: &[u8], problem: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt { key: key.escape_ascii().to_string(), problem: problem.to_string() }
}

/// Reads a row.
pub fn get<T: DeserializeOwned>(tree: &sled::Tree, key: &[u8]) -> Result<Option<T>, StoreError> {
    tree.get(key)?.map(|bytes| decode(key, &bytes)).transpose()
}

/// Decodes a row.
pub fn decode<T: DeserializeOwned>(key: &[u8], bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|e| corrupt(key, e))
}

/// A row that can be staged: read and changed as a value, written as JSON once, when it is committed.
pub trait Row: Any + Send + Serialize + DeserializeOwned + Clone {}

impl<T: Any + Send + Serialize + DeserializeOwned + Clone> Row for T {}

/// A staged row, whatever its type.
trait Staged: Send {
    fn encode(&self) -> Result<Option<Vec<u8>>, serde_json::Error>;
    fn value(&mut self) -> &mut dyn Any;
}

struct Typed<T>(T);

impl<T: Row> Staged for Typed<T> {
    fn encode(&self) -> Result<Option<Vec<u8>>, serde_json::Error> {
        serde_json::to_vec(&self.0).map(Some)
    }

    fn value(&mut self) -> &mut dyn Any {
        &mut self.0
    }
}

/// Plain bytes, or a removal.
struct Raw(Option<Vec<u8>>);

impl Staged for Raw {
    fn encode(&self) -> Result<Option<Vec<u8>>, serde_json::Error> {
        Ok(self.0.clone())
    }

    fn value(&mut self) -> &mut dyn Any {
        &mut self.0
    }
}

/// The rows that a run of events changes, before they are written. Each row is read and written once,
/// however many events touch it.
pub struct Rows<'a> {
    tree: &'a sled::Tree,
    staged: HashMap<Vec<u8>, Box<dyn Staged>>,
}

impl<'a> Rows<'a> {
    /// Nothing changed yet.
    pub fn new(tree: &'a sled::Tree) -> Self {
        Self { tree, staged: HashMap::new() }
    }

    /// A row, to be changed in place. `None` where there is none.
    fn staged<T: Row>(&mut self, key: &[u8]) -> Result<Option<&mut T>, StoreError> {
        if !self.staged.contains_key(key) {
            let Some(row) = get::<T>(self.tree, key)? else { return Ok(None) };
            self.staged.insert(key.to_vec(), Box::new(Typed(row)));
        }
        let Some(staged) = self.staged.get_mut(key) else { return Ok(None) };
        let value = staged.value();
        if value.downcast_ref::<Option<Vec<u8>>>().is_some_and(Option::is_none) {
            return Ok(None);
        }
        value.downcast_mut::<T>().map(Some).ok_or_else(|| corrupt(key, "a row of another type stands here"))
    }

    /// A row.
    pub fn get<T: Row>(&mut self, key: &[u8]) -> Result<Option<T>, StoreError> {
        Ok(self.staged::<T>(key)?.cloned())
    }

    /// Writes a row.
    pub fn put<T: Row>(&mut self, key: &[u8], row: T) {
        self.staged.insert(key.to_vec(), Box::new(Typed(row)));
    }

    /// The bytes of a row that is no JSON.
    pub fn bytes(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.staged.get_mut(key) {
            Some(staged) => Ok(staged.value().downcast_ref::<Option<Vec<u8>>>().cloned().flatten()),
            None => Ok(self.tree.get(key)?.map(|bytes| bytes.to_vec())),
        }
    }

    /// Writes the bytes of a row.
    pub fn put_bytes(&mut self, key: &[u8], bytes: Vec<u8>) {
        self.staged.insert(key.to_vec(), Box::new(Raw(Some(bytes))));
    }

    /// Removes a row.
    pub fn remove(&mut self, key: &[u8]) {
        self.staged.insert(key.to_vec(), Box::new(Raw(None)));
    }

    /// Changes a row in place. A row that is not there is not made.
    pub fn update<T: Row>(&mut self, key: &[u8], change: impl FnOnce(&mut T)) -> Result<(), StoreError> {
        if let Some(row) = self.staged::<T>(key)? {
            change(row);
        }
        Ok(())
    }

    /// Changes a row in place; makes an empty one first where there is none.
    pub fn upsert<T: Row + Default>(&mut self, key: &[u8], change: impl FnOnce(&mut T)) -> Result<(), StoreError> {
        if self.staged::<T>(key)?.is_none() {
            self.put(key, T::default());
        }
        self.update(key, change)
    }

    /// Writes the rows and the checkpoint as one atomic batch.
    pub fn commit(self, checkpoint: Seq) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        // In the order of the tree: neighbours are written together.
        let mut staged: Vec<_> = self.staged.into_iter().collect();
        staged.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        for (key, staged) in staged {
            match staged.encode().map_err(|e| corrupt(&key, e))? {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        batch.insert(CHECKPOINT, &checkpoint.0.to_be_bytes());
        self.tree.apply_batch(batch)?;
        Ok(())
    }
}
