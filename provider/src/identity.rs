//! The machine's identity: its id, its keys, and the market where the machine is enrolled. The worker generates the id
//! and the keys once, and the private keys never leave the machine. A lock ensures that only one worker uses an
//! identity.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use data_encoding::BASE64URL_NOPAD;
use gpubnb_events::MachineId;
use nkeys::{KeyPair, XKey};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// The machine's identity. The lock is released when this value is dropped.
pub(crate) struct Identity {
    pub(crate) machine: MachineId,
    /// The worker's directory.
    pub(crate) state: PathBuf,
    pub(crate) keys: MachineKeys,
    _lock: File,
}

/// The machine's keys.
pub(crate) struct MachineKeys {
    /// The Ed25519 key with which the machine signs.
    nkey: KeyPair,
    /// The X25519 key with which the machine decrypts the secrets of jobs.
    pub(crate) sealing: XKey,
}

/// The market where this machine is enrolled.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Enrollment {
    /// Address of the market's edge, which is its public web server.
    pub(crate) market: String,
    /// Certificate (PEM) of the authority that signed the edge's certificate; `None` for a public authority.
    #[serde(default)]
    pub(crate) market_ca: Option<PathBuf>,
}

impl MachineKeys {
    /// The public key for which the market issues credentials. It begins with `U`.
    pub(crate) fn public_key(&self) -> String {
        self.nkey.public_key()
    }

    /// Signs a text. Returns the signature in base64url.
    pub(crate) fn sign(&self, text: &str) -> anyhow::Result<String> {
        Ok(BASE64URL_NOPAD.encode(&self.sign_bytes(text.as_bytes())?))
    }

    /// Signs bytes, such as the broker's nonce. Returns the raw signature.
    pub(crate) fn sign_bytes(&self, bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
        Ok(self.nkey.sign(bytes)?)
    }
}

impl Identity {
    /// Takes the lock, and reads the id and the keys from the directory `state`. Makes the id and the keys at the first
    /// start.
    pub(crate) fn open(state: &Path) -> anyhow::Result<Self> {
        let state = std::path::absolute(state)?;
        fs::create_dir_all(state.join("leases")).with_context(|| format!("creating {}", state.display()))?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(state.join("lock"))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("another worker runs with {}: stop it, or give this one its own --state", state.display());
        }
        let machine = read_or_create(&state.join("machine"), 0o644, || Ok(MachineId::generate().to_string()))?;
        let machine = machine.parse().with_context(|| format!("reading {}", state.join("machine").display()))?;
        let nkey = read_or_create(&state.join("machine.seed"), 0o600, || Ok(KeyPair::new_user().seed()?))?;
        let sealing = read_or_create(&state.join("sealing.seed"), 0o600, || Ok(XKey::new().seed()?))?;
        let keys = MachineKeys { nkey: KeyPair::from_seed(&nkey)?, sealing: XKey::from_seed(&sealing)? };
        Ok(Self { machine, state, keys, _lock: lock })
    }

    /// The market where this machine is enrolled. Fails if the machine is not enrolled.
    pub(crate) fn enrollment(&self) -> anyhow::Result<Enrollment> {
        let path = self.state.join("enrollment.json");
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("reading {}", path.display())),
            Err(e) if e.kind() == ErrorKind::NotFound => bail!(
                "this machine is not enrolled. Get a code on the market's page \"My machines\", and run: \
                 gpubnb-provider enroll <code> --market <address>"
            ),
            Err(e) => Err(e).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// The market where the machine of a directory is enrolled; `None` if it is not enrolled. Takes no lock, for
    /// commands that run at the same time as the worker.
    pub(crate) fn read_enrollment(state: &Path) -> Option<Enrollment> {
        serde_json::from_slice(&fs::read(state.join("enrollment.json")).ok()?).ok()
    }

    /// Saves the market where this machine is enrolled.
    pub(crate) fn save_enrollment(&self, enrollment: &Enrollment) -> anyhow::Result<()> {
        let path = self.state.join("enrollment.json");
        let partial = path.with_extension("partial");
        fs::write(&partial, serde_json::to_vec_pretty(enrollment)?)?;
        fs::rename(&partial, &path).with_context(|| format!("writing {}", path.display()))
    }
}

/// The id of the machine of a directory; `None` if the directory belongs to no machine.
pub(crate) fn machine_of(state: &Path) -> Option<MachineId> {
    fs::read_to_string(state.join("machine")).ok()?.trim().parse().ok()
}

/// Reads a file. If the file does not exist, makes its content, and writes the file with these permissions (`mode`).
fn read_or_create(path: &Path, mode: u32, make: impl FnOnce() -> anyhow::Result<String>) -> anyhow::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) => return Ok(text.trim().to_owned()),
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(e).with_context(|| format!("reading {}", path.display())),
    }
    let made = make()?;
    let partial = path.with_extension("partial");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(mode).open(&partial)?;
    writeln!(file, "{made}")?;
    file.sync_all()?;
    fs::rename(&partial, path).with_context(|| format!("writing {}", path.display()))?;
    Ok(made)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_machine_has_the_same_id_and_keys_at_each_start_and_only_one_worker() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::open(dir.path()).unwrap();
        assert!(Identity::open(dir.path()).is_err());
        let (machine, key) = (first.machine, first.keys.public_key());
        drop(first);
        let reopened = Identity::open(dir.path()).unwrap();
        assert_eq!((reopened.machine, reopened.keys.public_key()), (machine, key));
        for seed in ["machine.seed", "sealing.seed"] {
            assert_eq!(fs::metadata(dir.path().join(seed)).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert!(reopened.enrollment().unwrap_err().to_string().contains("gpubnb-provider enroll"));
    }
}
