//! Tells whether the machine was restarted during an attempt. For that, the kernel's id of the present boot is noted in
//! the attempt's directory. Unlike the clock, the id is right also after a power cut.

use std::{fs, io, path::Path};

const FILE: &str = "boot";
/// A random id that the kernel makes at each boot (`random(4)`).
const KERNEL_BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Notes the id of the present boot. Notes nothing where the kernel does not tell it.
pub(super) fn note(dir: &Path) -> io::Result<()> {
    match fs::read(KERNEL_BOOT_ID) {
        Ok(id) => fs::write(dir.join(FILE), id),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// Returns true where the machine was restarted since the id was noted; false also where either id is not known.
pub(super) fn has_changed(dir: &Path) -> bool {
    match (fs::read(dir.join(FILE)), fs::read(KERNEL_BOOT_ID)) {
        (Ok(noted), Ok(now)) => noted != now,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_of_the_machine_is_known_by_the_kernels_id() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!has_changed(dir.path()), "nothing was noted");
        note(dir.path()).unwrap();
        assert!(!has_changed(dir.path()));
        fs::write(dir.path().join(FILE), "another\n").unwrap();
        assert!(has_changed(dir.path()));
    }
}
