//! Which start of the machine an attempt was made in: noted in its directory, by the kernel's own id for it. After a power
//! cut the clock may be wrong for a while; this is not.

use std::{fs, io, path::Path};

const FILE: &str = "boot";
/// A random id that the kernel makes at each start (`random(4)`).
const OF_KERNEL: &str = "/proc/sys/kernel/random/boot_id";

/// Notes it. Where the kernel does not say it, nothing is noted.
pub(super) fn note(dir: &Path) -> io::Result<()> {
    match fs::read(OF_KERNEL) {
        Ok(id) => fs::write(dir.join(FILE), id),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// Whether the machine was started anew since.
pub(super) fn was_another(dir: &Path) -> bool {
    match (fs::read(dir.join(FILE)), fs::read(OF_KERNEL)) {
        (Ok(noted), Ok(now)) => noted != now,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_was_started_anew_is_known_by_its_kernels_id() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!was_another(dir.path()), "nothing is known");
        note(dir.path()).unwrap();
        assert!(!was_another(dir.path()));
        fs::write(dir.path().join(FILE), "another\n").unwrap();
        assert!(was_another(dir.path()));
    }
}
