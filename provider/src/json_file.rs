//! Small files with a value as JSON, which a later run of the worker reads.

use std::{fs, io, path::Path};

use serde::{Serialize, de::DeserializeOwned};

/// Writes a value, whole or not at all.
pub(crate) fn save(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let partial = path.with_extension("partial");
    fs::write(&partial, serde_json::to_vec(value)?)?;
    fs::rename(partial, path)
}

/// The value that was saved; `None` if none was saved, or if the file cannot be read.
pub(crate) fn saved<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}
