//! Fetches the datasets of a job. A dataset that is on this machine already is used as it is. A copy that the job may
//! change is made on the job's disk.
//!
//! Small files come in packs: one request for many files, whose bytes come one after the other.

use std::{
    collections::HashMap,
    fs, io,
    ops::Range,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::TryStreamExt as _;
use gpubnb_events::{
    CommandId,
    command::{DatasetGrant, Grant},
    dataset::{DatasetFile, DatasetLink, DatasetManifest, is_dataset_name, packs},
    event::Reason,
    spec::{DatasetMount, Input},
    text::is_sha256_hex,
};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio_util::{io::StreamReader, sync::CancellationToken};

use super::{
    Problem,
    context::{AttemptContext, Tools},
    dataset_cache::PartialTree,
    download::{DownloadError, Patience, TRY_TIMEOUT, check_status, disk_failure, download, wrong_file},
    job_disk::{JobDisk, JobDisks},
};

/// Largest manifest, bytes.
const MAX_MANIFEST: u64 = 8 << 20;

/// Fetches all datasets of a job. Returns the directories that are mounted read-only, each with its path in the job.
pub(super) async fn fetch(
    context: &AttemptContext,
    grant: &Grant,
    disk: &JobDisk,
) -> Result<Vec<(PathBuf, String)>, Problem> {
    let mounts = &grant.spec.datasets;
    if mounts.is_empty() {
        return Ok(Vec::new());
    }
    // The market has checked both, but this machine does not rely on that.
    let are_names = mounts.iter().all(|mount| is_dataset_name(&mount.directory));
    let are_parts = grant.datasets.iter().all(|grant| is_sha256_hex(&grant.cache));
    if grant.datasets.len() != mounts.len() || !are_names || !are_parts {
        return Err(Problem::new(Reason::BadInput, "the market gave no permissions for the job's datasets"));
    }
    let cache = &context.tools.datasets;
    let pairs = || mounts.iter().zip(&grant.datasets);
    let trees: Vec<_> = pairs().map(|(mount, permission)| cache.tree(&permission.cache, &mount.dataset)).collect();
    let (tools, directory, used) = (Arc::clone(&context.tools), context.directory(), trees.clone());
    // Another attempt may be removing trees, which takes a while.
    let set = tokio::task::spawn_blocking(move || tools.datasets.set_uses(&directory, &used));
    let set = set.await.map_err(io::Error::other).and_then(|set| set);
    set.map_err(|e| disk_problem(e, "the datasets of the job"))?;
    let mut mounted = Vec::new();
    for ((mount, permission), tree) in pairs().zip(trees) {
        ensure_tree(context, mount, permission, &tree).await?;
        if mount.writable {
            let target = disk.scratch().join(&mount.directory);
            copy_to_job(context, tree, target, &mount.directory).await?;
        } else {
            mounted.push((tree, mount.path()));
        }
    }
    Ok(mounted)
}

fn disk_problem(e: io::Error, what: &str) -> Problem {
    Problem::caused(Reason::DiskFull, anyhow::Error::new(e).context(what.to_owned()))
}

/// Downloads a dataset, unless it is on this machine.
async fn ensure_tree(
    context: &AttemptContext,
    mount: &DatasetMount,
    permission: &DatasetGrant,
    tree: &Path,
) -> Result<(), Problem> {
    let cache = &context.tools.datasets;
    let disk = |e: io::Error| disk_problem(e, &mount.directory);
    let _turn = cache.turn(tree).await;
    if cache.touch(tree).map_err(disk)? {
        return Ok(());
    }
    let client = &context.tools.http;
    let manifest = fetch_manifest(client, mount, &permission.url).await?;
    let manifest = Arc::new(manifest);
    let (id, part, room) = (mount.dataset.clone(), permission.cache.clone(), mount.bytes_on_disk());
    let (partial, missing) = blocking(context, &manifest, move |tools, manifest| {
        tools.datasets.make_room(room)?;
        let partial = tools.datasets.begin(&part, &id)?;
        let missing = link_known_files(&manifest.contents(), &partial)?;
        Ok((partial, missing))
    })
    .await
    .map_err(disk)?;
    let contents = manifest.contents();
    for range in packs(missing, |index| contents[index].bytes) {
        fetch_range(context, permission, &contents, range, &partial).await?;
    }
    blocking(context, &manifest, move |tools, manifest| finish(manifest, partial, &tools.job_disks)).await.map_err(disk)
}

/// Works with many files, on a thread that may wait for the disk.
async fn blocking<T: Send + 'static>(
    context: &AttemptContext,
    manifest: &Arc<DatasetManifest>,
    work: impl FnOnce(&Tools, &DatasetManifest) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (tools, manifest) = (Arc::clone(&context.tools), Arc::clone(manifest));
    tokio::task::spawn_blocking(move || work(&tools, &manifest)).await.map_err(io::Error::other)?
}

