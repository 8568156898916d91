//! The machine's identity: its id and keys, which are made once and never leave the machine, the market where it is
//! enrolled, and the lock by which only one worker uses them.

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

/// The machine's identity. The lock is held for as long as this value lives.
pub(crate) struct Identity {
    pub(crate) machine: MachineId,
    pub(crate) state: PathBuf,
    pub(crate) keys: Keys,
    _lock: File,
}

/// The machine's keys.
pub(crate) struct Keys {
    nkey: KeyPair,
    /// The key with which the market seals the secrets of jobs.
    pub(crate) sealing: XKey,
}

/// The market where this machine is enrolled.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Enrollment {
    /// Address of the market's edge.
    pub(crate) market: String,
    /// Certificate of the authority that signed the edge's, where that authority is not a public one.
    #[serde(default)]
    pub(crate) market_ca: Option<PathBuf>,
}

impl Keys {
    /// The public key that names this machine, `U…`.
    pub(crate) fn public_key(&self) -> String {
        self.nkey.public_key()
    }

    /// Signs a text. The signature is in base64url.
    pub(crate) fn sign(&self, text: &str) -> anyhow::Result<String> {
        Ok(BASE64URL_NOPAD.encode(&self.sign_bytes(text.as_bytes())?))
    }

    /// Signs bytes, as the broker asks for at each connection.
    pub(crate) fn sign_bytes(&self, bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
        Ok(self.nkey.sign(bytes)?)
    }
}

impl Identity {
    /// Takes the lock and reads the id and the keys. Makes them at the first start.
    pub(crate) fn open(state: &Path) -> anyhow::Result<Self> {
        let state = std::path::absolute(state)?;
        fs::create_dir_all(state.join("leases")).with_context(|| format!("creating {}", state.display()))?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(state.join("lock"))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("another worker runs with {}: stop it, or give this one its own --state", state.display());
        }
        let machine = kept(&state.join("machine"), 0o644, || Ok(MachineId::generate().to_string()))?;
        let machine = machine.parse().with_context(|| format!("reading {}", state.join("machine").display()))?;
        let nkey = kept(&state.join("machine.seed"), 0o600, || Ok(KeyPair::new_user().seed()?))?;
        let sealing = kept(&state.join("sealing.seed"), 0o600, || Ok(XKey::new().seed()?))?;
        let keys = Keys { nkey: KeyPair::from_seed(&nkey)?, sealing: XKey::from_seed(&sealing)? };
        Ok(Self { machine, state, keys, _lock: lock })
    }

    /// The market where this machine is enrolled. Fails where it is enrolled nowhere.
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

    /// The market where the machine of a directory is enrolled, if it is, for commands that run beside the worker.
    pub(crate) fn enrolled_at(state: &Path) -> Option<Enrollment> {
        serde_json::from_slice(&fs::read(state.join("enrollment.json")).ok()?).ok()
    }

    /// Writes down where this machine is enrolled.
    pub(crate) fn enrolled(&self, enrollment: &Enrollment) -> anyhow::Result<()> {
        let path = self.state.join("enrollment.json");
        let partial = path.with_extension("partial");
        fs::write(&partial, serde_json::to_vec_pretty(enrollment)?)?;
        fs::rename(&partial, &path).with_context(|| format!("writing {}", path.display()))
    }
}

/// The id of the machine whose directory this is, if it is one's.
pub(crate) fn machine_of(state: &Path) -> Option<MachineId> {
    fs::read_to_string(state.join("machine")).ok()?.trim().parse().ok()
}

/// The content of a file. Where there is none, the content is made and written.
fn kept(path: &Path, mode: u32, make: impl FnOnce() -> anyhow::Result<String>) -> anyhow::Result<String> {
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
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_machine_keeps_its_id_and_keys_and_has_one_worker() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::open(dir.path()).unwrap();
        assert!(Identity::open(dir.path()).is_err());
        let (machine, key) = (first.machine, first.keys.public_key());
        drop(first);
        let again = Identity::open(dir.path()).unwrap();
        assert_eq!((again.machine, again.keys.public_key()), (machine, key));
        for seed in ["machine.seed", "sealing.seed"] {
            assert_eq!(fs::metadata(dir.path().join(seed)).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert!(again.enrollment().unwrap_err().to_string().contains("gpubnb-provider enroll"));
    }
}
