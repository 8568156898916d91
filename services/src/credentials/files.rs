//! The files of a market's keys. A file is written whole or not at all, and only its owner may read it.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use anyhow::Context as _;
use nkeys::KeyPair;

/// Seed of the scoped key that signs the credentials of machines.
pub(super) const ISSUER: &str = "issuer.seed";
/// Seed of the operator's signing key, which signs new versions of the machines' account.
pub(super) const REVOKER: &str = "revoker.seed";
/// The JWT of the machines' account, as bootstrap made it.
pub(super) const MACHINES: &str = "machines.jwt";
/// Seed of the key that seals the secret values of jobs.
pub(super) const SEALING: &str = "sealing.seed";

/// Writes a file that only its owner may read, whole or not at all.
pub(super) fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let partial = path.with_extension("partial");
    let written = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&partial)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    written().with_context(|| format!("writing {}", path.display()))
}

/// Reads a file of keys.
pub(super) fn read(path: &Path) -> anyhow::Result<String> {
    let text = fs::read_to_string(path).with_context(|| {
        format!("reading {}: `gpubnb-services bootstrap` makes it (--nats-creds says where it is)", path.display())
    })?;
    Ok(text.trim().to_owned())
}

/// Reads a key from its seed.
pub(super) fn read_key(path: &Path) -> anyhow::Result<KeyPair> {
    KeyPair::from_seed(&read(path)?).with_context(|| format!("{} holds no key", path.display()))
}
