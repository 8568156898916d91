//! The database with the tables of all models.
//!
//! Each version of a model has two tables. Queries read the *current* table. A *rebuild* folds the model from the first
//! event into the other table, which then becomes the current one. The database remembers, also after a restart, which
//! table is current and which table is being rebuilt.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::{StoreError, Table};

/// The smallest cache size, MiB: sled's cache has 256 parts, and each part keeps at least one page.
const MIN_CACHE_MIB: u64 = 8;

/// How long opening waits for the database's lock. A database that was dropped, or whose process was stopped, releases
/// the lock a little later: sled's threads end first, and a child process that is just starting has the file open too.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// How often opening asks for the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// A model's name and version. Each version has its own tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelVersion<'a> {
    /// The model's name.
    pub name: &'a str,
    /// The version of the model's rows.
    pub version: u32,
}

/// A database of tables. Clones share the database.
#[derive(Clone)]
pub struct Database(sled::Db);

impl Database {
    fn from_config(config: sled::Config, cache_mib: u64) -> Result<Self, sled::Error> {
        // Do not clone the configuration: when a clone of a temporary database's configuration is dropped, sled deletes
        // the files of the database.
        Ok(Self(config.cache_capacity(cache_mib.max(MIN_CACHE_MIB) << 20).open()?))
    }

    /// Opens a database, or creates an empty one. The cache takes about `cache_mib` MiB. Waits up to five seconds for
    /// another owner to close the database, and blocks the thread meanwhile.
    pub fn open(path: &Path, cache_mib: u64) -> Result<Self, StoreError> {
        let deadline = Instant::now() + LOCK_WAIT;
        loop {
            match Self::from_config(sled::Config::new().path(path), cache_mib) {
                Err(e) if is_locked(&e) && Instant::now() < deadline => {
                    std::thread::sleep(LOCK_PAUSE);
                }
                result => return Ok(result?),
            }
        }
    }

    /// Deletes the files of a database, if they exist. No process may have the database open.
    pub fn remove(path: &Path) -> Result<(), StoreError> {
        match std::fs::remove_dir_all(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(StoreError::Database(e.into())),
            _ => Ok(()),
        }
    }

    /// Opens an empty database at `path`. Files that a killed process left at `path` are deleted first. When the last
    /// clone is dropped, the database deletes its files.
    pub fn scratch(path: &Path, cache_mib: u64) -> Result<Self, StoreError> {
        Self::remove(path)?;
        Ok(Self::from_config(sled::Config::new().path(path).temporary(true), cache_mib)?)
    }

    /// Opens an empty database in the system's temporary directory. When the last clone is dropped, the database
    /// deletes its files.
    pub fn temporary(cache_mib: u64) -> Result<Self, StoreError> {
        Ok(Self::from_config(sled::Config::new().temporary(true), cache_mib)?)
    }

    /// Opens the table with this name, or creates an empty one.
    pub fn table(&self, name: impl AsRef<[u8]>) -> Result<Table, StoreError> {
        Ok(Table::new(self.0.open_tree(name)?))
    }

    /// Deletes a table with its rows.
    pub fn drop_table(&self, table: &Table) -> Result<(), StoreError> {
        self.0.drop_tree(table.name())?;
        Ok(())
    }

    /// Waits until all writes are on disk.
    pub async fn flush(&self) -> Result<(), StoreError> {
        self.0.flush_async().await?;
        Ok(())
    }

    /// Deletes every table. Call this function only while no other thread reads.
    pub fn clear(&self) -> Result<(), StoreError> {
        for name in self.0.tree_names() {
            if name != b"__sled__default" {
                self.0.drop_tree(name)?;
            }
        }
        self.0.clear()?;
        Ok(())
    }

    /// Opens the current table of a model in this version. Deletes every other table of the model, also of other
    /// versions, except the table of an unfinished rebuild. Call this function only while no other thread reads.
    pub fn current_table(&self, model: ModelVersion<'_>) -> Result<Table, StoreError> {
        let (name, [first, second]) = (model.name, table_names(model));
        let current =
            self.0.get(current_key(name))?.filter(|current| *current == second.as_bytes()).map_or(first, |_| second);
        let rebuilt = self.0.get(rebuild_key(name))?;
        for other in self.0.tree_names() {
            let other_name = String::from_utf8_lossy(&other).into_owned();
            // A rebuild that was interrupted by the end of the process continues in its table.
            if rebuilt.as_ref().is_some_and(|rebuilt| *rebuilt == other) {
                continue;
            }
            if other_name != current && other_name.starts_with(&format!("{name}.v")) {
                self.0.drop_tree(&other)?;
            }
        }
        self.table(current)
    }

