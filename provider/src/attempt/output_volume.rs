//! The output volume of a job, which is mounted at `/output`. If the worker may mount, the volume is a separate file
//! system on a loop device, and the job cannot exceed its size. Otherwise the volume is a plain directory, whose size
//! the worker measures.
//!
//! Making a file system takes 20 ms and more, and a job should not wait for that. The worker therefore makes one empty
//! file system per size as a *template*, and copies the template for each volume. The copy is fast, because the
//! template is a sparse file. In addition, a *spare* volume of the last job's size is ready for the next job.

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
use crate::config::OutputQuota;

/// The file with the file system, in the attempt's directory.
const IMAGE: &str = "room.img";
/// Longest time of one command, such as `mkfs.ext4`.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes that a file system needs for itself, in addition to a twentieth of its size.
const FILE_SYSTEM_BYTES: u64 = 4 << 20;
/// Most spare volumes. Each has a different size.
const MAX_SPARES: usize = 4;
/// A volume with fewer free bytes counts as full.
const MIN_FREE_BYTES: u64 = 1 << 20;
/// Largest volume that gets a file system. A larger one would take too long to make.
const MAX_VOLUME_BYTES: u64 = 64 << 30;

/// Makes the output volumes of this machine's attempts.
pub(crate) struct OutputVolumes {
    /// The directory of the templates, one per size.
    templates: PathBuf,
    /// The uid and gid that own the files of jobs.
    owner: (u32, u32),
    quota: OutputQuota,
    /// True if this worker can make and mount file systems. Empty until the worker has tried.
    can_mount: OnceCell<bool>,
    /// The directory of each spare volume, by size in bytes.
    spares: Mutex<BTreeMap<u64, PathBuf>>,
}

impl OutputVolumes {
    pub(crate) fn new(state: &Path, owner: (u32, u32), quota: OutputQuota) -> Self {
        Self { templates: state.join("templates"), owner, quota, can_mount: OnceCell::new(), spares: Mutex::default() }
    }

    /// Returns true if this worker can make and mount file systems. The first call makes and mounts one.
    pub(crate) async fn can_mount(&self) -> bool {
        *self.can_mount.get_or_init(|| self.try_to_mount()).await
    }

