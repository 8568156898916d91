//! The datasets on this machine. Each dataset is one directory, its *tree*, which is mounted read-only into jobs. Equal
//! files of the datasets of one account are hard links to one file, so a changed dataset needs only its changed files.
//! Datasets of different accounts share nothing.
//!
//! ```text
//! datasets/<cache>/files/<sha256>      a file; <sha256>.x for a program
//! datasets/<cache>/trees/<dataset>/…   a complete tree, whose time of change is that of its last use
//! datasets/<cache>/trees/<dataset>.partial/…
//! ```
//!
//! Belongs here: the files on the disk, and which of them are removed. Must not come here: the download.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use gpubnb_events::{
    Clock as _, SystemClock,
    dataset::{DatasetFile, DatasetId},
};
use tracing::info;

use super::job_disk::JobDisks;

/// A tree that was not used for this time is removed.
const MAX_AGE: Duration = Duration::from_secs(30 * 24 * 3_600);
/// The file in an attempt's directory that names the trees that the attempt uses, one in each line.
const USES: &str = "datasets";

/// The datasets on this machine.
pub(crate) struct DatasetCache {
    root: PathBuf,
    /// The directory with one subdirectory per attempt.
    attempts: PathBuf,
    /// The most bytes that all files take.
    most: u64,
    /// One attempt at a time downloads a tree.
    turns: Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>,
    clock: SystemClock,
    /// Held while an attempt says which trees it uses, and while trees are removed.
    removal: Mutex<()>,
}

/// A tree that is not complete yet.
pub(super) struct PartialTree {
    pub(super) root: PathBuf,
    files: PathBuf,
    complete: PathBuf,
}

impl DatasetCache {
    pub(crate) fn new(state: &Path, attempts: PathBuf, most: u64) -> Self {
        let root = state.join("datasets");
        Self { root, attempts, most, turns: Mutex::default(), clock: SystemClock, removal: Mutex::default() }
    }

    fn now(&self) -> SystemTime {
        let millis = u64::try_from(self.clock.now().millis()).unwrap_or_default();
        SystemTime::UNIX_EPOCH + Duration::from_millis(millis)
    }

