//! Downloads of files from the market. If the market is away, a download waits; a download that broke off goes on where
//! it broke off. Each file is compared with its size and its hash.

use std::{fs, io, path::Path, time::Duration};

use futures_util::StreamExt as _;
use gpubnb_events::{event::Reason, spec::Input};
use reqwest::{StatusCode, header::RANGE};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncSeekExt as _, AsyncWriteExt as _},
    time::Instant,
};
use tracing::warn;

use super::Problem;

/// Longest time without a new byte of a file, for example because the market is away.
const MAX_WAIT: Duration = Duration::from_secs(600);
/// First and longest pause between two tries.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Longest time of one try.
pub(super) const TRY_TIMEOUT: Duration = Duration::from_secs(600);

/// Downloads one file. Waits while the market is away, and goes on where the last try broke off.
pub(super) async fn download(client: &reqwest::Client, url: &str, path: &Path, input: &Input) -> Result<(), Problem> {
    let disk = |e: io::Error| Problem::caused(Reason::DiskFull, anyhow::Error::new(e).context(input.path.clone()));
    let mut download = Download::create(path).map_err(disk)?;
    let mut patience = Patience::new(&input.path);
    let mut bytes = 0;
    while let Err(e) = download.get(client, url, input).await {
        let made_progress = download.bytes > bytes;
        bytes = download.bytes;
        patience.wait(e, made_progress).await?;
    }
    Ok(())
}

/// How long a download that fails is tried again.
pub(super) struct Patience<'a> {
    /// The file or the dataset that is downloaded, for people.
    name: &'a str,
    pause: Duration,
    progress: Instant,
}

impl<'a> Patience<'a> {
    pub(super) fn new(name: &'a str) -> Self {
        Self { name, pause: FIRST_PAUSE, progress: Instant::now() }
    }

    /// Waits before the next try. Fails if another try would fail, too, or if nothing has arrived for a long time.
    pub(super) async fn wait(&mut self, e: DownloadError, made_progress: bool) -> Result<(), Problem> {
        if let Some(reason) = e.final_reason {
            return Err(Problem::caused(reason, e.cause.context(self.name.to_owned())));
        }
        if made_progress {
            (self.pause, self.progress) = (FIRST_PAUSE, Instant::now());
        }
        if self.progress.elapsed() >= MAX_WAIT {
            return Err(Problem::caused(Reason::InputUnavailable, e.cause.context(self.name.to_owned())));
        }
        warn!(path = self.name, error = format!("{:#}", e.cause), "a download failed: trying again");
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}

/// A file of which some bytes have arrived.
struct Download {
    file: tokio::fs::File,
    hash: Sha256,
    bytes: u64,
}

/// A failure of one try.
pub(super) struct DownloadError {
    pub(super) cause: anyhow::Error,
    /// Set if another try would fail, too: the market has no such file, the file is another one, or the disk is full.
    pub(super) final_reason: Option<Reason>,
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
        if !is_empty {
            check_status(status)?;
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

/// Fails if the status of an answer is not a success.
pub(super) fn check_status(status: StatusCode) -> Result<(), DownloadError> {
    if status.is_success() {
        return Ok(());
    }
    let is_final = status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS;
    let cause = anyhow::anyhow!("the market answered {status}");
    Err(DownloadError { cause, final_reason: is_final.then_some(Reason::BadInput) })
}

pub(super) fn wrong_file(detail: &'static str) -> DownloadError {
    DownloadError { cause: anyhow::Error::msg(detail), final_reason: Some(Reason::BadInput) }
}

/// A file that cannot be written. What was received may not be on the disk, so the download cannot go on.
pub(super) fn disk_failure(e: io::Error) -> DownloadError {
    DownloadError { cause: e.into(), final_reason: Some(Reason::DiskFull) }
}
