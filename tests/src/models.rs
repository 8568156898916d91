//! The rows of a projector that does not run: read, and changed behind the log.

use gpubnb_model::Projection;
use gpubnb_store::{self, Database, Table, WriteBatch};

use crate::market::Market;

/// sled's cache, MiB.
const CACHE_MIB: u64 = 16;

/// The table of a model.
pub fn open(market: &Market, model: &impl Projection) -> anyhow::Result<Table> {
    open_in(market, "projector", model)
}

/// The table of a model of the projector that has its rows in this directory.
pub fn open_in(market: &Market, directory: &str, model: &impl Projection) -> anyhow::Result<Table> {
    let db = Database::open(&market.path().join(directory).join("models"), CACHE_MIB)?;
    Ok(db.current_table(model.model_version())?)
}

/// Writes a row, or removes it; as far as the checkpoint says, nothing happened.
pub fn write(table: &Table, key: &[u8], value: Option<Vec<u8>>) -> anyhow::Result<()> {
    let mut rows = WriteBatch::new(table);
    match value {
        Some(value) => rows.put_bytes(key.to_vec(), value),
        None => rows.remove(key),
    }
    Ok(rows.commit_with_leaf(gpubnb_store::checkpoint(table)?, gpubnb_store::checkpoint_leaf(table)?)?)
}
