//! The store of the read models: tables of sorted rows, in the embedded database sled. No other crate knows which
//! database is used.
//!
//! This crate holds every use of sled, and the means to use sled well: blocks, which keep many neighbouring rows as one
//! value of sled, and copies of a table as of one moment. It must hold neither the meaning of a row nor the list of
//! models.
//!
//! In this diagram, an arrow points to the file that another file uses. `table.rs` uses `row_bytes.rs` besides.
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
