//! The disk of a job. It holds the directories that the job may write: `/output`, `/scratch` and the volumes of the
//! image. If the worker may mount, the disk is a separate file system on a loop device, and the job cannot exceed its
//! size. Otherwise the disk is a plain directory, whose size the worker measures.
//!
//! Making a file system takes 20 ms and more, and a job should not wait for that. The worker therefore makes one empty
//! file system per size as a *template*, and copies the template for each disk. The copy is fast, because the
//! template is a sparse file. In addition, a *spare* disk of the last job's size is ready for the next job.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{process::Command, sync::OnceCell, time::timeout};
use tracing::{info, warn};

use super::artifacts::make_accessible;
use crate::config::DiskQuota;

/// The file with the file system, in the attempt's directory.
const IMAGE: &str = "disk.img";
/// Longest time of one command, such as `mkfs.ext4`.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes that a file system needs for itself, in addition to a twentieth of its size.
const FILE_SYSTEM_BYTES: u64 = 4 << 20;
/// Most spare disks. Each has a different size.
const MAX_SPARES: usize = 4;
/// Largest spare disk whose space is reserved before a job needs the disk, bytes.
const MAX_RESERVED_SPARE: u64 = 1 << 30;
/// A disk with fewer free bytes counts as full.
const MIN_FREE_BYTES: u64 = 1 << 20;
/// Largest disk that gets a file system. A larger one would take too long to make.
const MAX_DISK_BYTES: u64 = 64 << 30;

/// The directories of a job's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct JobDisk {
    /// The whole disk. If the disk has a file system of its own, it is mounted here.
    pub(super) root: PathBuf,
}

impl JobDisk {
    /// The disk of the attempt whose directory is `dir`. The disk need not exist yet.
    pub(super) fn of(dir: &Path) -> Self {
        Self { root: dir.join("disk") }
    }

    /// The directory that is mounted at `/output`. Its files are kept.
    pub(super) fn output(&self) -> PathBuf {
        self.root.join("output")
    }

    /// The directory that is mounted at `/scratch`. Its files are removed when the job ends.
    pub(super) fn scratch(&self) -> PathBuf {
        self.root.join("scratch")
    }

    /// The directory that is mounted at the volume of the image with this index.
    pub(super) fn volume(&self, index: usize) -> PathBuf {
        self.root.join(format!("volume-{index}"))
    }
}

/// Makes the disks of this machine's attempts.
pub(crate) struct JobDisks {
    /// The directory of the templates, one per size.
    templates: PathBuf,
    /// The uid and gid that own the files of jobs.
    owner: (u32, u32),
    quota: DiskQuota,
    /// True if this worker can make and mount file systems. Empty until the worker has tried.
    can_mount: OnceCell<bool>,
    /// The directory of each spare disk, by size in bytes.
    spares: Mutex<BTreeMap<u64, PathBuf>>,
}

impl JobDisks {
    pub(crate) fn new(state: &Path, owner: (u32, u32), quota: DiskQuota) -> Self {
        Self { templates: state.join("templates"), owner, quota, can_mount: OnceCell::new(), spares: Mutex::default() }
    }

    /// Returns true if this worker can make and mount file systems. The first call makes and mounts one.
    pub(crate) async fn can_mount(&self) -> bool {
        *self.can_mount.get_or_init(|| self.try_to_mount()).await
    }

    async fn try_to_mount(&self) -> bool {
        if self.quota == DiskQuota::Poll || !rustix::process::getuid().is_root() {
            return false;
        }
        let dir = self.templates.join("trial");
        let tried = async {
            self.make_mounted(&dir, 1 << 20).await?;
            fs::write(JobDisk::of(&dir).root.join("file"), "works")?;
            remove(&dir).await
        };
        match tried.await {
            Ok(()) => {
                info!("each job's disk is a separate file system");
                true
            }
            Err(e) => {
                remove_or_warn(&dir).await;
                if self.quota == DiskQuota::Loop {
                    warn!(error = %e, "no file system can be mounted: the size of a job's disk is measured instead");
                } else {
                    info!(error = %e, "the size of a job's disk is measured: no file system can be mounted");
                }
                false
            }
        }
    }

    fn spares(&self) -> MutexGuard<'_, BTreeMap<u64, PathBuf>> {
        // A poisoned lock is used anyway: a panic of another thread cannot leave the map half written.
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spares_dir(&self) -> PathBuf {
        self.templates.join("spares")
    }