    /// Opens the table for a rebuild of a model. The table has the rows of an interrupted rebuild, or is empty.
    /// `current` is the table that queries read.
    pub fn rebuild_table(&self, model: ModelVersion<'_>, current: &Table) -> Result<Table, StoreError> {
        let (name, [first, second]) = (model.name, table_names(model));
        let other = if *current.name() == *first.as_bytes() { second } else { first };
        if !self.is_rebuilding(name)? {
            self.0.drop_tree(&other)?;
            self.0.insert(rebuild_key(name), other.as_bytes())?;
        }
        self.table(other)
    }

    /// True if a rebuild of the model has begun and has not ended. The rebuild may have begun in an earlier process.
    pub fn is_rebuilding(&self, name: &str) -> Result<bool, StoreError> {
        // If the rebuilt table is already current, the rebuild is done: the process ended before `end_rebuild`.
        let (rebuilt, current) = (self.0.get(rebuild_key(name))?, self.0.get(current_key(name))?);
        Ok(rebuilt.is_some() && rebuilt != current)
    }

    /// Records that the rebuild of a model has succeeded or failed.
    pub fn end_rebuild(&self, name: &str) -> Result<(), StoreError> {
        self.0.remove(rebuild_key(name))?;
        Ok(())
    }

    /// Makes `table` the current table of the model with this name.
    pub fn make_current(&self, name: &str, table: &Table) -> Result<(), StoreError> {
        table.flush()?;
        self.0.insert(current_key(name), table.name().as_ref())?;
        Ok(())
    }
}

/// The key under which the database keeps the name of the table that is being rebuilt.
fn rebuild_key(name: &str) -> String {
    format!("rebuilding.{name}")
}

/// The key under which the database keeps the name of the current table.
fn current_key(name: &str) -> String {
    format!("current.{name}")
}

/// The names of a model's two tables, such as `jobs.v4` and `jobs.v4.b`.
fn table_names(model: ModelVersion<'_>) -> [String; 2] {
    let ModelVersion { name, version } = model;
    [format!("{name}.v{version}"), format!("{name}.v{version}.b")]
}

/// True for the error that another owner has the database open. sled gives this error no kind of its own.
fn is_locked(e: &sled::Error) -> bool {
    matches!(e, sled::Error::Io(e) if e.to_string().starts_with("could not acquire lock"))
}

#[cfg(test)]
mod tests {
    use gpubnb_events::Seq;

    use super::*;
    use crate::{WriteBatch, checkpoint};

    const JOBS: ModelVersion<'_> = ModelVersion { name: "jobs", version: 4 };

    #[test]
    fn a_database_that_is_about_to_be_closed_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let db = Database::open(directory.path(), 8).unwrap();
        let path = directory.path().to_owned();
        let next_owner = std::thread::spawn(move || Database::open(&path, 8).map(drop));
        drop(db);
        next_owner.join().unwrap().unwrap();
    }

    #[test]
    fn an_interrupted_rebuild_continues_in_its_table_and_an_ended_rebuild_leaves_an_empty_table() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Database::open(directory.path(), 8).unwrap();
        let db = open();
        let current = db.current_table(JOBS).unwrap();
        let rebuilt = db.rebuild_table(JOBS, &current).unwrap();
        WriteBatch::new(&rebuilt).commit(Seq(5)).unwrap();
        drop((current, rebuilt, db));

        let db = open();
        let current = db.current_table(JOBS).unwrap();
        assert!(db.is_rebuilding("jobs").unwrap() && !db.is_rebuilding("ledger").unwrap());
        assert_eq!(checkpoint(&db.rebuild_table(JOBS, &current).unwrap()).unwrap(), Seq(5));
        db.end_rebuild("jobs").unwrap();
        assert_eq!(checkpoint(&db.rebuild_table(JOBS, &current).unwrap()).unwrap(), Seq::ZERO);
    }
}
