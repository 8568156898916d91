//! Uploads the files of an attempt to the market's edge, which is its public web server. A large file is uploaded in
//! parts, so that an interrupted upload continues with the first missing part. A file that cannot be uploaded stays in
//! the manifest, and the market shows the file as missing.

use std::{
    fs::File,
    io::{Seek as _, SeekFrom},
    path::Path,
    time::{Duration, Instant},
};

use gpubnb_events::{
    Clock as _, SystemClock,
    command::UploadGrant,
    spec::Artifact,
    transfer::{PART_BYTES, Received},
};
use reqwest::{RequestBuilder, StatusCode};
use tokio::io::AsyncReadExt as _;
use tokio_util::io::ReaderStream;
use tracing::warn;

use super::{artifacts, context::AttemptContext, publish::publish_progress};

/// Pause after the first failed try. Each further pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Longest time of a request that uploads a part or a whole small file.
const PART_TIMEOUT: Duration = Duration::from_secs(600);
/// Longest time of a request without content.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Refusals after which another try may succeed: 400 (the upload broke off), 412 (a part came out of order; the next
/// try asks for the first missing part), and 429. After an error of the server (5xx) another try may succeed, too.
const TRANSIENT: [StatusCode; 3] =
    [StatusCode::TOO_MANY_REQUESTS, StatusCode::BAD_REQUEST, StatusCode::PRECONDITION_FAILED];

/// Longest time for which the upload waits for room in the market's store of files, all files together. The machine's
/// slot stays taken meanwhile.
const STORE_FULL_WAIT: Duration = Duration::from_secs(15);

/// Time between two messages with the progress. A shorter upload publishes no progress.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(1);

/// The progress of the upload of all files. The job itself is complete, so its fraction stays at 1, and the message
/// shows the bytes.
struct UploadProgress<'a> {
    context: &'a AttemptContext,
    /// Bytes of all files.
    total: u64,
    /// Bytes of the completely uploaded files.
    uploaded: u64,
    began: Instant,
    /// When the last message was published.
    published: Option<Instant>,
}

impl UploadProgress<'_> {
    /// Publishes the progress, if it is time. `bytes` are the uploaded bytes of the current file.
    async fn update(&mut self, bytes: u64) {
        if self.published.unwrap_or(self.began).elapsed() >= PUBLISH_INTERVAL {
            self.publish(self.uploaded + bytes).await;
        }
    }

    async fn publish(&mut self, bytes: u64) {
        self.published = Some(Instant::now());
        publish_progress(self.context, 1.0, progress_message(bytes, self.total)).await;
    }

    /// Publishes the last progress, after the last file.
    async fn finish(&mut self) {
        if self.published.is_some() {
            self.publish(self.uploaded).await;
        }
    }
}

fn progress_message(bytes: u64, total: u64) -> String {
    format!("uploading files: {} of {} MB", bytes / 1_000_000, total / 1_000_000)
}