    /// Makes a spare disk for the next job of this size, bytes.
    pub(super) async fn make_spare(&self, bytes: u64) {
        if bytes > MAX_DISK_BYTES || !self.can_mount().await || self.spares().contains_key(&bytes) {
            return;
        }
        let dir = self.spares_dir().join(gpubnb_events::CommandId::generate().to_string());
        if let Err(e) = self.make_mounted(&dir, bytes).await {
            remove_or_warn(&dir).await;
            return info!(error = %e, "a spare disk could not be made");
        }
        let surplus = add_spare(&mut self.spares(), bytes, dir);
        if let Some(dir) = surplus {
            remove_or_warn(&dir).await;
        }
    }

    /// Removes all spare disks, including those of a former run of the worker.
    pub(crate) async fn clear(&self) {
        self.spares().clear();
        for entry in fs::read_dir(self.spares_dir()).into_iter().flatten().flatten() {
            remove_or_warn(&entry.path()).await;
        }
    }

    /// Moves the spare disk of this size, bytes, to the attempt's directory `dir`. Returns false if there is no spare
    /// disk of this size.
    async fn take_spare(&self, dir: &Path, bytes: u64) -> bool {
        let Some(spare) = self.spares().remove(&bytes) else { return false };
        match fs::rename(&spare, dir) {
            Ok(()) => true,
            Err(e) => {
                warn!(error = %e, "a spare disk cannot be used");
                remove_or_warn(&spare).await;
                false
            }
        }
    }

    /// Makes the disk of an attempt in the attempt's directory `dir`, for this number of bytes, with a directory for
    /// each of the image's `volumes`.
    pub(super) async fn make(&self, dir: &Path, bytes: u64, volumes: usize) -> io::Result<JobDisk> {
        let disk = JobDisk::of(dir);
        if bytes > MAX_DISK_BYTES || !self.can_mount().await {
            fs::create_dir_all(&disk.root)?;
        } else if !self.take_spare(dir, bytes).await {
            self.make_mounted(dir, bytes).await?;
        }
        if let Err(e) = reserve(dir, bytes) {
            if e.kind() != io::ErrorKind::StorageFull {
                return Err(e);
            }
            // Spare disks of other sizes may take the room: remove them, and try once more.
            self.clear().await;
            reserve(dir, bytes)?;
        }
        // Other users may not list these directories, and only the job's user may enter the directories on the disk.
        for shared in [dir, &disk.root] {
            fs::set_permissions(shared, fs::Permissions::from_mode(0o711))?;
        }
        let volumes = (0..volumes).map(|index| disk.volume(index));
        for directory in [disk.output(), disk.scratch()].into_iter().chain(volumes) {
            fs::create_dir_all(&directory)?;
            self.give_to_job(&directory, 0o700)?;
        }
        Ok(disk)
    }

    /// Gives a file or a directory to the user of jobs, with these permissions (`mode`). Only that user and the worker
    /// may read it.
    pub(super) fn give_to_job(&self, path: &Path, mode: u32) -> io::Result<()> {
        let (uid, gid) = self.owner;
        chown(path, Some(uid), Some(gid))?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    }

    /// Makes and mounts a file system for this number of bytes.
    async fn make_mounted(&self, dir: &Path, bytes: u64) -> io::Result<()> {
        let (image, root) = (dir.join(IMAGE), JobDisk::of(dir).root);
        fs::create_dir_all(&root)?;
        if is_mounted(&root)? {
            return Ok(());
        }
        let template = self.template(bytes).await?;
        run_program("cp", &["--sparse=always", "--reflink=auto"], &[&template, &image]).await?;
        mount(&image, &root).await?;
        if bytes <= MAX_RESERVED_SPARE {
            reserve(dir, bytes)?;
        }
        // A new ext4 has a directory `lost+found`.
        match fs::remove_dir(root.join("lost+found")) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// The path of the template for this number of bytes. Makes the template if it does not exist.
    async fn template(&self, bytes: u64) -> io::Result<PathBuf> {
        let path = self.templates.join(format!("{bytes}.img"));
        if path.exists() {
            return Ok(path);
        }
        fs::create_dir_all(&self.templates)?;
        let partial = path.with_extension(format!("{}.partial", gpubnb_events::CommandId::generate()));
        File::create(&partial)?.set_len(file_system_size(bytes))?;
        let options = ["-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard"];
        run_program("mkfs.ext4", &options, &[&partial]).await?;
        fs::rename(&partial, &path)?;
        Ok(path)
    }
}

/// The size of a file system in which this number of bytes is free, bytes.
fn file_system_size(bytes: u64) -> u64 {
    bytes + FILE_SYSTEM_BYTES + bytes / 20
}

/// Adds a spare disk. Returns the directory of a spare disk that must be removed: the former spare of the same
/// size, or a spare of another size if there are too many.
fn add_spare(spares: &mut BTreeMap<u64, PathBuf>, bytes: u64, dir: PathBuf) -> Option<PathBuf> {
    let former = spares.insert(bytes, dir);
    let other = spares.keys().copied().find(|size| *size != bytes);
    former.or_else(|| if spares.len() > MAX_SPARES { spares.remove(&other?) } else { None })
}

/// The file system that was full when a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fullness {
    NotFull,
    /// The job's own disk.
    Job,
    /// The disk of the machine.
    Machine,
}

