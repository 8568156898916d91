//! The store of the read models: tables of sorted rows in the embedded database sled. No other crate uses sled.
//!
//! The store adds two things that sled lacks: blocks (many neighbouring rows, stored as one value of sled) and snapshot
//! copies (a table as it was at one moment). The store does not know which models exist, or what their rows mean.
//!
//! In the diagram, `a <- b` means that `b` uses `a`. `table.rs` also uses `row_bytes.rs`.
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
    batch::{Row, WriteBatch, checkpoint, checkpoint_leaf, decode, decode_checkpoint, decode_leaf, get},
    block::MAX_BLOCK_BYTES,
    database::{Database, ModelVersion},
    error::StoreError,
    row_bytes::RowBytes,
    snapshot_copy::SnapshotCopy,
    table::{CHECKPOINT, KeyValue, Range, Table},
};
