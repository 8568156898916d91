//! The error type of the store.

use std::{error::Error, fmt};

/// A failure of the store. A model that gets this error stops, and operators see the reason.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database failed: the disk is full, a file is damaged, or another process has the database open.
    #[error("the database of the read models failed")]
    Database(#[source] Box<dyn Error + Send + Sync>),
    /// A row or a block is damaged, or has another type than the reader expects.
    #[error("row {key:?} cannot be read: {problem}")]
    Corrupt {
        /// The row's key, with unprintable bytes escaped. Empty if a whole block is damaged.
        key: String,
        /// The reason why the row or block cannot be read.
        problem: String,
    },
}

impl StoreError {
    /// True if the disk failed: it is full, or cannot be read or written. False for a damaged file, and for a row that
    /// cannot be read: these concern one table.
    pub fn is_io(&self) -> bool {
        let Self::Database(cause) = self else { return false };
        matches!(cause.downcast_ref(), Some(sled::Error::Io(_))) || cause.is::<std::io::Error>()
    }

    /// Makes the error for a damaged row, or for a row of an unexpected type.
    pub fn corrupt(key: &[u8], problem: impl fmt::Display) -> Self {
        Self::Corrupt { key: key.escape_ascii().to_string(), problem: problem.to_string() }
    }
}

impl From<sled::Error> for StoreError {
    fn from(e: sled::Error) -> Self {
        Self::Database(e.into())
    }
}