/// Finds out whether a job's own file system is full, or the machine's disk: it has too few free bytes, or no free
/// inode.
pub(super) fn fullness(disk: &JobDisk) -> Fullness {
    // A file system without a fixed number of inodes says that it has none at all.
    let no_inode = |s: &rustix::fs::StatVfs| s.f_files > 0 && s.f_favail == 0;
    let none_left = |s: &rustix::fs::StatVfs| s.f_bavail.saturating_mul(s.f_frsize) < MIN_FREE_BYTES || no_inode(s);
    let is_full = |path: &Path| rustix::fs::statvfs(path).is_ok_and(|s| none_left(&s));
    match (is_mounted(&disk.root).unwrap_or(false), disk.root.parent()) {
        (true, _) if is_full(&disk.root) => Fullness::Job,
        // The space of a mounted disk was reserved at the start, so a full machine does not harm the job.
        (false, Some(parent)) if is_full(parent) => Fullness::Machine,
        _ => Fullness::NotFull,
    }
}

/// Reserves the space of a job's disk on the machine's disk. The space of a disk that is a plain directory is only
/// compared with the free space. Fails with `StorageFull` if there is too little.
fn reserve(dir: &Path, bytes: u64) -> io::Result<()> {
    use rustix::{fs::FallocateFlags, io::Errno};
    let image = dir.join(IMAGE);
    if !image.exists() {
        let disk = rustix::fs::statvfs(dir)?;
        let has_room = disk.f_bavail.saturating_mul(disk.f_frsize) >= bytes;
        return if has_room { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) };
    }
    let file = File::options().write(true).open(image)?;
    match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, file.metadata()?.len()) {
        // Some file systems cannot reserve space.
        Err(Errno::OPNOTSUPP) => Ok(()),
        reserved => Ok(reserved?),
    }
}

/// Removes a disk. Logs a failure and goes on: the next start of the worker tries again.
async fn remove_or_warn(dir: &Path) {
    if let Err(e) = remove(dir).await {
        warn!(dir = %dir.display(), error = %e, "a disk cannot be removed");
    }
}

/// Unmounts the disk of an attempt, and removes the attempt's directory. Does nothing if the directory does not
/// exist.
pub(super) async fn remove(dir: &Path) -> io::Result<()> {
    let root = JobDisk::of(dir).root;
    if is_mounted(&root)? {
        // A copy of a dataset for a job that was stopped meanwhile may still write its last file.
        if run_program("umount", &[], &[&root]).await.is_err() {
            run_program("umount", &["--lazy"], &[&root]).await?;
        }
    }
    let dir = dir.to_owned();
    tokio::task::spawn_blocking(move || remove_tree(&dir)).await.map_err(io::Error::other)?
}

/// Removes a directory whatever a job has put there: directories that cannot be read, and directories that are so deep
/// that no path reaches them. Each round removes one level: the children of a directory move up to `dir`.
fn remove_tree(dir: &Path) -> io::Result<()> {
    let mut moved = 0_u64;
    loop {
        match make_accessible(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            accessible => accessible?,
        }
        let mut is_empty = true;
        for entry in fs::read_dir(dir)? {
            is_empty = false;
            let (path, is_dir) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?.is_dir())))?;
            if !is_dir {
                fs::remove_file(path)?;
                continue;
            }
            make_accessible(&path)?;
            for child in fs::read_dir(&path)? {
                let (child, is_dir) = child.and_then(|child| Ok((child.path(), child.file_type()?.is_dir())))?;
                if is_dir {
                    make_accessible(&child)?;
                    // A name may be taken by the job, or by a removal that did not end.
                    let mut target = dir.join(format!("removed-{moved}"));
                    while target.symlink_metadata().is_ok() {
                        moved += 1;
                        target = dir.join(format!("removed-{moved}"));
                    }
                    fs::rename(child, target)?;
                } else {
                    fs::remove_file(child)?;
                }
            }
            fs::remove_dir(path)?;
        }
        if is_empty {
            return fs::remove_dir(dir);
        }
    }
}