/// Uploads all files, one after the other. Tries again while the market is away, until the permit expires. Returns the
/// paths of the files for which the market's store had no room.
pub(super) async fn upload_all(context: &AttemptContext, permit: &UploadGrant, files: &[Artifact]) -> Vec<String> {
    let (mut without_room, mut full_since) = (Vec::new(), None::<Instant>);
    let (client, root) = (&context.tools.http, context.disk().output());
    let total = files.iter().map(|file| file.bytes).sum();
    let mut progress = UploadProgress { context, total, uploaded: 0, began: Instant::now(), published: None };
    for file in files {
        let (mut pause, mut is_uploaded) = (FIRST_PAUSE, true);
        while let Err(e) = upload(client, permit, &root, file, &mut progress).await {
            if e.is_store_full && full_since.get_or_insert_with(Instant::now).elapsed() > STORE_FULL_WAIT {
                warn!(path = file.path, "the market's store of files is full: giving up");
                without_room.push(file.path.clone());
                is_uploaded = false;
                break;
            }
            if e.is_final || SystemClock.now() > permit.expires {
                warn!(path = file.path, error = format!("{:#}", e.cause), "a file could not be uploaded: giving up");
                is_uploaded = false;
                break;
            }
            warn!(path = file.path, error = format!("{:#}", e.cause), "uploading a file failed: trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        progress.uploaded += if is_uploaded { file.bytes } else { 0 };
        progress.update(0).await;
    }
    progress.finish().await;
    without_room
}

/// The error for a file that was not uploaded.
struct UploadError {
    cause: anyhow::Error,
    /// True if another try would fail, too.
    is_final: bool,
    /// True if the market's store of files is full.
    is_store_full: bool,
}

impl<E: Into<anyhow::Error>> From<E> for UploadError {
    fn from(e: E) -> Self {
        Self { cause: e.into(), is_final: false, is_store_full: false }
    }
}

async fn upload(
    client: &reqwest::Client,
    permit: &UploadGrant,
    root: &Path,
    file: &Artifact,
    progress: &mut UploadProgress<'_>,
) -> Result<(), UploadError> {
    let mut url = reqwest::Url::parse(&permit.url)?;
    url.path_segments_mut()
        .map_err(|()| anyhow::anyhow!("the edge's address has no path"))?
        .extend(file.path.split('/'));
    if file.bytes <= PART_BYTES {
        return send(client.put(url), permit, open(root, file)?, file.bytes).await;
    }
    upload_parts(client, permit, &url, root, file, progress).await
}

/// Opens a file of the attempt. An error is final, because the files do not change.
fn open(root: &Path, file: &Artifact) -> Result<File, UploadError> {
    artifacts::open(&root.join(&file.path)).map_err(|e| UploadError {
        cause: e.into(),
        is_final: true,
        is_store_full: false,
    })
}

/// Uploads the parts that the market does not have yet.
async fn upload_parts(
    client: &reqwest::Client,
    permit: &UploadGrant,
    url: &reqwest::Url,
    root: &Path,
    file: &Artifact,
    progress: &mut UploadProgress<'_>,
) -> Result<(), UploadError> {
    let bytes = file.bytes;
    let response = client.get(url.clone()).timeout(ANSWER_TIMEOUT).bearer_auth(&permit.token).send().await?;
    let received: Received = serde_json::from_slice(&check_status(response)?.bytes().await?)?;
    if received.complete {
        return Ok(());
    }
    let parts = bytes.div_ceil(PART_BYTES);
    for part in u64::from(received.parts)..parts {
        let first = part * PART_BYTES;
        let mut url = url.clone();
        url.query_pairs_mut().append_pair("part", &part.to_string()).append_pair("total", &bytes.to_string());
        if part + 1 == parts {
            url.query_pairs_mut().append_pair("last", "true");
        }
        // Open the file for each part. The reader of a part may read ahead, which would move a shared file position.
        let mut content = open(root, file)?;
        content.seek(SeekFrom::Start(first))?;
        send(client.put(url), permit, content, (bytes - first).min(PART_BYTES)).await?;
        progress.update((first + PART_BYTES).min(bytes)).await;
    }
    Ok(())
}

/// Sends this number of bytes of a file, from the file's current position.
async fn send(request: RequestBuilder, permit: &UploadGrant, content: File, bytes: u64) -> Result<(), UploadError> {
    let content = tokio::fs::File::from_std(content).take(bytes);
    let body = reqwest::Body::wrap_stream(ReaderStream::new(content));
    let request = request.timeout(PART_TIMEOUT).bearer_auth(&permit.token).header("content-length", bytes).body(body);
    check_status(request.send().await?).map(drop)
}

/// Returns the response if the market accepted the request.
fn check_status(response: reqwest::Response) -> Result<reqwest::Response, UploadError> {
    let status = response.status();
    // 409: an earlier try uploaded the file, but its response was lost.
    if status.is_success() || status == StatusCode::CONFLICT {
        return Ok(response);
    }
    let cause = anyhow::anyhow!("the market's edge answered {status}");
    let is_store_full = status == StatusCode::INSUFFICIENT_STORAGE;
    Err(UploadError { cause, is_final: is_final(status), is_store_full })
}

/// Returns true if another try would be refused, too.
fn is_final(status: StatusCode) -> bool {
    !status.is_server_error() && !TRANSIENT.contains(&status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_transient_refusals_are_tried_again() {
        for status in [500, 503, 429, 400, 412] {
            assert!(!is_final(StatusCode::from_u16(status).unwrap()), "{status}");
        }
        for status in [401, 403, 404, 413] {
            assert!(is_final(StatusCode::from_u16(status).unwrap()), "{status}");
        }
    }

    #[test]
    fn the_progress_is_shown_in_megabytes() {
        assert_eq!(progress_message(1_999_999, 80_000_000), "uploading files: 1 of 80 MB");
    }
}
