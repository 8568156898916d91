//! Puts the files of an attempt at the edge, streamed. A file that cannot be put stays in the manifest: it
//! is listed, and said to be missing.

use std::{path::Path, time::Duration};

use gpubnb_events::{Clock as _, SystemClock, command::UploadGrant, spec::Artifact};
use reqwest::StatusCode;
use tokio_util::io::ReaderStream;
use tracing::warn;

use super::outputs;

/// First and longest pause between two tries.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const ONE_FILE: Duration = Duration::from_secs(600);

/// Puts all files, one after the other, and waits for the market where it is away, for as long as the permit is good.
pub(super) async fn put_all(client: &reqwest::Client, permit: &UploadGrant, root: &Path, files: &[Artifact]) {
    for file in files {
        let mut pause = FIRST_PAUSE;
        while let Err(e) = put(client, permit, root, file).await {
            if e.is_final || SystemClock.now() > permit.expires {
                warn!(path = file.path, error = format!("{:#}", e.problem), "gave up putting a file");
                break;
            }
            warn!(path = file.path, error = format!("{:#}", e.problem), "putting a file again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// A file that was not put.
struct NotPut {
    problem: anyhow::Error,
    /// Whether trying again is of no use.
    is_final: bool,
}

impl<E: Into<anyhow::Error>> From<E> for NotPut {
    fn from(e: E) -> Self {
        Self { problem: e.into(), is_final: false }
    }
}

async fn put(client: &reqwest::Client, permit: &UploadGrant, root: &Path, file: &Artifact) -> Result<(), NotPut> {
    let content = outputs::open(&root.join(&file.path)).map_err(|e| NotPut { problem: e.into(), is_final: true })?;
    let mut url = reqwest::Url::parse(&permit.url)?;
    url.path_segments_mut()
        .map_err(|()| anyhow::anyhow!("the edge's address has no path"))?
        .extend(file.path.split('/'));
    let body = reqwest::Body::wrap_stream(ReaderStream::new(tokio::fs::File::from_std(content)));
    let request =
        client.put(url).timeout(ONE_FILE).bearer_auth(&permit.token).header("content-length", file.bytes).body(body);
    let status = request.send().await?.status();
    // It was put before, and the answer was lost.
    if status.is_success() || status == StatusCode::CONFLICT {
        return Ok(());
    }
    let problem = anyhow::anyhow!("the market's edge answered {status}");
    let again =
        status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::BAD_REQUEST;
    Err(NotPut { problem, is_final: !again })
}
