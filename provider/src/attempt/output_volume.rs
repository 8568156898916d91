//! The volume that a job's `/output` is on. Where this worker may mount, the volume is a file system of its own on a
//! loop device, whose size the job cannot exceed. Elsewhere it is a plain directory whose size is watched.
//!
//! To make a file system takes 20 ms and more, and a job should not wait for that. Hence an empty file system of each
//! size is made once, as a template, and each volume is a copy of it (a file with holes is copied fast); and a spare
//! volume, of the size that the last job had, is ready for the next.

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

use crate::config::Quota;

/// The file that holds the file system, in the attempt's directory.
const IMAGE: &str = "room.img";
/// How long one command, such as `mkfs.ext4`, may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes that a file system takes for itself, besides a twentieth of its size.
const OVERHEAD: u64 = 4 << 20;
/// Most spare volumes at once, each of another size.
const MOST_SPARES: usize = 4;
/// A volume with fewer free bytes counts as full.
const LEAST_FREE: u64 = 1 << 20;
/// Largest volume that gets a file system. A larger one would take too long to make.
const MOST_BYTES: u64 = 64 << 30;

/// Makes the volumes of this machine's attempts.
pub(crate) struct OutputVolumes {
    /// The directory of the templates, one for each size.
    templates: PathBuf,
    /// The uid and gid that own the files of jobs.
    owner: (u32, u32),
    quota: Quota,
    /// True where this worker can make and mount file systems. Empty until that was tried.
    can_mount: OnceCell<bool>,
    /// The directories of spare volumes, by size.
    spares: Mutex<BTreeMap<u64, PathBuf>>,
}

impl OutputVolumes {
    pub(crate) fn new(state: &Path, owner: (u32, u32), quota: Quota) -> Self {
        Self { templates: state.join("templates"), owner, quota, can_mount: OnceCell::new(), spares: Mutex::default() }
    }

    /// Returns true where file systems can be made and mounted here. The first call tries it.
    pub(crate) async fn can_mount(&self) -> bool {
        *self.can_mount.get_or_init(|| self.try_to_mount()).await
    }

    async fn try_to_mount(&self) -> bool {
        if self.quota == Quota::Poll || !rustix::process::getuid().is_root() {
            return false;
        }
        let dir = self.templates.join("trial");
        let tried = async {
            let output = self.mounted(&dir, 1 << 20).await?;
            fs::write(output.join("file"), "works")?;
            remove(&dir).await
        };
        match tried.await {
            Ok(()) => {
                info!("each job's output is on a file system of its own");
                true
            }
            Err(e) => {
                remove_unwanted(&dir).await;
                if self.quota == Quota::Loop {
                    warn!(error = %e, "no file system can be made here: the output of jobs is watched instead");
                } else {
                    info!(error = %e, "the output of jobs is watched: no file system can be made here");
                }
                false
            }
        }
    }

    fn spares(&self) -> MutexGuard<'_, BTreeMap<u64, PathBuf>> {
        // A panic elsewhere cannot leave a map half written.
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spares_dir(&self) -> PathBuf {
        self.templates.join("spares")
    }

    /// Makes a spare volume for the next job of this size.
    pub(super) async fn make_spare(&self, bytes: u64) {
        if bytes > MOST_BYTES || !self.can_mount().await || self.spares().contains_key(&bytes) {
            return;
        }
        let dir = self.spares_dir().join(gpubnb_events::CommandId::generate().to_string());
        if let Err(e) = self.mounted(&dir, bytes).await {
            return info!(error = %e, "no spare volume could be made");
        }
        let surplus = add_spare(&mut self.spares(), bytes, dir);
        if let Some(dir) = surplus {
            remove_unwanted(&dir).await;
        }
    }

    /// Removes all spare volumes, also those of a former run of the worker.
    pub(crate) async fn clear(&self) {
        self.spares().clear();
        for entry in fs::read_dir(self.spares_dir()).into_iter().flatten().flatten() {
            remove_unwanted(&entry.path()).await;
        }
    }

    /// Takes a spare volume of this size, whose directory becomes the attempt's. `None` where there is none.
    fn take_spare(&self, dir: &Path, bytes: u64) -> Option<PathBuf> {
        let spare = self.spares().remove(&bytes)?;
        fs::rename(&spare, dir).inspect_err(|e| warn!(error = %e, "a spare volume cannot be used")).ok()?;
        Some(dir.join("output"))
    }

    /// Makes the volume of an attempt, with room for so many bytes. Returns the directory that becomes `/output`.
    pub(super) async fn make(&self, dir: &Path, bytes: u64) -> io::Result<PathBuf> {
        let output = if bytes <= MOST_BYTES && self.can_mount().await {
            match self.take_spare(dir, bytes) {
                Some(output) => output,
                None => self.mounted(dir, bytes).await?,
            }
        } else {
            let output = dir.join("output");
            fs::create_dir_all(&output)?;
            output
        };
        let (uid, gid) = self.owner;
        chown(&output, Some(uid), Some(gid))?;
        // Others on this machine may not list the attempt's directory, nor enter the output: only the job's user may.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o711))?;
        fs::set_permissions(&output, fs::Permissions::from_mode(0o700))?;
        Ok(output)
    }

    async fn mounted(&self, dir: &Path, bytes: u64) -> io::Result<PathBuf> {
        let (image, output) = (dir.join(IMAGE), dir.join("output"));
        fs::create_dir_all(&output)?;
        if is_mounted(&output)? {
            return Ok(output);
        }
        let template = self.template(bytes).await?;
        command("cp", &["--sparse=always", "--reflink=auto"], &[&template, &image]).await?;
        mount(&image, &output).await?;
        // ext4 begins with a directory for the files that fsck finds. A job's output begins empty.
        match fs::remove_dir(output.join("lost+found")) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        Ok(output)
    }

