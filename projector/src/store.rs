//! The database of the models: one tree per model and version, and the rows that a run of events changes, which are
//! written with the checkpoint as one batch.

use std::{any::Any, path::Path};

use gpubnb_events::{Seq, log::Hash};
use hashbrown::{HashMap, hash_map::EntryRef};
use serde::{Serialize, de::DeserializeOwned};

use crate::{copier::Copier, tree::Tree};

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

/// Opens the database with a bounded cache.
pub fn open(path: &Path, cache_mib: u64) -> Result<sled::Db, StoreError> {
    Ok(sled::Config::new().path(path).cache_capacity(cache_mib.max(8) << 20).open()?)
}

/// Opens an empty database that is gone at the end. What a killed one left there is removed first.
pub fn scratch(path: &Path, cache_mib: u64) -> Result<sled::Db, StoreError> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(StoreError::Sled(e.into())),
        _ => {}
    }
    Ok(sled::Config::new().path(path).temporary(true).cache_capacity(cache_mib << 20).open()?)
}

/// Empties a database, when nobody reads.
pub fn clear(db: &sled::Db) -> Result<(), StoreError> {
    for name in db.tree_names() {
        if name != b"__sled__default" {
            db.drop_tree(name)?;
        }
    }
    Ok(db.clear()?)
}

/// The tree that answers for one model in one version. Every other tree of the model is dropped: call at the start,
/// when nobody reads.
pub fn tree(db: &sled::Db, name: &str, version: u32) -> Result<Tree, StoreError> {
    let [first, second] = generations(name, version);
    let current = db.get(pointer(name))?.filter(|current| *current == second.as_bytes()).map_or(first, |_| second);
    let rebuilt = db.get(rebuilding(name))?;
    for other in db.tree_names() {
        let other_name = String::from_utf8_lossy(&other).into_owned();
        // What was being rebuilt when the process ended goes on from where it was.
        if rebuilt.as_ref().is_some_and(|rebuilt| *rebuilt == other) {
            continue;
        }
        if other_name != current && other_name.starts_with(&format!("{name}.v")) {
            db.drop_tree(&other)?;
        }
    }
    Tree::open(db, current)
}

/// A tree beside the one that answers, to rebuild the model in: empty, or as far as a rebuild had come that was cut off.
pub fn spare(db: &sled::Db, name: &str, version: u32, current: &Tree) -> Result<Tree, StoreError> {
    let [first, second] = generations(name, version);
    let spare = if current.name() == first.as_bytes() { second } else { first };
    if !is_rebuilding(db, name)? {
        db.drop_tree(&spare)?;
        db.insert(rebuilding(name), spare.as_bytes())?;
    }
    Tree::open(db, spare)
}

/// Whether a rebuild of a model has begun and not ended, also where the process ended meanwhile.
pub fn is_rebuilding(db: &sled::Db, name: &str) -> Result<bool, StoreError> {
    // One that has taken its place already is done, also where the process ended before it could say so.
    let (rebuilt, current) = (db.get(rebuilding(name))?, db.get(pointer(name))?);
    Ok(rebuilt.is_some() && rebuilt != current)
}

/// A rebuild has ended, well or not.
pub fn end_rebuild(db: &sled::Db, name: &str) -> Result<(), StoreError> {
    db.remove(rebuilding(name))?;
    Ok(())
}

fn rebuilding(name: &str) -> String {
    format!("rebuilding.{name}")
}

/// From now on this tree answers for the model, also after a restart.
pub fn make_current(db: &sled::Db, name: &str, tree: &Tree) -> Result<(), StoreError> {
    tree.flush()?;
    db.insert(pointer(name), tree.name().as_ref())?;
    Ok(())
}

/// A model has two trees in turn, so that one can be rebuilt while the other answers.
fn generations(name: &str, version: u32) -> [String; 2] {
    [format!("{name}.v{version}"), format!("{name}.v{version}.b")]
}

fn pointer(name: &str) -> String {
    format!("current.{name}")
}

/// How far a tree is.
pub fn checkpoint(tree: &Tree) -> Result<Seq, StoreError> {
    tree.checkpoint()?.map_or(Ok(Seq::ZERO), |row| checkpoint_in(&row))
}

/// How far the tree is that has this checkpoint's row.
pub fn checkpoint_in(row: &[u8]) -> Result<Seq, StoreError> {
    let seq = row.get(..8).and_then(|seq| seq.try_into().ok()).map(u64::from_be_bytes);
    seq.map(Seq).ok_or_else(|| corrupt(b"checkpoint", "the checkpoint is not eight bytes"))
}

/// The leaf of the message that the checkpoint with this row is, where it is known.
pub fn leaf_in(row: &[u8]) -> Option<Hash> {
    row.get(8..)?.try_into().ok()
}

/// The leaf of the message that the checkpoint is, where it is known: trees that are older than this do not say.
pub fn last_leaf(tree: &Tree) -> Result<Option<Hash>, StoreError> {
    Ok(tree.checkpoint()?.and_then(|row| leaf_in(&row)))
}

