//! Downloads the input files of a job, checks their sizes and hashes, and makes them read-only. If the market is away,
//! the download waits; a download that broke off goes on where it broke off.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::StreamExt as _;
use gpubnb_events::{command::Grant, event::Reason, spec::Input};
use reqwest::{StatusCode, header::RANGE};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncSeekExt as _, AsyncWriteExt as _},
    time::Instant,
};
use tracing::warn;

use super::{Problem, context::AttemptContext};

/// Longest time without a new byte of a file, for example because the market is away.
const MAX_WAIT: Duration = Duration::from_secs(600);
/// First and longest pause between two tries.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Longest time of one try.
const TRY_TIMEOUT: Duration = Duration::from_secs(600);

/// Downloads all input files into the directory `input` below the attempt's directory. Returns the path of `input`;
/// `None` if the job has no input files.
pub(super) async fn fetch(context: &AttemptContext, grant: &Grant) -> Result<Option<PathBuf>, Problem> {
    if grant.spec.inputs.is_empty() {
        return Ok(None);
    }
    let root = context.directory().join("input");
    if grant.inputs.len() != grant.spec.inputs.len() {
        return Err(Problem::new(Reason::BadInput, "the market stores no files"));
    }
    for (input, url) in grant.spec.inputs.iter().zip(&grant.inputs) {
        let path = path_below(&root, &input.path)?;
        download(&context.tools.http, url, &path, input).await?;
        give_to_job(context, &root, &path).map_err(|e| {
            Problem::caused(Reason::RuntimeMisconfigured, anyhow::Error::new(e).context(input.path.clone()))
        })?;
    }
    Ok(Some(root))
}

/// Gives a file, and each directory between the file and the root, to the user of jobs.
fn give_to_job(context: &AttemptContext, root: &Path, file: &Path) -> io::Result<()> {
    let disks = &context.tools.job_disks;
    disks.give_to_job(file, 0o400)?;
    let directories = file.ancestors().skip(1).take_while(|directory| directory.starts_with(root));
    directories.into_iter().try_for_each(|directory| disks.give_to_job(directory, 0o700))
}

/// Joins the root and a relative path. Fails if the result would not be below the root. The market has checked the
/// path, but this machine does not rely on that.
fn path_below(root: &Path, path: &str) -> Result<PathBuf, Problem> {
    let is_name = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
    if path.split('/').all(is_name) {
        Ok(root.join(path))
    } else {
        Err(Problem::new(Reason::BadInput, "a path leads out of the directory of inputs"))
    }
}

/// Downloads one file. Waits while the market is away, and goes on where the last try broke off.
async fn download(client: &reqwest::Client, url: &str, path: &Path, input: &Input) -> Result<(), Problem> {
    let name = || input.path.clone();
    let disk = |e: io::Error| Problem::caused(Reason::DiskFull, anyhow::Error::new(e).context(name()));
    let mut download = Download::create(path).map_err(disk)?;
    let (mut pause, mut progress, mut bytes) = (FIRST_PAUSE, Instant::now(), 0);
    while let Err(e) = download.get(client, url, input).await {
        if let Some(reason) = e.final_reason {
            return Err(Problem::caused(reason, e.cause.context(name())));
        }
        if download.bytes > bytes {
            (pause, progress, bytes) = (FIRST_PAUSE, Instant::now(), download.bytes);
        }
        if progress.elapsed() >= MAX_WAIT {
            return Err(Problem::caused(Reason::InputUnavailable, e.cause.context(name())));
        }
        warn!(path = input.path, error = format!("{:#}", e.cause), "a download failed: trying again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Ok(())
}

/// A file of which some bytes have arrived.
struct Download {
    file: tokio::fs::File,
    hash: Sha256,
    bytes: u64,
}

/// A failure of one try.
struct DownloadError {
    cause: anyhow::Error,
    /// Set if another try would fail, too: the market has no such file, the file is another one, or the disk is full.
    final_reason: Option<Reason>,
}

impl<E: Into<anyhow::Error>> From<E> for DownloadError {
    fn from(e: E) -> Self {
        Self { cause: e.into(), final_reason: None }
    }
}

impl Download {
    /// Replaces a file that a former run of the worker has left.
    fn create(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let file = fs::File::create_new(path)?;
        Ok(Self { file: tokio::fs::File::from_std(file), hash: Sha256::new(), bytes: 0 })
    }

    /// Asks for the bytes that are missing, and checks the file when it is complete.
    async fn get(&mut self, client: &reqwest::Client, url: &str, input: &Input) -> Result<(), DownloadError> {
        if self.bytes == input.bytes && self.bytes > 0 {
            return self.check(input);
        }
        let request = client.get(url).timeout(TRY_TIMEOUT).header(RANGE, format!("bytes={}-", self.bytes));
        let response = request.send().await.map_err(reqwest::Error::without_url)?;
        let status = response.status();
        if self.bytes > 0 && status == StatusCode::OK {
            self.restart().await.map_err(disk_failure)?;
        }
        // A file without bytes has no range, which is no failure.
        let is_empty = input.bytes == 0 && status == StatusCode::RANGE_NOT_SATISFIABLE;
        if !status.is_success() && !is_empty {
            let is_final = status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS;
            let cause = anyhow::anyhow!("the market answered {status}");
            return Err(DownloadError { cause, final_reason: is_final.then_some(Reason::BadInput) });
        }
        let mut body = response.bytes_stream();
        while let Some(chunk) = body.next().await.filter(|_| !is_empty) {
            let chunk = chunk.map_err(reqwest::Error::without_url)?;
            if self.bytes + chunk.len() as u64 > input.bytes {
                return Err(wrong_file("the file is larger than the job specifies"));
            }
            self.file.write_all(&chunk).await.map_err(disk_failure)?;
            self.hash.update(&chunk);
            self.bytes += chunk.len() as u64;
        }
        self.file.flush().await.map_err(disk_failure)?;
        if self.bytes < input.bytes {
            return Err(anyhow::anyhow!("the download broke off after {} of {} bytes", self.bytes, input.bytes).into());
        }
        self.check(input)
    }

    /// Checks the hash of a complete file.
    fn check(&self, input: &Input) -> Result<(), DownloadError> {
        if gpubnb_events::hex(self.hash.clone().finalize()) != input.sha256 {
            return Err(wrong_file("the file's hash is not the hash that the job specifies"));
        }
        Ok(())
    }

    /// Begins with the first byte again, because the market sends the whole file.
    async fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0).await?;
        self.file.seek(io::SeekFrom::Start(0)).await?;
        (self.hash, self.bytes) = (Sha256::new(), 0);
        Ok(())
    }
}

fn wrong_file(detail: &'static str) -> DownloadError {
    DownloadError { cause: anyhow::Error::msg(detail), final_reason: Some(Reason::BadInput) }
}

/// A file that cannot be written. What was received may not be on the disk, so the download cannot go on.
fn disk_failure(e: io::Error) -> DownloadError {
    DownloadError { cause: e.into(), final_reason: Some(Reason::DiskFull) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_path_that_leads_out_of_its_directory_is_refused() {
        let root = Path::new("/lease/input");
        assert_eq!(path_below(root, "a/b.txt").unwrap(), Path::new("/lease/input/a/b.txt"));
        for path in ["", "/etc/passwd", "..", "a/../../b", "./a", "a//b", "a/", "a\0b"] {
            assert_eq!(path_below(root, path).unwrap_err().reason, Reason::BadInput, "{path:?}");
        }
    }
}