    /// The file with an empty file system that has room for so many bytes. Made where there is none yet.
    async fn template(&self, bytes: u64) -> io::Result<PathBuf> {
        let path = self.templates.join(format!("{bytes}.img"));
        if path.exists() {
            return Ok(path);
        }
        fs::create_dir_all(&self.templates)?;
        let partial = path.with_extension(format!("{}.partial", gpubnb_events::CommandId::generate()));
        File::create(&partial)?.set_len(volume_size(bytes))?;
        let options = ["-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard"];
        command("mkfs.ext4", &options, &[&partial]).await?;
        fs::rename(&partial, &path)?;
        Ok(path)
    }
}

/// The size of a file system that has room for so many bytes, with the space that it takes for itself.
fn volume_size(bytes: u64) -> u64 {
    bytes + OVERHEAD + bytes / 20
}

/// Adds a spare volume. Returns the directory of one that is to be removed: the former spare of the same size, or one
/// of another size where there are too many.
fn add_spare(spares: &mut BTreeMap<u64, PathBuf>, bytes: u64, dir: PathBuf) -> Option<PathBuf> {
    let former = spares.insert(bytes, dir);
    let other = spares.keys().copied().find(|size| *size != bytes);
    former.or_else(|| if spares.len() > MOST_SPARES { spares.remove(&other?) } else { None })
}

/// Returns true where a job's file system has no room left, or no inode for one more file. A plain directory is never
/// full.
pub(super) fn is_full(output: &Path) -> bool {
    let none_left = |s: rustix::fs::StatVfs| s.f_bavail.saturating_mul(s.f_frsize) < LEAST_FREE || s.f_favail == 0;
    is_mounted(output).unwrap_or(false) && rustix::fs::statvfs(output).is_ok_and(none_left)
}

/// Removes a volume that nobody needs, and goes on where that fails: the next start of the worker tries again.
async fn remove_unwanted(dir: &Path) {
    if let Err(e) = remove(dir).await {
        warn!(dir = %dir.display(), error = %e, "a volume cannot be removed");
    }
}

/// Unmounts the volume of an attempt, and removes the attempt's directory. Does nothing where there is none.
pub(super) async fn remove(dir: &Path) -> io::Result<()> {
    let output = dir.join("output");
    if is_mounted(&output)? {
        command("umount", &[], &[&output]).await?;
    }
    let dir = dir.to_owned();
    let removed = tokio::task::spawn_blocking(move || fs::remove_dir_all(dir)).await.map_err(io::Error::other)?;
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Mounts the volume of an attempt again after a reboot. Does nothing where it is mounted, or a plain directory.
pub(super) async fn mount_again(dir: &Path) -> io::Result<()> {
    let (image, output) = (dir.join(IMAGE), dir.join("output"));
    if image.exists() && !is_mounted(&output)? {
        mount(&image, &output).await?;
    }
    Ok(())
}

async fn mount(image: &Path, output: &Path) -> io::Result<()> {
    command("mount", &["-o", "loop,nosuid,nodev"], &[image, output]).await
}

/// Returns true where a file system is mounted at a path. Then the path is on another device than its parent directory.
fn is_mounted(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    match (fs::symlink_metadata(path), path.parent().map(fs::symlink_metadata)) {
        (Ok(own), Some(Ok(parent))) => Ok(own.dev() != parent.dev()),
        (Err(e), _) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(false),
    }
}

async fn command(name: &str, options: &[&str], paths: &[&Path]) -> io::Result<()> {
    let mut command = Command::new(name);
    command.args(options).args(paths).stdin(Stdio::null()).kill_on_drop(true);
    let output =
        timeout(PATIENCE, command.output()).await.map_err(|_| io::Error::other(format!("{name} took too long")))??;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_larger_than_what_it_holds() {
        for mebibytes in [1, 100, 65_536] {
            let bytes: u64 = mebibytes << 20;
            let own = volume_size(bytes) - bytes;
            assert_eq!(own, OVERHEAD + bytes / 20, "{mebibytes} MiB");
        }
    }

    #[test]
    fn there_is_one_spare_of_each_size_and_few_sizes() {
        let mut spares = BTreeMap::new();
        let dir = |name: &str| PathBuf::from(name);
        for bytes in 1..=MOST_SPARES as u64 {
            assert_eq!(add_spare(&mut spares, bytes, dir("first")), None);
        }
        assert_eq!(add_spare(&mut spares, 2, dir("second")), Some(dir("first")), "the former of the same size goes");
        assert_eq!(add_spare(&mut spares, 9, dir("ninth")), Some(dir("first")), "one of another size makes place");
        assert_eq!(spares.keys().copied().collect::<Vec<_>>(), [2, 3, 4, 9]);
    }

    #[tokio::test]
    async fn without_a_file_system_a_volume_is_a_directory_that_only_the_job_may_enter() {
        use std::os::unix::fs::MetadataExt as _;
        let state = tempfile::tempdir().unwrap();
        let owner = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let volumes = OutputVolumes::new(state.path(), owner, Quota::Poll);
        let dir = state.path().join("17");
        let output = volumes.make(&dir, 1 << 20).await.unwrap();
        assert_eq!(output, dir.join("output"));
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o711);
        assert_eq!(fs::metadata(&output).unwrap().mode() & 0o777, 0o700);
        assert!(!is_full(&output), "a plain directory is never full");
        remove(&dir).await.unwrap();
        remove(&dir).await.unwrap();
        assert!(!dir.exists());
    }
}
