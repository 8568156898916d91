//! The database that the models' tables lie in, and which of them answer.

use std::path::Path;

use crate::{StoreError, Table};

/// Smallest bound of sled's cache, MiB: it has 256 parts, and each keeps a page at the least.
const SMALLEST: u64 = 8;

/// A model's name and version: another version has tables of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelVersion<'a> {
    /// The model's name.
    pub name: &'a str,
    /// The version of the model's rows.
    pub version: u32,
}

/// A database. Clones are handles on the same one.
#[derive(Clone)]
pub struct Database(sled::Db);

impl Database {
    fn over(config: sled::Config, cache_mib: u64) -> Result<Self, StoreError> {
        // A copy of a temporary database's configuration would take its files with it.
        Ok(Self(config.cache_capacity(cache_mib.max(SMALLEST) << 20).open()?))
    }

    /// Opens a database, or makes it, with a bounded cache.
    pub fn open(path: &Path, cache_mib: u64) -> Result<Self, StoreError> {
        Self::over(sled::Config::new().path(path), cache_mib)
    }

    /// Removes one that nobody has open, if it is there.
    pub fn remove(path: &Path) -> Result<(), StoreError> {
        match std::fs::remove_dir_all(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(StoreError::Database(e.into())),
            _ => Ok(()),
        }
    }

    /// Opens an empty one that is gone at the end. What a killed one left there is removed first.
    pub fn scratch(path: &Path, cache_mib: u64) -> Result<Self, StoreError> {
        Self::remove(path)?;
        Self::over(sled::Config::new().path(path).temporary(true), cache_mib)
    }

    /// Opens one among the system's temporary files.
    pub fn temporary(cache_mib: u64) -> Result<Self, StoreError> {
        Self::over(sled::Config::new().temporary(true), cache_mib)
    }

    /// The tree with this name, made if it is not there.
    pub fn table(&self, name: impl AsRef<[u8]>) -> Result<Table, StoreError> {
        Ok(Table::over(self.0.open_tree(name)?))
    }

    /// Removes a tree.
    pub fn drop_table(&self, table: &Table) -> Result<(), StoreError> {
        self.0.drop_tree(table.name())?;
        Ok(())
    }

    /// Waits until everything is on the disk.
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.0.flush_async().await?;
        Ok(())
    }

    /// Empties it, when nobody reads.
    pub fn clear(&self) -> Result<(), StoreError> {
        for name in self.0.tree_names() {
            if name != b"__sled__default" {
                self.0.drop_tree(name)?;
            }
        }
        self.0.clear()?;
        Ok(())
    }

    /// The tree that answers for one model in its version. Every other tree of the model is dropped: call at the start,
    /// when nobody reads.
    pub fn model(&self, model: ModelVersion<'_>) -> Result<Table, StoreError> {
        let (name, [first, second]) = (model.name, generations(model));
        let current =
            self.0.get(pointer(name))?.filter(|current| *current == second.as_bytes()).map_or(first, |_| second);
        let rebuilt = self.0.get(rebuilding(name))?;
        for other in self.0.tree_names() {
            let other_name = String::from_utf8_lossy(&other).into_owned();
            // What was being rebuilt when the process ended goes on from where it was.
            if rebuilt.as_ref().is_some_and(|rebuilt| *rebuilt == other) {
                continue;
            }
            if other_name != current && other_name.starts_with(&format!("{name}.v")) {
                self.0.drop_tree(&other)?;
            }
        }
        self.table(current)
    }

    /// A tree beside the one that answers, to rebuild the model in: empty, or as far as a rebuild had come that was cut
    /// off.
    pub fn spare(&self, model: ModelVersion<'_>, current: &Table) -> Result<Table, StoreError> {
        let (name, [first, second]) = (model.name, generations(model));
        let spare = if *current.name() == *first.as_bytes() { second } else { first };
        if !self.is_rebuilding(name)? {
            self.0.drop_tree(&spare)?;
            self.0.insert(rebuilding(name), spare.as_bytes())?;
        }
        self.table(spare)
    }

    /// Whether a rebuild of a model has begun and not ended, also where the process ended meanwhile.
    pub fn is_rebuilding(&self, name: &str) -> Result<bool, StoreError> {
        // One that has taken its place already is done, also where the process ended before it could say so.
        let (rebuilt, current) = (self.0.get(rebuilding(name))?, self.0.get(pointer(name))?);
        Ok(rebuilt.is_some() && rebuilt != current)
    }

    /// A rebuild has ended, well or not.
    pub fn end_rebuild(&self, name: &str) -> Result<(), StoreError> {
        self.0.remove(rebuilding(name))?;
        Ok(())
    }

    /// From now on this tree answers for the model, also after a restart.
    pub fn make_current(&self, name: &str, table: &Table) -> Result<(), StoreError> {
        table.flush()?;
        self.0.insert(pointer(name), table.name().as_ref())?;
        Ok(())
    }
}

fn rebuilding(name: &str) -> String {
    format!("rebuilding.{name}")
}

fn pointer(name: &str) -> String {
    format!("current.{name}")
}

/// A model has two trees in turn, so that one can be rebuilt while the other answers.
fn generations(model: ModelVersion<'_>) -> [String; 2] {
    let ModelVersion { name, version } = model;
    [format!("{name}.v{version}"), format!("{name}.v{version}.b")]
}

#[cfg(test)]
mod tests {
    use gpubnb_events::Seq;

    use super::*;
    use crate::{WriteBatch, checkpoint};

    const JOBS: ModelVersion<'_> = ModelVersion { name: "jobs", version: 4 };

    #[test]
    fn a_rebuild_that_was_cut_off_goes_on_from_where_it_was_and_one_that_ended_begins_anew() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Database::open(directory.path(), 8).unwrap();
        let db = open();
        let current = db.model(JOBS).unwrap();
        let rebuilt = db.spare(JOBS, &current).unwrap();
        WriteBatch::new(&rebuilt).commit(Seq(5)).unwrap();
        drop((current, rebuilt, db));

        let db = open();
        let current = db.model(JOBS).unwrap();
        assert!(db.is_rebuilding("jobs").unwrap() && !db.is_rebuilding("ledger").unwrap());
        assert_eq!(checkpoint(&db.spare(JOBS, &current).unwrap()).unwrap(), Seq(5));
        db.end_rebuild("jobs").unwrap();
        assert_eq!(checkpoint(&db.spare(JOBS, &current).unwrap()).unwrap(), Seq::ZERO);
    }
}
