//! Lists and hashes the files that a job left in `/output`: its artifacts. The files are untrusted. Their number and
//! size are limited, links are never followed, and what is left out is listed with the reason.

use std::{
    collections::BTreeMap,
    fs::{self, File, Metadata},
    io::{self, ErrorKind, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use gpubnb_events::{
    event::Reason,
    spec::{Artifact, LeftOut, LeftOutReason},
    text::{DistinctPaths, MAX_NAMES, MAX_PATH, is_plain, make_plain},
};
use sha2::{Digest as _, Sha256};

use super::{Problem, job_disk};

/// Most files in a manifest.
const MAX_FILES: usize = 1_000;
/// Most directory entries of a running job that are measured, because a job must not keep the machine busy. The scratch
/// directory counts, too, and may have many entries, such as an installed Python environment.
const MAX_MEASURED: usize = 200_000;
/// Most directory entries that are read. A job with many million tiny files must not keep the machine busy.
const MAX_LISTED: usize = 50_000;
/// Most directories above a listed file. Deeper entries are left out.
const MAX_DEPTH: usize = 16;
/// Longest example of an entry that was left out, in characters.
const MAX_EXAMPLE: usize = 100;

/// The space that the files on a running job's disk take, bytes; `u64::MAX` if that cannot be measured, because a job
/// could otherwise hide files. A disk with a file system of its own needs no measurement.
pub(super) async fn measured_size(root: PathBuf) -> u64 {
    let measure = move || {
        if job_disk::is_mounted(&root).unwrap_or(false) {
            return 0;
        }
        let (mut bytes, mut entries) = (0_u64, 0);
        let mut pending = vec![root];
        while let Some(directory) = pending.pop() {
            let listed = match fs::read_dir(&directory) {
                Ok(listed) => listed,
                // The running job may have removed a directory after it was listed.
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(_) => return u64::MAX,
            };
            for entry in listed.flatten() {
                entries += 1;
                if entries > MAX_MEASURED {
                    return u64::MAX;
                }
                let Ok(metadata) = entry.metadata() else { continue };
                bytes += metadata.blocks() * 512;
                if metadata.is_dir() {
                    pending.push(entry.path());
                }
            }
        }
        bytes
    };
    tokio::task::spawn_blocking(measure).await.unwrap_or(0)
}

/// The files that a job left.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Collected {
    /// The files with their hashes, for the manifest.
    pub(super) files: Vec<Artifact>,
    /// The entries that are not in the manifest.
    pub(super) left_out: Vec<LeftOut>,
}

/// Lists and hashes the files of a job that has ended. Keeps as many files as fit into `max_bytes`, in the order of
/// their paths.
pub(super) async fn collect(root: PathBuf, max_bytes: u64) -> Result<Collected, Problem> {
    let collect = move || {
        let mut listing = Listing::default();
        listing.list(&root);
        listing.into_collected(&root, max_bytes)
    };
    tokio::task::spawn_blocking(collect).await.map_err(|e| Problem::caused(Reason::RuntimeMisconfigured, e))
}

/// The entries of an output, as they are found.
#[derive(Default)]
struct Listing {
    /// The sizes of the regular files in bytes, by path.
    files: BTreeMap<String, u64>,
    left_out: BTreeMap<LeftOutReason, LeftOut>,
}

/// The text that shows the path of an entry that was left out. `/output` stands for the whole output.
pub(super) fn example(path: &str) -> String {
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        return "/output".to_owned();
    }
    make_plain(&parts.join("/")).chars().take(MAX_EXAMPLE).collect()
}

impl Listing {
    fn list(&mut self, root: &Path) {
        let mut entries = 0;
        let mut pending = vec![(root.to_path_buf(), String::new(), 0)];
        while let Some((directory, prefix, depth)) = pending.pop() {
            let Ok(listed) = make_accessible(&directory).and_then(|()| fs::read_dir(&directory)) else {
                self.leave_out(LeftOutReason::Unreadable, &prefix);
                continue;
            };
            for entry in listed {
                let Ok(entry) = entry else { continue };
                entries += 1;
                if entries > MAX_LISTED {
                    return self.leave_out(LeftOutReason::TooManyFiles, &prefix);
                }
                let name = entry.file_name();
                let path = format!("{prefix}{}", name.to_string_lossy());
                // The metadata of the entry itself, and not of a link's target.
                match entry.metadata().map_err(|_| LeftOutReason::Unreadable).and_then(|metadata| {
                    check_entry(&path, name.to_str().is_some(), depth, &metadata).map(|()| metadata)
                }) {
                    Err(reason) => self.leave_out(reason, &path),
                    Ok(metadata) if metadata.is_dir() => pending.push((entry.path(), format!("{path}/"), depth + 1)),
                    Ok(metadata) => {
                        self.files.insert(path, metadata.len());
                    }
                }
            }
        }
    }

    fn leave_out(&mut self, reason: LeftOutReason, path: &str) {
        let left = self.left_out.entry(reason).or_insert(LeftOut { reason, entries: 0, example: example(path) });
        left.entries += 1;
    }

