//! The worker's own log: printed, and kept in a file of bounded length for `gpubnb-provider logs`.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// Length of the file, bytes, at which a new one begins. One former file is kept.
pub(crate) const MOST: u64 = 4 << 20;

/// The file in the worker's directory.
pub(crate) fn path(state: &Path) -> PathBuf {
    state.join("worker.log")
}

/// Writes to standard error and to the file.
pub struct Journal(Mutex<LogFile>);

struct LogFile {
    file: File,
    path: PathBuf,
    written: u64,
}

impl Journal {
    /// Opens the file, or makes it.
    pub fn open(state: &Path) -> io::Result<Self> {
        fs::create_dir_all(state)?;
        let path = path(state);
        let file = File::options().create(true).append(true).open(&path)?;
        let written = file.metadata()?.len();
        Ok(Self(Mutex::new(LogFile { file, path, written })))
    }
}

impl LogFile {
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
        // A full disk must not stop the worker. The line has been printed, at least.
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
    fn a_new_file_begins_when_the_old_one_is_long() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = LogFile {
            file: File::options().create(true).append(true).open(path(dir.path())).unwrap(),
            path: path(dir.path()),
            written: MOST + 1,
        };
        file.write(b"new\n").unwrap();
        assert_eq!(fs::read_to_string(path(dir.path())).unwrap(), "new\n");
        assert!(dir.path().join("worker.log.1").exists());
    }
}
