//! Small files with a value as JSON, which a later run of the worker reads.

use std::{fs, io, path::Path};

use serde::{Serialize, de::DeserializeOwned};
use tracing::warn;

/// Writes a value, whole or not at all.
pub(crate) fn save(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let partial = path.with_extension("partial");
    fs::write(&partial, serde_json::to_vec(value)?)?;
    fs::rename(partial, path)
}

/// The value that was saved; `None` if none was saved, or if the file cannot be read.
pub(crate) fn saved<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = match fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
        bytes => bytes.inspect_err(|e| warn!(path = %path.display(), error = %e, "a file cannot be read")).ok()?,
    };
    let parsed = serde_json::from_slice(&bytes);
    parsed.inspect_err(|e| warn!(path = %path.display(), error = %e, "a file cannot be understood")).ok()
}
