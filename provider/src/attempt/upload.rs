//! Uploads the files of an attempt to the market's edge. A large file goes in parts, so that an upload which breaks off
//! is continued from the part where it broke off. A file that cannot be uploaded stays in the manifest, and the market
//! shows it as missing.

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

/// First and longest pause between two tries.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long one request with content may take, and how long one without.
const ONE_PART: Duration = Duration::from_secs(600);
const ONE_ANSWER: Duration = Duration::from_secs(30);
/// Refusals after which another try may succeed. After an error of the server another try always may.
const TRANSIENT: [StatusCode; 3] =
    [StatusCode::TOO_MANY_REQUESTS, StatusCode::BAD_REQUEST, StatusCode::PRECONDITION_FAILED];

/// How often the progress is published. An upload that takes less time than this publishes none.
const PUBLISH: Duration = Duration::from_secs(1);

/// How far the upload of all files is. The job itself is done: its progress stays at 1, and the message tells the
/// bytes.
struct UploadProgress<'a> {
    context: &'a AttemptContext,
    total: u64,
    /// Bytes of the files that are uploaded.
    uploaded: u64,
    began: Instant,
    published: Option<Instant>,
}

impl UploadProgress<'_> {
    /// So many bytes of the present file are uploaded.
    async fn update(&mut self, bytes: u64) {
        if self.published.unwrap_or(self.began).elapsed() >= PUBLISH {
            self.publish(self.uploaded + bytes).await;
        }
    }

    async fn publish(&mut self, bytes: u64) {
        self.published = Some(Instant::now());
        publish_progress(self.context, 1.0, message(bytes, self.total)).await;
    }

    /// No file is left to upload.
    async fn finish(&mut self) {
        if self.published.is_some() {
            self.publish(self.uploaded).await;
        }
    }
}

fn message(bytes: u64, total: u64) -> String {
    format!("uploading files: {} of {} MB", bytes / 1_000_000, total / 1_000_000)
}

/// Uploads all files, one after the other. Waits for the market where it is away, for as long as the permit is valid.
pub(super) async fn upload_all(context: &AttemptContext, permit: &UploadGrant, files: &[Artifact]) {
    let (client, root) = (&context.tools.http, context.output());
    let total = files.iter().map(|file| file.bytes).sum();
    let mut progress = UploadProgress { context, total, uploaded: 0, began: Instant::now(), published: None };
    for file in files {
        let (mut pause, mut is_uploaded) = (FIRST_PAUSE, true);
        while let Err(e) = upload(client, permit, &root, file, &mut progress).await {
            if e.is_final || SystemClock.now() > permit.expires {
                warn!(path = file.path, error = format!("{:#}", e.cause), "gave up uploading a file");
                is_uploaded = false;
                break;
            }
            warn!(path = file.path, error = format!("{:#}", e.cause), "uploading a file again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        progress.uploaded += if is_uploaded { file.bytes } else { 0 };
        progress.update(0).await;
    }
    progress.finish().await;
}

/// Why a file was not uploaded.
struct UploadError {
    cause: anyhow::Error,
    /// True where another try would fail, too.
    is_final: bool,
}

impl<E: Into<anyhow::Error>> From<E> for UploadError {
    fn from(e: E) -> Self {
        Self { cause: e.into(), is_final: false }
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

/// A file that cannot be read now will not be read later.
fn open(root: &Path, file: &Artifact) -> Result<File, UploadError> {
    artifacts::open(&root.join(&file.path)).map_err(|e| UploadError { cause: e.into(), is_final: true })
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
    let asked = client.get(url.clone()).timeout(ONE_ANSWER).bearer_auth(&permit.token).send().await?;
    let received: Received = serde_json::from_slice(&accepted(asked)?.bytes().await?)?;
    if received.complete {
        return Ok(());
    }
    let parts = bytes.div_ceil(PART_BYTES);
    for part in u64::from(received.parts)..parts {
        let first = part * PART_BYTES;
        let mut url = url.clone();
        url.query_pairs_mut().append_pair("part", &part.to_string());
        if part + 1 == parts {
            url.query_pairs_mut().append_pair("last", "true");
        }
        // The file is opened again for each part: reading ahead in one must not move the place where the next begins.
        let mut content = open(root, file)?;
        content.seek(SeekFrom::Start(first))?;
        send(client.put(url), permit, content, (bytes - first).min(PART_BYTES)).await?;
        progress.update((first + PART_BYTES).min(bytes)).await;
    }
    Ok(())
}

/// Sends so many bytes of a file from its present position.
async fn send(request: RequestBuilder, permit: &UploadGrant, content: File, bytes: u64) -> Result<(), UploadError> {
    let content = tokio::fs::File::from_std(content).take(bytes);
    let body = reqwest::Body::wrap_stream(ReaderStream::new(content));
    let request = request.timeout(ONE_PART).bearer_auth(&permit.token).header("content-length", bytes).body(body);
    accepted(request.send().await?).map(drop)
}

/// The answer, unless it refuses the file.
fn accepted(response: reqwest::Response) -> Result<reqwest::Response, UploadError> {
    let status = response.status();
    // 409: an earlier try had uploaded the file, and its answer was lost.
    if status.is_success() || status == StatusCode::CONFLICT {
        return Ok(response);
    }
    Err(UploadError { cause: anyhow::anyhow!("the market's edge answered {status}"), is_final: is_final(status) })
}

/// Returns true for a refusal that another try would meet, too.
fn is_final(status: StatusCode) -> bool {
    !status.is_server_error() && !TRANSIENT.contains(&status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_is_tried_again_where_that_may_help() {
        for status in [500, 503, 429, 400, 412] {
            assert!(!is_final(StatusCode::from_u16(status).unwrap()), "{status}");
        }
        for status in [401, 403, 404, 413] {
            assert!(is_final(StatusCode::from_u16(status).unwrap()), "{status}");
        }
    }

    #[test]
    fn the_progress_is_told_in_megabytes() {
        assert_eq!(message(1_999_999, 80_000_000), "uploading files: 1 of 80 MB");
    }
}
