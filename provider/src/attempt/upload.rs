//! Puts the files of an attempt at the edge, streamed. A file that cannot be put stays in the manifest: it
//! is listed, and said to be missing.

use std::{path::Path, time::Duration};

use gpubnb_events::{command::UploadGrant, spec::Artifact};
use tokio_util::io::ReaderStream;
use tracing::warn;

use super::outputs;

const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);
const ONE_FILE: Duration = Duration::from_secs(600);

/// Puts all files, one after the other.
pub(super) async fn put_all(client: &reqwest::Client, permit: &UploadGrant, root: &Path, files: &[Artifact]) {
    for file in files {
        for attempt in 1..=TRIES {
            match put(client, permit, root, file).await {
                Ok(()) => break,
                Err(e) if attempt == TRIES => warn!(path = file.path, error = %e, "gave up putting a file"),
                Err(e) => warn!(path = file.path, error = %e, "putting a file again"),
            }
            tokio::time::sleep(PAUSE * attempt).await;
        }
    }
}

async fn put(client: &reqwest::Client, permit: &UploadGrant, root: &Path, file: &Artifact) -> anyhow::Result<()> {
    let content = outputs::open(&root.join(&file.path))?;
    let mut url = reqwest::Url::parse(&permit.url)?;
    url.path_segments_mut()
        .map_err(|()| anyhow::anyhow!("the edge's address has no path"))?
        .extend(file.path.split('/'));
    let body = reqwest::Body::wrap_stream(ReaderStream::new(tokio::fs::File::from_std(content)));
    let request =
        client.put(url).timeout(ONE_FILE).bearer_auth(&permit.token).header("content-length", file.bytes).body(body);
    let response = request.send().await?;
    // It was put before, and the answer was lost.
    if response.status() != reqwest::StatusCode::CONFLICT {
        response.error_for_status()?;
    }
    Ok(())
}
