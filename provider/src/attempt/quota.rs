//! The room a job has for what it leaves: a file system of its own on a loop device, which it cannot exceed, where this
//! worker may make one; else a plain directory that is watched.
//!
//! Making a file system takes 20 ms and more, and a job should not wait for it: one of each size is made once, empty, and
//! copied (it is a file with holes) for each attempt; and one that is ready waits for the next job of the same size.

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

/// The file system of an attempt's output.
const IMAGE: &str = "room.img";
const PATIENCE: Duration = Duration::from_secs(30);
/// What a file system takes for itself, besides what it holds.
const OVERHEAD: u64 = 4 << 20;
/// Most that are ready at once, each of another size.
const MOST_SPARES: usize = 4;
/// Bytes left at which it counts as full.
const LEAST: u64 = 1 << 20;
/// Room for more would take as long to make as it is worth.
const MOST: u64 = 64 << 30;

/// How output is kept within bounds here.
pub(crate) struct Outputs {
    /// Where empty file systems are kept, by size.
    templates: PathBuf,
    /// Whose they are: uid and gid.
    owner: (u32, u32),
    wanted: Quota,
    works: OnceCell<bool>,
    /// Directories with a file system that is ready, by size.
    spares: Mutex<BTreeMap<u64, PathBuf>>,
}

impl Outputs {
    pub(crate) fn new(state: &Path, owner: (u32, u32), wanted: Quota) -> Self {
        Self { templates: state.join("templates"), owner, wanted, works: OnceCell::new(), spares: Mutex::default() }
    }

    /// Whether file systems can be made here. Tried once.
    pub(crate) async fn bounded(&self) -> bool {
        *self.works.get_or_init(|| self.try_it()).await
    }

    async fn try_it(&self) -> bool {
        if self.wanted == Quota::Poll || !rustix::process::getuid().is_root() {
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
                info!("each job's output is a file system of its own");
                true
            }
            Err(e) => {
                drop(remove(&dir).await);
                if self.wanted == Quota::Loop {
                    warn!(error = %e, "no file system can be made here: the output of jobs is watched instead");
                } else {
                    info!(error = %e, "the output of jobs is watched: no file system can be made here");
                }
                false
            }
        }
    }

    fn spares(&self) -> MutexGuard<'_, BTreeMap<u64, PathBuf>> {
        // A map of directories is whole after a panic, too.
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spare_rooms(&self) -> PathBuf {
        self.templates.join("spares")
    }

    /// Makes one ready for the next job of this size.
    pub(super) async fn prepare(&self, most: u64) {
        if most > MOST || !self.bounded().await || self.spares().contains_key(&most) {
            return;
        }
        let dir = self.spare_rooms().join(gpubnb_events::CommandId::generate().to_string());
        if let Err(e) = self.mounted(&dir, most).await {
            return info!(error = %e, "no spare file system");
        }
        let surplus = {
            let mut spares = self.spares();
            let known = spares.insert(most, dir);
            let other = spares.keys().copied().find(|size| *size != most);
            known.or_else(|| if spares.len() > MOST_SPARES { spares.remove(&other?) } else { None })
        };
        if let Some(dir) = surplus {
            drop(remove(&dir).await);
        }
    }

    /// Removes what is ready, and what a former run of the worker had ready.
    pub(crate) async fn clear(&self) {
        self.spares().clear();
        for entry in fs::read_dir(self.spare_rooms()).into_iter().flatten().flatten() {
            if let Err(e) = remove(&entry.path()).await {
                warn!(dir = %entry.path().display(), error = %e, "a spare file system stays");
            }
        }
    }

    /// Takes one that is ready. Its directory becomes the attempt's.
    fn take_spare(&self, dir: &Path, most: u64) -> Option<PathBuf> {
        let spare = self.spares().remove(&most)?;
        fs::rename(&spare, dir).inspect_err(|e| warn!(error = %e, "a spare file system is not taken")).ok()?;
        Some(dir.join("output"))
    }

    /// The directory that becomes `/output` of an attempt, with room for so many bytes.
    pub(super) async fn make(&self, dir: &Path, most: u64) -> io::Result<PathBuf> {
        let output = if most <= MOST && self.bounded().await {
            match self.take_spare(dir, most) {
                Some(output) => output,
                None => self.mounted(dir, most).await?,
            }
        } else {
            let output = dir.join("output");
            fs::create_dir_all(&output)?;
            output
        };
        let (uid, gid) = self.owner;
        chown(&output, Some(uid), Some(gid))?;
        // The parent keeps others on this machine out; inside, the job is alone.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o711))?;
        fs::set_permissions(&output, fs::Permissions::from_mode(0o700))?;
        Ok(output)
    }

    async fn mounted(&self, dir: &Path, most: u64) -> io::Result<PathBuf> {
        let (image, output) = (dir.join(IMAGE), dir.join("output"));
        fs::create_dir_all(&output)?;
        if is_mounted(&output)? {
            return Ok(output);
        }
        let template = self.template(most).await?;
        command("cp", &["--sparse=always", "--reflink=auto"], &[&template, &image]).await?;
        mount(&image, &output).await?;
        // ext4 makes itself a directory for what fsck finds; a job's output begins empty.
        match fs::remove_dir(output.join("lost+found")) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        Ok(output)
    }

    async fn template(&self, most: u64) -> io::Result<PathBuf> {
        let path = self.templates.join(format!("{most}.img"));
        if path.exists() {
            return Ok(path);
        }
        fs::create_dir_all(&self.templates)?;
        let partial = path.with_extension(format!("{}.partial", gpubnb_events::CommandId::generate()));
        File::create(&partial)?.set_len(most + OVERHEAD + most / 20)?;
        let options = ["-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard"];
        command("mkfs.ext4", &options, &[&partial]).await?;
        fs::rename(&partial, &path)?;
        Ok(path)
    }
}

/// Whether a job's file system has no room, or no place for one more file, left.
pub(super) fn is_full(output: &Path) -> bool {
    let left = |room: rustix::fs::StatVfs| room.f_bavail.saturating_mul(room.f_frsize) < LEAST || room.f_favail == 0;
    is_mounted(output).unwrap_or(false) && rustix::fs::statvfs(output).is_ok_and(left)
}

/// Removes an attempt's directory, with the file system in it.
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

/// Mounts the file system of an attempt's output, where it has one and a reboot has taken it down.
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

/// Whether something is mounted there: it lies on another device than what it lies in.
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
    let output = timeout(PATIENCE, command.output()).await.map_err(|_| io::Error::other(format!("{name} hangs")))??;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim())))
}