/// Downloads the manifest, and checks it: the market has checked it, but this machine does not rely on that.
async fn fetch_manifest(client: &reqwest::Client, mount: &DatasetMount, url: &str) -> Result<DatasetManifest, Problem> {
    let mut patience = Patience::new(&mount.directory);
    loop {
        match try_manifest(client, mount, url).await {
            Ok(manifest) => return Ok(manifest),
            Err(e) => patience.wait(e, false).await?,
        }
    }
}

async fn try_manifest(
    client: &reqwest::Client,
    mount: &DatasetMount,
    url: &str,
) -> Result<DatasetManifest, DownloadError> {
    let mut text = Vec::new();
    body(client, url).await?.take(MAX_MANIFEST).read_to_end(&mut text).await?;
    let manifest: DatasetManifest = serde_json::from_slice(&text)?;
    if manifest.check().is_err() || manifest.id()? != mount.dataset || manifest.bytes() != mount.bytes {
        return Err(wrong_file("the manifest is not that of the job's dataset"));
    }
    Ok(manifest)
}

/// Sends a request for a part of a dataset.
async fn body(client: &reqwest::Client, url: &str) -> Result<impl AsyncRead + Unpin + use<>, DownloadError> {
    let response = client.get(url).timeout(TRY_TIMEOUT).send().await.map_err(reqwest::Error::without_url)?;
    check_status(response.status())?;
    let pieces = response.bytes_stream().map_err(|e| io::Error::other(reqwest::Error::without_url(e)));
    Ok(StreamReader::new(Box::pin(pieces)))
}

/// Links the files that other datasets of the account have. Returns the indices of the contents that must be
/// downloaded.
fn link_known_files(contents: &[&DatasetFile], partial: &PartialTree) -> io::Result<Vec<usize>> {
    let mut missing = Vec::new();
    for (index, file) in contents.iter().enumerate() {
        if !partial.link_known(file, &file.path)? {
            missing.push(index);
        }
    }
    Ok(missing)
}

/// Downloads the contents of a range into the tree. What has arrived before a failure is kept.
async fn fetch_range(
    context: &AttemptContext,
    permission: &DatasetGrant,
    contents: &[&DatasetFile],
    mut range: Range<usize>,
    partial: &PartialTree,
) -> Result<(), Problem> {
    let (client, disks) = (&context.tools.http, &context.tools.job_disks);
    let address = |range: &Range<usize>| format!("{}?first={}&count={}", permission.url, range.start, range.len());
    if let [file] = &contents[range.clone()] {
        let disk = |e| disk_problem(e, &file.path);
        let path = partial.path(&file.path).map_err(disk)?;
        let DatasetFile { path: name, bytes, sha256, .. } = (*file).clone();
        let input = Input { input: CommandId::MIN, path: name, bytes, sha256 };
        download(client, &address(&range), &path, &input).await?;
        return partial.share(file, &path, disks).map_err(disk);
    }
    let mut patience = Patience::new("a dataset");
    while !range.is_empty() {
        let first = range.start;
        if let Err(e) = try_range(context, &address(&range), contents, &mut range, partial).await {
            patience.wait(e, range.start > first).await?;
        }
    }
    Ok(())
}

