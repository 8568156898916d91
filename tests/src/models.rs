//! The rows of a projector that does not run: read, and changed behind the log.

use gpubnb_projector::{
    database::Database,
    model::Projection,
    store::{self, Rows},
    tree::Tree,
};

use crate::system::System;

/// sled's cache, MiB.
const CACHE_MIB: u64 = 16;

/// The tree of a model.
pub fn open(system: &System, model: &impl Projection) -> anyhow::Result<Tree> {
    open_in(system, "projector", model)
}

/// The tree of a model of the projector that has its rows in this directory.
pub fn open_in(system: &System, directory: &str, model: &impl Projection) -> anyhow::Result<Tree> {
    let db = Database::open(&system.path().join(directory).join("models"), CACHE_MIB)?;
    Ok(db.model(model)?)
}

/// Writes a row, or removes it; as far as the checkpoint says, nothing happened.
pub fn write(tree: &Tree, key: &[u8], value: Option<Vec<u8>>) -> anyhow::Result<()> {
    let mut rows = Rows::new(tree);
    match value {
        Some(value) => rows.put_bytes(key.to_vec(), value),
        None => rows.remove(key),
    }
    Ok(rows.commit_of(store::checkpoint(tree)?, store::last_leaf(tree)?)?)
}
