//! Reads and changes the rows of a projector that is stopped. A change does not go through the log, so a verification
//! must find it.

use gpubnb_model::Projection;
use gpubnb_store::{self, Database, Table, WriteBatch};

use crate::market::Market;

/// sled's cache, MiB.
const CACHE_MIB: u64 = 16;

/// The table of a model of the first projector.
pub fn open_table(market: &Market, model: &impl Projection) -> anyhow::Result<Table> {
    open_table_in(market, "projector", model)
}

/// The table of a model of the projector whose rows are in this directory of the market.
pub fn open_table_in(market: &Market, directory: &str, model: &impl Projection) -> anyhow::Result<Table> {
    let db = Database::open(&market.path().join(directory).join("models"), CACHE_MIB)?;
    Ok(db.current_table(model.model_version())?)
}

/// Writes a row. Removes the row if `value` is `None`. The checkpoint of the table stays the same.
pub fn write_row(table: &Table, key: &[u8], value: Option<Vec<u8>>) -> anyhow::Result<()> {
    let mut rows = WriteBatch::new(table);
    match value {
        Some(value) => rows.put_bytes(key.to_vec(), value),
        None => rows.remove(key),
    }
    Ok(rows.commit_with_leaf(gpubnb_store::checkpoint(table)?, gpubnb_store::checkpoint_leaf(table)?)?)
}
