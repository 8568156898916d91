//! The one folder into which a job writes its results.
//!
//! A result appears under its name only when it is complete: it is written to a hidden name next
//! to it and then renamed. What the results say is up to the jobs and does not belong here.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::Error;

/// A folder that is known to be writable.
#[derive(Clone, Debug)]
pub struct OutputDir {
    path: PathBuf,
}

impl OutputDir {
    /// Takes the folder, making it where it is missing, and makes sure that files can be written.
    ///
    /// This is done before the work starts, so that a job never works for nothing.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        let probe = path.join(".writable");
        fs::create_dir_all(&path)
            .and_then(|()| fs::write(&probe, b""))
            .and_then(|()| fs::remove_file(&probe))
            .map_err(|source| Error::Write { path: path.clone(), source })?;
        Ok(Self { path })
    }

    /// Stores bytes under a file name.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, Error> {
        self.write_with(name, |part| fs::write(part, bytes).map_err(|source| write_error(part, source)))
    }

    /// Stores a value as readable JSON under a file name.
    pub fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<PathBuf, Error> {
        let mut bytes = serde_json::to_vec_pretty(value)?;
        bytes.push(b'\n');
        self.write(name, &bytes)
    }

    /// Stores a file which `fill` writes at the path it is given.
    pub fn write_with(&self, name: &str, fill: impl FnOnce(&Path) -> Result<(), Error>) -> Result<PathBuf, Error> {
        let part = self.path.join(format!(".{name}.part"));
        let target = self.path.join(name);
        let stored =
            fill(&part).and_then(|()| fs::rename(&part, &target).map_err(|source| write_error(&target, source)));
        if stored.is_err() {
            // The first error is the one to tell; a leftover is hidden and harmless.
            let _ = fs::remove_file(&part);
        }
        stored.map(|()| target)
    }
}

fn write_error(path: &Path, source: io::Error) -> Error {
    Error::Write { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_stored_whole_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let output = OutputDir::open(dir.path().join("made")).unwrap();
        let path = output.write("a.txt", b"one").unwrap();
        output.write("a.txt", b"two").unwrap();
        assert_eq!(fs::read(path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path().join("made")).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_file_never_appears() {
        let dir = tempfile::tempdir().unwrap();
        let output = OutputDir::open(dir.path()).unwrap();
        let result = output.write_with("a.txt", |part| {
            fs::write(part, b"half").unwrap();
            Err(Error::Data("broken"))
        });
        assert!(result.is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, b"").unwrap();
        let error = OutputDir::open(file.join("below")).unwrap_err();
        assert!(error.to_string().starts_with("cannot write "));
    }
}
