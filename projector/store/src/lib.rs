//! The store of the read models: tables of sorted rows, in sled. No other crate knows which database is used.
//!
//! Belongs here: every use of sled, and the means to use it well (blocks, copies as of one moment). Must not come here:
//! the meaning of a row, or the list of models.
//!
//! ```text
//! error.rs <- block.rs <- table.rs <- snapshot_copy.rs <- batch.rs
//!                             ^------ database.rs
//! ```

mod batch;
mod block;
mod database;
mod error;
mod row_bytes;
mod snapshot_copy;
mod table;

pub use self::{
    batch::{Row, WriteBatch, checkpoint, checkpoint_in, decode, get, last_leaf, leaf_in},
    block::LONGEST as LONGEST_BLOCK,
    database::{Database, ModelVersion},
    error::StoreError,
    row_bytes::RowBytes,
    snapshot_copy::SnapshotCopy,
    table::{CHECKPOINT, KeyValue, Range, Table},
};