/// Downloads the contents of a range, one after the other. The range begins with the next content that is missing.
async fn try_range(
    context: &AttemptContext,
    url: &str,
    contents: &[&DatasetFile],
    range: &mut Range<usize>,
    partial: &PartialTree,
) -> Result<(), DownloadError> {
    let mut body = body(&context.tools.http, url).await?;
    for file in &contents[range.clone()] {
        let mut bytes = vec![0; usize::try_from(file.bytes)?];
        body.read_exact(&mut bytes).await?;
        if gpubnb_events::hex(Sha256::digest(&bytes)) != file.sha256 {
            return Err(wrong_file("the hash of a dataset's file is not the hash in the manifest"));
        }
        let path = partial.path(&file.path).map_err(disk_failure)?;
        tokio::fs::write(&path, &bytes).await.map_err(disk_failure)?;
        partial.share(file, &path, &context.tools.job_disks).map_err(disk_failure)?;
        range.start += 1;
    }
    Ok(())
}

/// Adds the other files with the same contents, and the symbolic links.
fn finish(manifest: &DatasetManifest, partial: PartialTree, disks: &JobDisks) -> io::Result<()> {
    let contents = manifest.contents();
    let firsts: HashMap<_, _> = contents.iter().map(|file| (file.sha256.as_str(), *file)).collect();
    for file in &manifest.files {
        let Some(first) = firsts.get(file.sha256.as_str()).filter(|first| first.path != file.path) else { continue };
        if !partial.link_known(file, &file.path)? {
            let copy = partial.path(&file.path)?;
            fs::copy(partial.path(&first.path)?, &copy)?;
            partial.share(file, &copy, disks)?;
        }
    }
    for DatasetLink { path, target } in &manifest.links {
        symlink(target, partial.path(path)?)?;
    }
    partial.complete(disks)
}

/// Copies a tree to the job's disk, where the job may change it. A copy that does not fit there is the fault of the
/// job, if the disk is the job's own.
async fn copy_to_job(context: &AttemptContext, tree: PathBuf, target: PathBuf, directory: &str) -> Result<(), Problem> {
    let tools = Arc::clone(&context.tools);
    // The thread stops at the next file when the attempt is stopped: its token is cancelled with this function.
    let stop = CancellationToken::new();
    let _stopped = stop.clone().drop_guard();
    let copied = tokio::task::spawn_blocking(move || {
        if target.exists() {
            fs::remove_dir_all(&target)?;
        }
        copy_directory(&tree, &target, &tools.job_disks, &stop)
    });
    let copied = copied.await.map_err(io::Error::other).and_then(|copied| copied);
    let is_own = context.tools.job_disks.can_mount().await;
    copied.map_err(|e| match e.kind() {
        io::ErrorKind::StorageFull if is_own => {
            let what =
                format!("the copy of {directory} does not fit on the job's disk: ask for a larger one (disk_mib)");
            Problem::caused(Reason::BadInput, anyhow::Error::new(e).context(what))
        }
        _ => disk_problem(e, directory),
    })
}

/// Copies a directory. No link is followed. A copied file gives its owner the right to write, and the right to run it
/// if the file is a program.
fn copy_directory(from: &Path, to: &Path, disks: &JobDisks, stop: &CancellationToken) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        if stop.is_cancelled() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let entry = entry?;
        let (source, target, kind) = (entry.path(), to.join(entry.file_name()), entry.file_type()?);
        if kind.is_dir() {
            copy_directory(&source, &target, disks, stop)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
        } else {
            fs::copy(&source, &target)?;
            let is_program = entry.metadata()?.permissions().mode() & 0o100 != 0;
            disks.give_to_job(&target, if is_program { 0o700 } else { 0o600 })?;
        }
    }
    disks.give_to_job(to, 0o700)
}
