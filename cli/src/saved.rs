//! The file that `login` writes: the market's address and the token. Only the file's owner can read it.

use std::{
    env, fs,
    io::{ErrorKind, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// The market that the user is logged in to.
#[derive(Serialize, Deserialize)]
pub(crate) struct SavedLogin {
    pub(crate) url: String,
    pub(crate) token: String,
    /// The public keys that the market published at the first login after the last logout. One of them signs each
    /// proof.
    #[serde(default)]
    pub(crate) head_keys: Vec<String>,
}

/// The path of the file; `None` if there is no home directory.
fn path() -> Option<PathBuf> {
    let base = env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let base = base.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".config")));
    Some(base?.join("gpubnb/login.json"))
}

/// Reads the file; `None` if the file, or a home directory, does not exist.
pub(crate) fn read() -> anyhow::Result<Option<SavedLogin>> {
    let Some(path) = path() else { return Ok(None) };
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("reading {}", path.display())).map(Some),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("reading {}", path.display())),
    }
}

/// Writes the file, and returns its path.
pub(crate) fn write(saved: &SavedLogin) -> anyhow::Result<PathBuf> {
    let path = path().context("neither XDG_CONFIG_HOME nor HOME is set: use --token")?;
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let partial = path.with_extension("partial");
    let mut file = fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&partial)?;
    file.write_all(&serde_json::to_vec_pretty(saved)?)?;
    file.sync_all()?;
    fs::rename(&partial, &path)?;
    Ok(path)
}

/// Deletes the file.
pub(crate) fn delete() -> anyhow::Result<()> {
    let Some(path) = path() else { return Ok(()) };
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e.into()),
        _ => Ok(()),
    }
}
