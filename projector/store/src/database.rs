//! The database of the models' tables, and which table of a model answers: the present one, or one that was rebuilt.

use std::path::Path;

use crate::{StoreError, Table};

/// The smallest cache of sled, MiB: it has 256 parts, and each of them keeps at least a page.
const SMALLEST: u64 = 8;

/// A model's name and version. Each version has tables of its own.
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
        // The configuration is moved, not cloned: when a clone of a temporary database's configuration is dropped, sled
        // deletes the files.
        Ok(Self(config.cache_capacity(cache_mib.max(SMALLEST) << 20).open()?))
    }

    /// Opens or creates a database with a bounded cache.
    pub fn open(path: &Path, cache_mib: u64) -> Result<Self, StoreError> {
        Self::over(sled::Config::new().path(path), cache_mib)
    }

    /// Removes a database that nobody has open, if it exists.
    pub fn remove(path: &Path) -> Result<(), StoreError> {
        match std::fs::remove_dir_all(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(StoreError::Database(e.into())),
            _ => Ok(()),
        }
    }

    /// Opens an empty database that is removed when it is dropped. Files that a killed process left there are removed
    /// first.
    pub fn scratch(path: &Path, cache_mib: u64) -> Result<Self, StoreError> {
        Self::remove(path)?;
        Self::over(sled::Config::new().path(path).temporary(true), cache_mib)
    }

    /// Opens an empty database among the system's temporary files. It is removed when it is dropped.
    pub fn temporary(cache_mib: u64) -> Result<Self, StoreError> {
        Self::over(sled::Config::new().temporary(true), cache_mib)
    }

    /// The table with this name, which is created if it does not exist.
    pub fn table(&self, name: impl AsRef<[u8]>) -> Result<Table, StoreError> {
        Ok(Table::over(self.0.open_tree(name)?))
    }

    /// Removes a table.
    pub fn drop_table(&self, table: &Table) -> Result<(), StoreError> {
        self.0.drop_tree(table.name())?;
        Ok(())
    }

    /// Waits until everything is on disk.
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.0.flush_async().await?;
        Ok(())
    }

    /// Removes every table. Call this when nobody reads.
    pub fn clear(&self) -> Result<(), StoreError> {
        for name in self.0.tree_names() {
            if name != b"__sled__default" {
                self.0.drop_tree(name)?;
            }
        }
        self.0.clear()?;
        Ok(())
    }

    /// The table that answers for a model in this version. Every other table of the model is removed, except one that
    /// is being rebuilt. Call this at the start, when nobody reads.
    pub fn model(&self, model: ModelVersion<'_>) -> Result<Table, StoreError> {
        let (name, [first, second]) = (model.name, generations(model));
        let current =
            self.0.get(pointer(name))?.filter(|current| *current == second.as_bytes()).map_or(first, |_| second);
        let rebuilt = self.0.get(rebuilding(name))?;
        for other in self.0.tree_names() {
            let other_name = String::from_utf8_lossy(&other).into_owned();
            // A rebuild that was cut off when the process ended is resumed in its table.
            if rebuilt.as_ref().is_some_and(|rebuilt| *rebuilt == other) {
                continue;
            }
            if other_name != current && other_name.starts_with(&format!("{name}.v")) {
                self.0.drop_tree(&other)?;
            }
        }
        self.table(current)
    }

    /// A second table, in which the model is rebuilt: empty, or with the rows of a rebuild that was cut off.
    pub fn spare(&self, model: ModelVersion<'_>, current: &Table) -> Result<Table, StoreError> {
        let (name, [first, second]) = (model.name, generations(model));
        let spare = if *current.name() == *first.as_bytes() { second } else { first };
        if !self.is_rebuilding(name)? {
            self.0.drop_tree(&spare)?;
            self.0.insert(rebuilding(name), spare.as_bytes())?;
        }
        self.table(spare)
    }

    /// True if a rebuild of a model has begun and not ended, also in an earlier process.
    pub fn is_rebuilding(&self, name: &str) -> Result<bool, StoreError> {
        // A rebuilt table that already answers is done, even if the process ended before it called `end_rebuild`.
        let (rebuilt, current) = (self.0.get(rebuilding(name))?, self.0.get(pointer(name))?);
        Ok(rebuilt.is_some() && rebuilt != current)
    }

    /// Notes that a rebuild has ended, well or badly.
    pub fn end_rebuild(&self, name: &str) -> Result<(), StoreError> {
        self.0.remove(rebuilding(name))?;
        Ok(())
    }

    /// Makes this table the one that answers for the model, also after a restart.
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

/// The names of a model's two tables. They take turns: one is rebuilt while the other answers.
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
