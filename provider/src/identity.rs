//! Who this machine is: an id that is made once and kept, and a lock so that only one worker speaks for it.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use gpubnb_events::MachineId;
use rustix::fs::{FlockOperation, flock};

/// The machine's identity, held for as long as this value lives.
pub(crate) struct Identity {
    pub(crate) machine: MachineId,
    pub(crate) state: PathBuf,
    _lock: File,
}

impl Identity {
    /// Takes the lock and reads the id; makes one at the first start.
    pub(crate) fn open(state: &Path) -> anyhow::Result<Self> {
        let state = std::path::absolute(state)?;
        fs::create_dir_all(state.join("leases")).with_context(|| format!("creating {}", state.display()))?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(state.join("lock"))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("another worker runs with {}: stop it, or give this one its own --state", state.display());
        }
        let path = state.join("machine");
        let machine = match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().with_context(|| format!("reading {}", path.display()))?,
            Err(e) if e.kind() == ErrorKind::NotFound => create(&path)?,
            Err(e) => return Err(e).with_context(|| format!("reading {}", path.display())),
        };
        Ok(Self { machine, state, _lock: lock })
    }
}

fn create(path: &Path) -> anyhow::Result<MachineId> {
    let machine = MachineId::generate();
    let mut file = OpenOptions::new().create_new(true).write(true).open(path)?;
    writeln!(file, "{machine}")?;
    file.sync_all()?;
    Ok(machine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_keeps_its_id_and_has_one_worker() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::open(dir.path()).unwrap();
        assert!(Identity::open(dir.path()).is_err());
        let machine = first.machine;
        drop(first);
        assert_eq!(Identity::open(dir.path()).unwrap().machine, machine);
    }
}