    /// Waits until no other attempt downloads this tree.
    pub(super) async fn turn(&self, tree: &Path) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(tree.to_owned()).or_default())
        };
        turn.lock_owned().await
    }

    /// The path of a tree, which need not exist.
    pub(super) fn tree(&self, cache: &str, dataset: &DatasetId) -> PathBuf {
        self.root.join(cache).join("trees").join(dataset.as_str())
    }

    /// Says that an attempt uses these trees, before they are looked up. They stay until the attempt's directory is
    /// removed.
    pub(super) fn set_uses(&self, attempt: &Path, trees: &[PathBuf]) -> io::Result<()> {
        let _held = self.removal.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<_> = trees.iter().map(|tree| tree.to_string_lossy().into_owned()).collect();
        let written = attempt.join(format!("{USES}.new"));
        fs::write(&written, lines.join("\n"))?;
        fs::rename(written, attempt.join(USES))
    }

    /// True if a tree is complete. Its time of last use is then now.
    pub(super) fn touch(&self, tree: &Path) -> io::Result<bool> {
        match fs::File::open(tree) {
            Ok(directory) => directory.set_modified(self.now()).map(|()| true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Begins a tree. What a former run of the worker left of the tree is removed; its files stay for this one.
    pub(super) fn begin(&self, cache: &str, dataset: &DatasetId) -> io::Result<PartialTree> {
        let complete = self.tree(cache, dataset);
        let files = self.root.join(cache).join("files");
        let root = complete.with_extension("partial");
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        for directory in [&files, &root] {
            fs::create_dir_all(directory)?;
        }
        // Other users of this machine may not list the datasets.
        for directory in [&self.root, &self.root.join(cache), &files, &self.root.join(cache).join("trees")] {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o711))?;
        }
        Ok(PartialTree { root, files, complete })
    }

    /// Removes the trees that were not used for long, and so many of the others, those first that were not used for the
    /// longest time, that `needed` bytes have room. Trees that an attempt uses stay.
    pub(crate) fn make_room(&self, needed: u64) -> io::Result<()> {
        let _held = self.removal.lock().unwrap_or_else(PoisonError::into_inner);
        let (used, mut trees) = (self.used_trees()?, Vec::new());
        for cache in subdirectories(&self.root)? {
            for tree in subdirectories(&cache.join("trees"))? {
                if !used.contains(&tree) && !used.contains(&tree.with_extension("")) {
                    trees.push((fs::metadata(&tree)?.modified()?, tree));
                }
            }
        }
        trees.sort_unstable();
        let (now, mut size) = (self.now(), self.size()?);
        for (last_use, tree) in trees {
            let is_old = now.duration_since(last_use).is_ok_and(|age| age > MAX_AGE);
            if !is_old && size.saturating_add(needed) <= self.most {
                break;
            }
            info!(tree = %tree.display(), "a dataset is removed from this machine");
            fs::remove_dir_all(&tree)?;
            if let Some(cache) = tree.parent().and_then(Path::parent) {
                size = size.saturating_sub(remove_unused_files(&cache.join("files"))?);
            }
        }
        Ok(())
    }

    /// The trees that attempts use. An error must not look like a tree that nobody uses.
    fn used_trees(&self) -> io::Result<HashSet<PathBuf>> {
        let mut used = HashSet::new();
        for attempt in subdirectories(&self.attempts)? {
            match fs::read_to_string(attempt.join(USES)) {
                Ok(list) => used.extend(list.lines().map(PathBuf::from)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(used)
    }

    /// The bytes of all files. A file that several trees have counts once.
    fn size(&self) -> io::Result<u64> {
        let mut size = 0;
        for cache in subdirectories(&self.root)? {
            for file in entries(&cache.join("files"))? {
                size += fs::symlink_metadata(file)?.len().max(BLOCK);
            }
        }
        Ok(size)
    }
}

/// The bytes that a file takes at least.
const BLOCK: u64 = 4_096;

/// Removes the files that no tree has. Returns the bytes that they took.
fn remove_unused_files(files: &Path) -> io::Result<u64> {
    let mut removed = 0;
    for file in entries(files)? {
        let metadata = fs::symlink_metadata(&file)?;
        if metadata.nlink() == 1 {
            fs::remove_file(file)?;
            removed += metadata.len().max(BLOCK);
        }
    }
    Ok(removed)
}

fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

fn subdirectories(directory: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(entries(directory)?.into_iter().filter(|entry| entry.is_dir()).collect())
}

impl PartialTree {
    /// Where the trees of the account share a file. Hard links have the same permissions.
    fn shared(&self, file: &DatasetFile) -> PathBuf {
        self.files.join(format!("{}{}", file.sha256, if file.exec { ".x" } else { "" }))
    }

    /// Takes a file from another tree of the same account. Returns false if no tree has the file.
    pub(super) fn link_known(&self, file: &DatasetFile, path: &str) -> io::Result<bool> {
        let path = self.path(path)?;
        match fs::hard_link(self.shared(file), path) {
            Ok(()) => Ok(true),
            // No file has more than some ten thousand links. Then this tree gets a file of its own.
            Err(e) if [io::ErrorKind::NotFound, io::ErrorKind::TooManyLinks].contains(&e.kind()) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The path of a file in this tree. Its directories are made.
    pub(super) fn path(&self, path: &str) -> io::Result<PathBuf> {
        let path = self.root.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        Ok(path)
    }

    /// Makes a downloaded file, which is in this tree at `path`, read-only, and offers it to other trees of the
    /// account.
    pub(super) fn share(&self, file: &DatasetFile, path: &Path, disks: &JobDisks) -> io::Result<()> {
        disks.give_to_job(path, if file.exec { 0o500 } else { 0o400 })?;
        match fs::hard_link(path, self.shared(file)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => Ok(()),
        }
    }

    /// Makes the tree complete: jobs may use it.
    pub(super) fn complete(self, disks: &JobDisks) -> io::Result<()> {
        give_directories(&self.root, disks)?;
        // After a power failure, a tree that is there must have its bytes, too.
        rustix::fs::syncfs(fs::File::open(&self.root)?)?;
        fs::rename(&self.root, &self.complete)
    }
}

/// Gives the directories of a tree to the user of jobs.
fn give_directories(directory: &Path, disks: &JobDisks) -> io::Result<()> {
    for entry in entries(directory)? {
        if fs::symlink_metadata(&entry)?.is_dir() {
            give_directories(&entry, disks)?;
        }
    }
    disks.give_to_job(directory, 0o700)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DiskQuota;

    fn id(digit: &str) -> DatasetId {
        digit.repeat(64).parse().unwrap()
    }

    /// Makes a complete tree of one file with this many bytes.
    fn tree(cache: &DatasetCache, account: &str, dataset: &DatasetId, bytes: usize) -> PathBuf {
        let owner = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let disks = JobDisks::new(&cache.root, owner, DiskQuota::Poll);
        let partial = cache.begin(account, dataset).unwrap();
        let file =
            DatasetFile { path: "d/f".to_owned(), bytes: bytes as u64, sha256: format!("{bytes:064}"), exec: false };
        if !partial.link_known(&file, &file.path).unwrap() {
            let path = partial.path(&file.path).unwrap();
            fs::write(&path, vec![0; bytes]).unwrap();
            partial.share(&file, &path, &disks).unwrap();
        }
        partial.complete(&disks).unwrap();
        cache.tree(account, dataset)
    }

    #[test]
    fn the_tree_that_was_not_used_for_the_longest_time_is_removed_and_one_in_use_stays() {
        let state = tempfile::tempdir().unwrap();
        let attempt = state.path().join("leases/7");
        fs::create_dir_all(&attempt).unwrap();
        let cache = DatasetCache::new(state.path(), state.path().join("leases"), 100_000);
        let (used, old, new) = (id("1"), id("2"), id("3"));
        let used = tree(&cache, "a", &used, 30_000);
        let old = tree(&cache, "a", &old, 30_100);
        let new = tree(&cache, "b", &new, 30_200);
        for (path, age) in [(&used, 30), (&old, 20), (&new, 10)] {
            let at = cache.now() - Duration::from_secs(age);
            fs::File::open(path).unwrap().set_modified(at).unwrap();
        }
        cache.set_uses(&attempt, std::slice::from_ref(&used)).unwrap();
        cache.make_room(9_700).unwrap();
        assert!(used.exists() && old.exists() && new.exists(), "all have room");
        cache.make_room(9_800).unwrap();
        assert!(used.exists() && !old.exists() && new.exists());
        assert_eq!(cache.size().unwrap(), 60_200);
        fs::File::open(&new).unwrap().set_modified(cache.now() - MAX_AGE * 2).unwrap();
        cache.make_room(0).unwrap();
        assert!(used.exists() && !new.exists(), "a tree that nobody needs is removed although it has room");
        fs::remove_dir_all(attempt).unwrap();
        cache.make_room(200_000).unwrap();
        assert!(!used.exists());
        assert_eq!(cache.size().unwrap(), 0);
    }

    #[test]
    fn trees_of_one_account_share_equal_files_and_those_of_two_accounts_share_nothing() {
        let state = tempfile::tempdir().unwrap();
        let cache = DatasetCache::new(state.path(), state.path().join("leases"), 1_000);
        let inode = |path: PathBuf| fs::metadata(path.join("d/f")).unwrap().ino();
        let first = inode(tree(&cache, "a", &id("1"), 5));
        assert_eq!(inode(tree(&cache, "a", &id("2"), 5)), first);
        assert_ne!(inode(tree(&cache, "b", &id("1"), 5)), first);
        assert!(cache.touch(&cache.tree("a", &id("1"))).unwrap());
        assert!(!cache.touch(&cache.tree("a", &id("9"))).unwrap());
    }
}