impl StoreError {
    /// A row that is not what it must be.
    pub fn corrupt(key: &[u8], problem: impl std::fmt::Display) -> Self {
        Self::Corrupt { key: key.escape_ascii().to_string(), problem: problem.to_string() }
    }
}

fn corrupt(key: &[u8], problem: impl std::fmt::Display) -> StoreError {
    StoreError::corrupt(key, problem)
}

/// Reads a row.
pub fn get<T: DeserializeOwned>(tree: &Tree, key: &[u8]) -> Result<Option<T>, StoreError> {
    tree.get(key)?.map(|bytes| decode(key, &bytes)).transpose()
}

/// Decodes a row.
pub fn decode<T: DeserializeOwned>(key: &[u8], bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|e| corrupt(key, e))
}

/// A row that can be staged: read and changed as a value, written as JSON once, when it is committed.
pub trait Row: Any + Send + Serialize + DeserializeOwned + Clone {}

impl<T: Any + Send + Serialize + DeserializeOwned + Clone> Row for T {}

/// A row's value, whatever its type.
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
pub struct Rows<'a> {
    tree: &'a Tree,
    copier: Option<&'a Copier>,
    staged: HashMap<Vec<u8>, Staged>,
}

impl<'a> Rows<'a> {
    /// Nothing changed yet.
    pub fn new(tree: &'a Tree) -> Self {
        Self { tree, copier: None, staged: HashMap::new() }
    }

    /// The same, of a tree that may be copied meanwhile.
    pub(crate) fn copied(tree: &'a Tree, copier: &'a Copier) -> Self {
        Self { copier: Some(copier), ..Self::new(tree) }
    }

    /// A staged row, read from the tree by `read` the first time it is touched.
    fn staged(
        &mut self,
        key: &[u8],
        read: impl FnOnce(&[u8]) -> Result<Staged, StoreError>,
    ) -> Result<&mut Staged, StoreError> {
        match self.staged.entry_ref(key) {
            EntryRef::Occupied(staged) => Ok(staged.into_mut()),
            EntryRef::Vacant(vacant) => {
                let row = match self.tree.get(key)? {
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

    /// A row.
    pub fn get<T: Row>(&mut self, key: &[u8]) -> Result<Option<T>, StoreError> {
        Ok(value(self.typed::<T>(key)?, key)?.cloned())
    }

    /// Writes a row.
    pub fn put<T: Row>(&mut self, key: &[u8], row: T) {
        self.staged.insert(key.to_vec(), Staged::Value(Box::new(row)));
    }

    /// Writes a row that is its key alone.
    pub fn put_key(&mut self, key: Vec<u8>) {
        self.staged.insert(key, Staged::Bytes(Vec::new()));
    }

    /// Writes the bytes of a row that is no JSON.
    pub fn put_bytes(&mut self, key: Vec<u8>, bytes: Vec<u8>) {
        self.staged.insert(key, Staged::Bytes(bytes));
    }

    /// The bytes of a row that is no JSON; none where there is no row.
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

    /// Changes a row in place. A row that is not there is not made.
    pub fn update<T: Row>(&mut self, key: &[u8], change: impl FnOnce(&mut T)) -> Result<(), StoreError> {
        if let Some(row) = value(self.typed::<T>(key)?, key)? {
            change(row);
        }
        Ok(())
    }

    /// Changes a row in place; makes an empty one first where there is none.
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

    /// Changes the bytes of a row that is no JSON; starts with none where there is no row.
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

    /// The same, and remembers which message the checkpoint is: another log has another one there.
    pub fn commit_of(self, checkpoint: Seq, leaf: Option<Hash>) -> Result<(), StoreError> {
        // In the order of the tree: neighbours are written together.
        let mut staged: Vec<_> = self.staged.into_iter().collect();
        staged.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let leaf = leaf.map_or_else(Vec::new, Vec::from);
        let checkpoint = [&checkpoint.0.to_be_bytes()[..], &leaf].concat();
        self.tree.write(staged, &checkpoint, self.copier, |key, staged, to| {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rebuild_that_was_cut_off_goes_on_from_where_it_was_and_one_that_ended_begins_anew() {
        let directory = tempfile::tempdir().unwrap();
        let open = || open(directory.path(), 8).unwrap();
        let db = open();
        let current = tree(&db, "jobs", 3).unwrap();
        let rebuilt = spare(&db, "jobs", 3, &current).unwrap();
        Rows::new(&rebuilt).commit(Seq(5)).unwrap();
        drop((current, rebuilt, db));

        let db = open();
        let current = tree(&db, "jobs", 3).unwrap();
        assert!(is_rebuilding(&db, "jobs").unwrap() && !is_rebuilding(&db, "ledger").unwrap());
        assert_eq!(checkpoint(&spare(&db, "jobs", 3, &current).unwrap()).unwrap(), Seq(5));
        end_rebuild(&db, "jobs").unwrap();
        assert_eq!(checkpoint(&spare(&db, "jobs", 3, &current).unwrap()).unwrap(), Seq::ZERO);
    }
}