/// Mounts the disk of an attempt after a reboot. Does nothing if the disk is mounted or is a plain directory.
pub(super) async fn remount(dir: &Path) -> io::Result<()> {
    let (image, root) = (dir.join(IMAGE), JobDisk::of(dir).root);
    if image.exists() && !is_mounted(&root)? {
        mount(&image, &root).await?;
    }
    Ok(())
}

async fn mount(image: &Path, root: &Path) -> io::Result<()> {
    run_program("mount", &["-o", "loop,nosuid,nodev"], &[image, root]).await
}

/// Returns true if a file system is mounted at a path. The path is then on another device than its parent directory.
pub(super) fn is_mounted(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    match (fs::symlink_metadata(path), path.parent().map(fs::symlink_metadata)) {
        (Ok(own), Some(Ok(parent))) => Ok(own.dev() != parent.dev()),
        (Err(e), _) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(false),
    }
}

/// Runs a program. Fails with its standard error if it fails or takes too long.
async fn run_program(name: &str, options: &[&str], paths: &[&Path]) -> io::Result<()> {
    let mut command = Command::new(name);
    command.args(options).args(paths).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(COMMAND_TIMEOUT, command.output())
        .await
        .map_err(|_| io::Error::other(format!("{name} took too long")))??;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_has_space_for_its_own_data() {
        for mebibytes in [1, 100, 65_536] {
            let bytes: u64 = mebibytes << 20;
            let own = file_system_size(bytes) - bytes;
            assert_eq!(own, FILE_SYSTEM_BYTES + bytes / 20, "{mebibytes} MiB");
        }
    }

    #[test]
    fn there_is_one_spare_per_size_and_the_number_of_sizes_is_limited() {
        let mut spares = BTreeMap::new();
        let dir = |name: &str| PathBuf::from(name);
        for bytes in 1..=MAX_SPARES as u64 {
            assert_eq!(add_spare(&mut spares, bytes, dir("first")), None);
        }
        assert_eq!(
            add_spare(&mut spares, 2, dir("second")),
            Some(dir("first")),
            "the former spare of the same size is removed"
        );
        assert_eq!(add_spare(&mut spares, 9, dir("ninth")), Some(dir("first")), "a spare of another size is removed");
        assert_eq!(spares.keys().copied().collect::<Vec<_>>(), [2, 3, 4, 9]);
    }

    #[tokio::test]
    async fn a_disk_without_a_file_system_is_a_directory_that_only_the_job_may_enter() {
        use std::os::unix::fs::MetadataExt as _;
        let state = tempfile::tempdir().unwrap();
        let owner = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let disks = JobDisks::new(state.path(), owner, DiskQuota::Poll);
        let dir = state.path().join("17");
        let disk = disks.make(&dir, 1 << 20, 1).await.unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o711);
        for directory in [disk.output(), disk.scratch(), disk.volume(0)] {
            assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o777, 0o700);
        }
        assert_eq!(fullness(&disk), Fullness::NotFull);
        assert!(reserve(&dir, u64::MAX).is_err_and(|e| e.kind() == io::ErrorKind::StorageFull));
        remove(&dir).await.unwrap();
        remove(&dir).await.unwrap();
        assert!(!dir.exists());
    }

    #[test]
    fn a_tree_is_removed_however_deep_it_is_and_whatever_its_modes_are() {
        use rustix::fs::{Mode, OFlags, mkdirat, openat};
        let state = tempfile::tempdir().unwrap();
        let dir = state.path().join("17");
        fs::create_dir_all(dir.join("output/removed-0/x")).unwrap();
        // A removal that was interrupted has left this.
        fs::create_dir_all(dir.join("removed-0/x/y")).unwrap();
        std::os::unix::fs::symlink("/etc", dir.join("output/link")).unwrap();
        // No path is long enough for these directories: each is made from the one above.
        let mut parent = rustix::fs::open(dir.join("output"), OFlags::PATH, Mode::empty()).unwrap();
        for _ in 0..3_000 {
            mkdirat(&parent, "d", Mode::from_raw_mode(0o700)).unwrap();
            parent = openat(&parent, "d", OFlags::PATH, Mode::empty()).unwrap();
        }
        let locked = dir.join("output/locked");
        fs::create_dir(&locked).unwrap();
        fs::write(locked.join("file"), "x").unwrap();
        fs::set_permissions(&locked, fs::Permissions::from_mode(0o0)).unwrap();
        remove_tree(&dir).unwrap();
        assert!(!dir.exists() && Path::new("/etc").exists());
        remove_tree(&dir).unwrap();
    }
}
