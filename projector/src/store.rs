//! Rows in sled: one tree per model and version, in which rows and checkpoint are written as one batch.

use std::{collections::HashMap, path::Path};

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

/// The rows that a run of events changes, before they are written. Each row is read and written once,
/// however many events touch it.
pub struct Rows<'a> {
    tree: &'a sled::Tree,
    staged: HashMap<Vec<u8>, Option<Vec<u8>>>,
}

impl<'a> Rows<'a> {
    /// Nothing changed yet.
    pub fn new(tree: &'a sled::Tree) -> Self {
        Self { tree, staged: HashMap::new() }
    }

    /// The bytes of a row.
    pub fn bytes(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        if let Some(staged) = self.staged.get(key) {
            return Ok(staged.clone());
        }
        Ok(self.tree.get(key)?.map(|bytes| bytes.to_vec()))
    }

    /// A row.
    pub fn get<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, StoreError> {
        match self.staged.get(key) {
            Some(staged) => staged.as_ref().map(|bytes| decode(key, bytes)).transpose(),
            None => get(self.tree, key),
        }
    }

    /// Writes a row.
    pub fn put<T: Serialize>(&mut self, key: &[u8], row: &T) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(row).map_err(|e| corrupt(key, e))?;
        self.put_bytes(key, bytes);
        Ok(())
    }

    /// Writes the bytes of a row.
    pub fn put_bytes(&mut self, key: &[u8], bytes: Vec<u8>) {
        self.staged.insert(key.to_vec(), Some(bytes));
    }

    /// Removes a row.
    pub fn remove(&mut self, key: &[u8]) {
        self.staged.insert(key.to_vec(), None);
    }

    /// Reads a row, changes it, writes it back. A row that is not there is not made.
    pub fn update<T: Serialize + DeserializeOwned>(
        &mut self,
        key: &[u8],
        change: impl FnOnce(&mut T),
    ) -> Result<(), StoreError> {
        if let Some(mut row) = self.get::<T>(key)? {
            change(&mut row);
            self.put(key, &row)?;
        }
        Ok(())
    }

    /// Writes the rows and the checkpoint as one atomic batch.
    pub fn commit(self, checkpoint: Seq) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for (key, value) in self.staged {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        batch.insert(CHECKPOINT, &checkpoint.0.to_be_bytes());
        self.tree.apply_batch(batch)?;
        Ok(())
    }
}
