//! The worker's own log, kept in its directory besides being printed: bounded, for `gpubnb-provider logs`.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// Length at which it begins anew; what was before is kept once.
pub(crate) const MOST: u64 = 4 << 20;

/// Where it lies.
pub(crate) fn path(state: &Path) -> PathBuf {
    state.join("worker.log")
}

/// Writes to standard error and to the file.
pub struct Journal(Mutex<Open>);

struct Open {
    file: File,
    path: PathBuf,
    written: u64,
}

impl Journal {
    /// Opens, or makes it.
    pub fn open(state: &Path) -> io::Result<Self> {
        fs::create_dir_all(state)?;
        let path = path(state);
        let file = File::options().create(true).append(true).open(&path)?;
        let written = file.metadata()?.len();
        Ok(Self(Mutex::new(Open { file, path, written })))
    }
}

impl Open {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.written > MOST {
            fs::rename(&self.path, self.path.with_extension("log.1"))?;
            self.file = File::options().create(true).append(true).open(&self.path)?;
            self.written = 0;
        }
        self.written += bytes.len() as u64;
        self.file.write_all(bytes)
    }
}

impl Write for &Journal {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::stderr().write_all(bytes)?;
        // A full disk must not keep the worker from working: it has been printed.
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes);
        drop(kept);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_anew_when_it_is_long() {
        let dir = tempfile::tempdir().unwrap();
        let mut open = Open {
            file: File::options().create(true).append(true).open(path(dir.path())).unwrap(),
            path: path(dir.path()),
            written: MOST + 1,
        };
        open.write(b"new\n").unwrap();
        assert_eq!(fs::read_to_string(path(dir.path())).unwrap(), "new\n");
        assert!(dir.path().join("worker.log.1").exists());
    }
}
