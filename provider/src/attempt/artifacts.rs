//! Lists and hashes the files that a job left in `/output`: its artifacts. The files are untrusted. Their number and
//! size are limited, links are never followed, and names with control characters are left out.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use gpubnb_events::{event::Reason, spec::Artifact};
use sha2::{Digest as _, Sha256};

use super::Problem;

/// Most files in a manifest.
const MAX_FILES: usize = 1_000;
/// Most directory entries that are read. A job with a million tiny files must not keep the machine busy.
const MAX_ENTRIES: usize = 10_000;
/// Most directories above a listed file. Deeper files are left out.
const MAX_DEPTH: usize = 16;
/// Longest path of a listed file, bytes. Files with a longer path are left out.
const MAX_PATH: usize = 512;

/// The size of a job's output, bytes; `u64::MAX` if the output has too many files or cannot be read.
pub(super) async fn output_size(root: PathBuf) -> u64 {
    let listed = tokio::task::spawn_blocking(move || list_files(&root)).await;
    match listed {
        Ok(Ok(files)) => files.iter().map(|f| f.bytes).sum(),
        Ok(Err(_)) => u64::MAX,
        Err(_) => 0,
    }
}

/// The list of a job's files with their hashes, for the manifest. Fails if there are too many files, or if their size
/// is larger than `max_bytes`.
pub(super) async fn collect(root: PathBuf, max_bytes: u64) -> Result<Vec<Artifact>, Problem> {
    let collected = tokio::task::spawn_blocking(move || {
        let files = list_files(&root)?;
        let too_large = |detail: String| Problem::new(Reason::OutputTooLarge, detail);
        let bytes: u64 = files.iter().map(|f| f.bytes).sum();
        if bytes > max_bytes {
            return Err(too_large(format!("{bytes} bytes, {max_bytes} allowed")));
        }
        if files.len() > MAX_FILES {
            return Err(too_large(format!("{} files, {MAX_FILES} allowed", files.len())));
        }
        files.into_iter().map(|file| hash(&root, file)).collect()
    });
    collected.await.map_err(|e| Problem::caused(Reason::RuntimeMisconfigured, e))?
}

/// A file of the job, without its hash.
struct ListedFile {
    path: String,
    bytes: u64,
}

/// Lists the regular files below the root, sorted by path.
fn list_files(root: &Path) -> Result<Vec<ListedFile>, Problem> {
    let mut files = Vec::new();
    let mut entries = 0;
    let mut pending = vec![(root.to_path_buf(), String::new(), 0)];
    while let Some((directory, prefix, depth)) = pending.pop() {
        let listed = match fs::read_dir(&directory) {
            Ok(listed) => listed,
            // The running job may have removed a directory after it was listed.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(unreadable(&directory.to_string_lossy(), e)),
        };
        for entry in listed {
            let Ok(entry) = entry else { continue };
            entries += 1;
            if entries > MAX_ENTRIES {
                return Err(Problem::new(Reason::OutputTooLarge, format!("more than {MAX_ENTRIES} files")));
            }
            let Some(path) = entry.file_name().to_str().map(|name| format!("{prefix}{name}")) else { continue };
            if path.len() > MAX_PATH || path.chars().any(char::is_control) {
                continue;
            }
            // The metadata of the entry itself, not of a link's target. A link is neither a file nor a directory.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() && depth < MAX_DEPTH {
                pending.push((entry.path(), format!("{path}/"), depth + 1));
            } else if metadata.is_file() {
                files.push(ListedFile { path, bytes: metadata.len() });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// Opens a file of a job. Fails if the file is a link.
pub(super) fn open(path: &Path) -> std::io::Result<File> {
    let no_follow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    fs::OpenOptions::new().read(true).custom_flags(no_follow).open(path)
}

fn unreadable(path: &str, e: std::io::Error) -> Problem {
    Problem::caused(Reason::RuntimeMisconfigured, anyhow::Error::new(e).context(path.to_owned()))
}

fn hash(root: &Path, file: ListedFile) -> Result<Artifact, Problem> {
    let failed = |e: std::io::Error| unreadable(&file.path, e);
    let mut content = open(&root.join(&file.path)).map_err(failed)?.take(file.bytes);
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 128 * 1024];
    let mut bytes = 0;
    loop {
        let read = content.read(&mut buffer).map_err(failed)?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        bytes += read as u64;
    }
    Ok(Artifact { path: file.path, bytes, sha256: gpubnb_events::hex(hasher.finalize()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_are_listed_and_links_and_control_characters_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/b.txt"), "hello").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("directory")).unwrap();
        fs::write(dir.path().join("new\nline"), "x").unwrap();
        let manifest = collect(dir.path().to_path_buf(), 100).await.unwrap();
        let hello = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        assert_eq!(manifest, [Artifact { path: "a/b.txt".to_owned(), bytes: 5, sha256: hello.to_owned() }]);
        assert_eq!(output_size(dir.path().to_path_buf()).await, 5);
        let problem = collect(dir.path().to_path_buf(), 4).await.unwrap_err();
        assert_eq!(problem.reason, Reason::OutputTooLarge);
        assert_eq!(problem.detail(), "5 bytes, 4 allowed");
    }

    #[tokio::test]
    async fn too_many_files_are_too_much_output() {
        let dir = tempfile::tempdir().unwrap();
        for index in 0..=MAX_FILES {
            fs::write(dir.path().join(index.to_string()), "").unwrap();
        }
        let problem = collect(dir.path().to_path_buf(), 100).await.unwrap_err();
        assert_eq!((problem.reason, problem.detail()), (Reason::OutputTooLarge, "1001 files, 1000 allowed".to_owned()));
    }
}
