//! The worker's journal: its own log, not the log of a job. Each line is printed to standard error and appended to a
//! file of limited size, which `gpubnb-provider logs` reads.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// The journal is rotated when its file is larger, bytes. One former file is kept as `worker.log.1`.
pub(crate) const MAX_FILE_BYTES: u64 = 4 << 20;

/// The most bytes of the journal that are read for its last lines.
const MAX_TAIL_BYTES: u64 = 64 << 10;

/// The path of the journal's file in the worker's directory.
pub(crate) fn path(state: &Path) -> PathBuf {
    state.join("worker.log")
}

/// The last lines of the journal, at most `most`, as far as they are in the last [`MAX_TAIL_BYTES`].
pub(crate) fn last_lines(state: &Path, most: usize) -> io::Result<Vec<String>> {
    let mut file = File::open(path(state))?;
    let begin = file.metadata()?.len().saturating_sub(MAX_TAIL_BYTES);
    file.seek(SeekFrom::Start(begin))?;
    let mut bytes = Vec::new();
    file.take(MAX_TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    // The first line may have lost its beginning.
    let lines: Vec<&str> = text.lines().skip(usize::from(begin > 0)).collect();
    Ok(lines.iter().skip(lines.len().saturating_sub(most)).map(|line| (*line).to_owned()).collect())
}

/// The writer of the journal: writes to standard error and to the file.
pub struct Journal(Mutex<LogFile>);

struct LogFile {
    file: File,
    path: PathBuf,
    /// Size of the file, bytes.
    size: u64,
}

impl Journal {
    /// Opens or creates the file in the worker's directory `state`.
    pub fn open(state: &Path) -> io::Result<Self> {
        fs::create_dir_all(state)?;
        let path = path(state);
        let file = File::options().create(true).append(true).open(&path)?;
        let size = file.metadata()?.len();
        Ok(Self(Mutex::new(LogFile { file, path, size })))
    }
}

impl LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.size > MAX_FILE_BYTES {
            fs::rename(&self.path, self.path.with_extension("log.1"))?;
            self.file = File::options().create(true).append(true).open(&self.path)?;
            self.size = 0;
        }
        self.size += bytes.len() as u64;
        self.file.write_all(bytes)
    }
}

impl Write for &Journal {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::stderr().write_all(bytes)?;
        // An error of the file is ignored, because a full disk must not stop the worker. The line has been printed.
        let result = self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes);
        drop(result);
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
    fn a_journal_that_is_too_large_is_rotated() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = LogFile {
            file: File::options().create(true).append(true).open(path(dir.path())).unwrap(),
            path: path(dir.path()),
            size: MAX_FILE_BYTES + 1,
        };
        file.write(b"new\n").unwrap();
        assert_eq!(fs::read_to_string(path(dir.path())).unwrap(), "new\n");
        assert!(dir.path().join("worker.log.1").exists());
    }

    #[test]
    fn the_last_lines_are_whole() {
        let dir = tempfile::tempdir().unwrap();
        assert!(last_lines(dir.path(), 2).is_err(), "no worker has run");
        fs::write(path(dir.path()), "one\ntwo\nthree\n").unwrap();
        assert_eq!(last_lines(dir.path(), 2).unwrap(), ["two", "three"]);
        assert_eq!(last_lines(dir.path(), 9).unwrap().len(), 3);
        let long = "x".repeat(usize::try_from(MAX_TAIL_BYTES).unwrap());
        fs::write(path(dir.path()), format!("{long}\nlast\n")).unwrap();
        assert_eq!(last_lines(dir.path(), 9).unwrap(), ["last"], "the long line has lost its beginning");
    }
}