    async fn try_to_mount(&self) -> bool {
        if self.quota == OutputQuota::Poll || !rustix::process::getuid().is_root() {
            return false;
        }
        let dir = self.templates.join("trial");
        let tried = async {
            let output = self.make_mounted(&dir, 1 << 20).await?;
            fs::write(output.join("file"), "works")?;
            remove(&dir).await
        };
        match tried.await {
            Ok(()) => {
                info!("each job's output is on a separate file system");
                true
            }
            Err(e) => {
                remove_or_warn(&dir).await;
                if self.quota == OutputQuota::Loop {
                    warn!(error = %e, "no file system can be mounted: the size of a job's output is measured instead");
                } else {
                    info!(error = %e, "the size of a job's output is measured: no file system can be mounted");
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

    /// Makes a spare volume for the next job of this size, bytes.
    pub(super) async fn make_spare(&self, bytes: u64) {
        if bytes > MAX_VOLUME_BYTES || !self.can_mount().await || self.spares().contains_key(&bytes) {
            return;
        }
        let dir = self.spares_dir().join(gpubnb_events::CommandId::generate().to_string());
        if let Err(e) = self.make_mounted(&dir, bytes).await {
            return info!(error = %e, "a spare volume could not be made");
        }
        let surplus = add_spare(&mut self.spares(), bytes, dir);
        if let Some(dir) = surplus {
            remove_or_warn(&dir).await;
        }
    }

    /// Removes all spare volumes, including those of a former run of the worker.
    pub(crate) async fn clear(&self) {
        self.spares().clear();
        for entry in fs::read_dir(self.spares_dir()).into_iter().flatten().flatten() {
            remove_or_warn(&entry.path()).await;
        }
    }

    /// Moves the spare volume of this size, bytes, to the attempt's directory `dir`. Returns the directory of the
    /// output; `None` if there is no spare volume of this size.
    fn take_spare(&self, dir: &Path, bytes: u64) -> Option<PathBuf> {
        let spare = self.spares().remove(&bytes)?;
        fs::rename(&spare, dir).inspect_err(|e| warn!(error = %e, "a spare volume cannot be used")).ok()?;
        Some(dir.join("output"))
    }

    /// Makes the output volume of an attempt in the attempt's directory `dir`, for this number of bytes. Returns the
    /// directory that is to be mounted at `/output`.
    pub(super) async fn make(&self, dir: &Path, bytes: u64) -> io::Result<PathBuf> {
        let output = if bytes <= MAX_VOLUME_BYTES && self.can_mount().await {
            match self.take_spare(dir, bytes) {
                Some(output) => output,
                None => self.make_mounted(dir, bytes).await?,
            }
        } else {
            let output = dir.join("output");
            fs::create_dir_all(&output)?;
            output
        };
        reserve(dir, bytes)?;
        let (uid, gid) = self.owner;
        chown(&output, Some(uid), Some(gid))?;
        // Other users may not list the attempt's directory, and only the job's user may enter the output.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o711))?;
        fs::set_permissions(&output, fs::Permissions::from_mode(0o700))?;
        Ok(output)
    }

    /// Makes and mounts a file system for this number of bytes. Returns the directory where it is mounted.
    async fn make_mounted(&self, dir: &Path, bytes: u64) -> io::Result<PathBuf> {
        let (image, output) = (dir.join(IMAGE), dir.join("output"));
        fs::create_dir_all(&output)?;
        if is_mounted(&output)? {
            return Ok(output);
        }
        let template = self.template(bytes).await?;
        run_program("cp", &["--sparse=always", "--reflink=auto"], &[&template, &image]).await?;
        mount(&image, &output).await?;
        // A new ext4 has a directory `lost+found`. A job's output must be empty at the start.
        match fs::remove_dir(output.join("lost+found")) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        Ok(output)
    }

    /// The path of the template for this number of bytes. Makes the template if it does not exist.
    async fn template(&self, bytes: u64) -> io::Result<PathBuf> {
        let path = self.templates.join(format!("{bytes}.img"));
        if path.exists() {
            return Ok(path);
        }
        fs::create_dir_all(&self.templates)?;
        let partial = path.with_extension(format!("{}.partial", gpubnb_events::CommandId::generate()));
        File::create(&partial)?.set_len(volume_size(bytes))?;
        let options = ["-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard"];
        run_program("mkfs.ext4", &options, &[&partial]).await?;
        fs::rename(&partial, &path)?;
        Ok(path)
    }
}

/// The size of a file system in which this number of bytes is free, bytes.
fn volume_size(bytes: u64) -> u64 {
    bytes + FILE_SYSTEM_BYTES + bytes / 20
}

/// Adds a spare volume. Returns the directory of a spare volume that must be removed: the former spare of the same
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
    /// The job's own file system.
    Output,
    /// The disk of the machine.
    Disk,
}

/// Finds out whether a job's own file system is full, or the machine's disk: it has too few free bytes, or no free inode.
pub(super) fn fullness(output: &Path) -> Fullness {
    // A file system without a fixed number of inodes says that it has none at all.
    let no_inode = |s: &rustix::fs::StatVfs| s.f_files > 0 && s.f_favail == 0;
    let none_left = |s: &rustix::fs::StatVfs| s.f_bavail.saturating_mul(s.f_frsize) < MIN_FREE_BYTES || no_inode(s);
    let is_full = |path: &Path| rustix::fs::statvfs(path).is_ok_and(|s| none_left(&s));
    match (is_mounted(output).unwrap_or(false), output.parent()) {
        (true, _) if is_full(output) => Fullness::Output,
        // The space of a mounted output was reserved at the start.
        (false, Some(parent)) if is_full(parent) => Fullness::Disk,
        _ => Fullness::NotFull,
    }
}

/// Reserves the space of an attempt's output on the machine's disk. Fails with `StorageFull` if there is too little.
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

/// Removes a volume. Logs a failure and goes on: the next start of the worker tries again.
async fn remove_or_warn(dir: &Path) {
    if let Err(e) = remove(dir).await {
        warn!(dir = %dir.display(), error = %e, "a volume cannot be removed");
    }
}

/// Unmounts the volume of an attempt, and removes the attempt's directory. Does nothing if the directory does not
/// exist.
pub(super) async fn remove(dir: &Path) -> io::Result<()> {
    let output = dir.join("output");
    if is_mounted(&output)? {
        run_program("umount", &[], &[&output]).await?;
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
                    fs::rename(child, dir.join(format!("removed-{moved}")))?;
                    moved += 1;
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

/// Mounts the volume of an attempt after a reboot. Does nothing if the volume is mounted or is a plain directory.
pub(super) async fn remount(dir: &Path) -> io::Result<()> {
    let (image, output) = (dir.join(IMAGE), dir.join("output"));
    if image.exists() && !is_mounted(&output)? {
        mount(&image, &output).await?;
    }
    Ok(())
}

async fn mount(image: &Path, output: &Path) -> io::Result<()> {
    run_program("mount", &["-o", "loop,nosuid,nodev"], &[image, output]).await
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
            let own = volume_size(bytes) - bytes;
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
    async fn a_volume_without_a_file_system_is_a_directory_that_only_the_job_may_enter() {
        use std::os::unix::fs::MetadataExt as _;
        let state = tempfile::tempdir().unwrap();
        let owner = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let volumes = OutputVolumes::new(state.path(), owner, OutputQuota::Poll);
        let dir = state.path().join("17");
        let output = volumes.make(&dir, 1 << 20).await.unwrap();
        assert_eq!(output, dir.join("output"));
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o711);
        assert_eq!(fs::metadata(&output).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fullness(&output), Fullness::NotFull);
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
