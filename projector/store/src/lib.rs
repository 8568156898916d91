//! The store of the read models: tables of rows in order, in sled. Above this crate nobody knows which database it is.
//!
//! Belongs here: every use of sled, and whatever sled makes necessary (blocks, copies of one moment). Must not come here:
//! what a row means, or which models there are.
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
