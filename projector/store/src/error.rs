//! The store's failures.

use std::{error::Error, fmt};

/// A failure of the store. A model stops at it, visibly.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database failed: the disk is full, a file is damaged, or another process has the database open.
    #[error("the database of the read models failed")]
    Database(#[source] Box<dyn Error + Send + Sync>),
    /// A row or a block is damaged, or of another type than expected.
    #[error("row {key:?} cannot be read: {problem}")]
    Corrupt {
        /// The row's key, printable.
        key: String,
        /// The problem.
        problem: String,
    },
}

impl StoreError {
    /// A damaged row, or one of another type than expected.
    pub fn corrupt(key: &[u8], problem: impl fmt::Display) -> Self {
        Self::Corrupt { key: key.escape_ascii().to_string(), problem: problem.to_string() }
    }
}

impl From<sled::Error> for StoreError {
    fn from(e: sled::Error) -> Self {
        Self::Database(e.into())
    }
}