    /// Hashes the files that fit.
    fn into_collected(mut self, root: &Path, max_bytes: u64) -> Collected {
        let (mut files, mut room, mut paths) = (Vec::new(), max_bytes, DistinctPaths::default());
        let mut names = 0;
        for (path, bytes) in std::mem::take(&mut self.files) {
            names += path.len();
            if files.len() == MAX_FILES || names > MAX_NAMES {
                self.leave_out(LeftOutReason::TooManyFiles, &path);
            } else if !paths.add(&path) {
                self.leave_out(LeftOutReason::SameName, &path);
            } else if bytes > room {
                self.leave_out(LeftOutReason::TooLarge, &path);
            } else if let Ok(artifact) = hash(root, &path, bytes) {
                room -= artifact.bytes;
                files.push(artifact);
            } else {
                self.leave_out(LeftOutReason::Unreadable, &path);
            }
        }
        Collected { files, left_out: self.left_out.into_values().collect() }
    }
}

/// Checks that an entry is a directory or a file that can be in a manifest. `depth` is the number of directories above
/// it.
fn check_entry(path: &str, is_text: bool, depth: usize, metadata: &Metadata) -> Result<(), LeftOutReason> {
    if !is_text || !path.chars().all(is_plain) {
        Err(LeftOutReason::UnusableName)
    } else if path.len() > MAX_PATH {
        Err(LeftOutReason::LongPath)
    } else if depth > MAX_DEPTH || (metadata.is_dir() && depth == MAX_DEPTH) {
        Err(LeftOutReason::TooDeep)
    } else if metadata.is_dir() || metadata.is_file() {
        Ok(())
    } else {
        Err(LeftOutReason::NotAFile)
    }
}

/// Makes a directory readable that the job has made unreadable. Only for a job that has ended, which can no longer put
/// a link in the directory's place. Does nothing to a directory that is readable. An unreadable directory of another
/// user is an error, unless the worker is root.
pub(super) fn make_accessible(directory: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(directory)?;
    if metadata.is_dir() && metadata.mode() & 0o700 != 0o700 {
        fs::set_permissions(directory, fs::Permissions::from_mode(metadata.mode() & 0o7777 | 0o700))?;
    }
    Ok(())
}

/// Opens a file of a job that has ended. Fails if the file is a link. Makes a file readable that the job has made
/// unreadable.
pub(super) fn open(path: &Path) -> io::Result<File> {
    // A pipe in the file's place must not block the worker.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let open = || fs::OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path);
    match open() {
        Err(e) if e.kind() == ErrorKind::PermissionDenied && fs::symlink_metadata(path)?.is_file() => {
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
            open()
        }
        opened => opened,
    }
}

fn hash(root: &Path, path: &str, bytes: u64) -> io::Result<Artifact> {
    let mut content = open(&root.join(path))?.take(bytes);
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 128 * 1024];
    let mut hashed = 0;
    loop {
        let read = content.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        hashed += read as u64;
    }
    Ok(Artifact { path: path.to_owned(), bytes: hashed, sha256: gpubnb_events::hex(hasher.finalize()) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    fn left_out(reason: LeftOutReason, entries: u64, example: &str) -> LeftOut {
        LeftOut { reason, entries, example: example.to_owned() }
    }

    #[tokio::test]
    async fn files_are_listed_and_everything_else_is_left_out_with_its_reason() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("output");
        fs::create_dir_all(root.join("a")).unwrap();
        fs::write(root.join("a/b.txt"), "hello").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.join("link")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("link-to-directory")).unwrap();
        fs::write(root.join("new\nline"), "x").unwrap();
        fs::write(root.join(std::ffi::OsStr::from_bytes(b"\xff")), "x").unwrap();
        let deep = root.join(["d"; 18].join("/"));
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("file"), "x").unwrap();
        let collected = collect(root.clone(), 100).await.unwrap();
        let hello = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        assert_eq!(collected.files, [Artifact { path: "a/b.txt".to_owned(), bytes: 5, sha256: hello.to_owned() }]);
        let counts: Vec<_> = collected.left_out.iter().map(|l| (l.reason, l.entries)).collect();
        let expected = [(LeftOutReason::UnusableName, 2), (LeftOutReason::TooDeep, 1), (LeftOutReason::NotAFile, 2)];
        assert_eq!(counts, expected);
        assert!(collected.left_out.iter().all(|l| l.example.chars().all(is_plain)));
    }

    #[tokio::test]
    async fn what_fits_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in [("a", 5), ("b", 6), ("c", 5)] {
            fs::write(dir.path().join(name), vec![b'x'; bytes]).unwrap();
        }
        let collected = collect(dir.path().to_path_buf(), 10).await.unwrap();
        let names: Vec<_> = collected.files.iter().map(|f| f.path.as_str()).collect();
        assert_eq!(names, ["a", "c"]);
        assert_eq!(collected.left_out, [left_out(LeftOutReason::TooLarge, 1, "b")]);
        for index in 0..=MAX_FILES {
            fs::write(dir.path().join(format!("d{index:04}")), "").unwrap();
        }
        let collected = collect(dir.path().to_path_buf(), 100).await.unwrap();
        assert_eq!(collected.files.len(), MAX_FILES);
        assert_eq!(collected.left_out, [left_out(LeftOutReason::TooManyFiles, 4, "d0997")]);
    }

    #[tokio::test]
    async fn the_space_on_the_disk_is_measured_and_a_sparse_file_takes_none() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join(["d"; 20].join("/"));
        fs::create_dir_all(&deep).unwrap();
        File::create(deep.join("sparse")).unwrap().set_len(1 << 40).unwrap();
        let before = measured_size(dir.path().to_path_buf()).await;
        assert!(before < 1 << 20, "{before}");
        fs::write(deep.join("file"), vec![1; 1 << 20]).unwrap();
        assert!(measured_size(dir.path().to_path_buf()).await >= before + (1 << 20), "files count at every depth");
    }
}
