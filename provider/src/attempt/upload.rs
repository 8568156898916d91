//! Puts the files of an attempt at the edge, streamed, and large ones in parts, so that one which breaks off goes on where it
//! was. A file that cannot be put stays in the manifest: it is listed, and said to be missing.

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

use super::{output::Of, outputs};

/// First and longest pause between two tries.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long one piece may be on its way, and how long an answer.
const ONE_PIECE: Duration = Duration::from_secs(600);
const ONE_ANSWER: Duration = Duration::from_secs(30);
/// A no that may be a yes the next time, besides what is the server's own fault.
const AGAIN: [StatusCode; 3] =
    [StatusCode::TOO_MANY_REQUESTS, StatusCode::BAD_REQUEST, StatusCode::PRECONDITION_FAILED];

/// How often is said how far it is; what is done sooner is not spoken of.
const SAY: Duration = Duration::from_secs(1);

/// How far all files are. The run itself is done: its share stays whole, and the words say how far its files are.
struct Told<'a> {
    of: Of<'a>,
    total: u64,
    /// Of the files that are there.
    before: u64,
    said: Option<Instant>,
    began: Instant,
}

impl Told<'_> {
    /// So much of the present file is there.
    async fn at(&mut self, bytes: u64) {
        if self.said.unwrap_or(self.began).elapsed() >= SAY {
            self.say(self.before + bytes).await;
        }
    }

    async fn say(&mut self, bytes: u64) {
        self.said = Some(Instant::now());
        let words = format!("puts its files: {} of {} MB", bytes / 1_000_000, self.total / 1_000_000);
        self.of.say_progress(1.0, words).await;
    }

    /// Nothing is left to put.
    async fn done(&mut self) {
        if self.said.is_some() {
            self.say(self.before).await;
        }
    }
}

/// Puts all files, one after the other, and waits for the market where it is away, for as long as the permit is good.
pub(super) async fn put_all(of: Of<'_>, permit: &UploadGrant, root: &Path, files: &[Artifact]) {
    let client = &of.tools.http;
    let mut told =
        Told { of, total: files.iter().map(|file| file.bytes).sum(), before: 0, said: None, began: Instant::now() };
    for file in files {
        let (mut pause, mut there) = (FIRST_PAUSE, true);
        while let Err(e) = put(client, permit, root, file, &mut told).await {
            if e.is_final || SystemClock.now() > permit.expires {
                warn!(path = file.path, error = format!("{:#}", e.problem), "gave up putting a file");
                there = false;
                break;
            }
            warn!(path = file.path, error = format!("{:#}", e.problem), "putting a file again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        told.before += if there { file.bytes } else { 0 };
        told.at(0).await;
    }
    told.done().await;
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

async fn put(
    client: &reqwest::Client,
    permit: &UploadGrant,
    root: &Path,
    file: &Artifact,
    told: &mut Told<'_>,
) -> Result<(), NotPut> {
    let mut url = reqwest::Url::parse(&permit.url)?;
    url.path_segments_mut()
        .map_err(|()| anyhow::anyhow!("the edge's address has no path"))?
        .extend(file.path.split('/'));
    if file.bytes <= PART_BYTES {
        return send(client.put(url), permit, opened(root, file)?, file.bytes).await;
    }
    put_parts(client, permit, &url, root, file, told).await
}

/// A file that cannot be read now will not be read later.
fn opened(root: &Path, file: &Artifact) -> Result<File, NotPut> {
    outputs::open(&root.join(&file.path)).map_err(|e| NotPut { problem: e.into(), is_final: true })
}

/// Puts the parts that are not there yet.
async fn put_parts(
    client: &reqwest::Client,
    permit: &UploadGrant,
    url: &reqwest::Url,
    root: &Path,
    file: &Artifact,
    told: &mut Told<'_>,
) -> Result<(), NotPut> {
    let bytes = file.bytes;
    let asked = client.get(url.clone()).timeout(ONE_ANSWER).bearer_auth(&permit.token).send().await?;
    let received: Received = serde_json::from_slice(&answered(asked)?.bytes().await?)?;
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
        // Opened anew: what is read ahead of one part must not move where the next begins.
        let mut content = opened(root, file)?;
        content.seek(SeekFrom::Start(first))?;
        send(client.put(url), permit, content, (bytes - first).min(PART_BYTES)).await?;
        told.at((first + PART_BYTES).min(bytes)).await;
    }
    Ok(())
}

/// Sends so many bytes of a file from where it stands.
async fn send(request: RequestBuilder, permit: &UploadGrant, content: File, bytes: u64) -> Result<(), NotPut> {
    let content = tokio::fs::File::from_std(content).take(bytes);
    let body = reqwest::Body::wrap_stream(ReaderStream::new(content));
    let request = request.timeout(ONE_PIECE).bearer_auth(&permit.token).header("content-length", bytes).body(body);
    answered(request.send().await?).map(drop)
}

/// What the edge said, if it was not a no.
fn answered(response: reqwest::Response) -> Result<reqwest::Response, NotPut> {
    let status = response.status();
    // It was put before, and the answer was lost.
    if status.is_success() || status == StatusCode::CONFLICT {
        return Ok(response);
    }
    let problem = anyhow::anyhow!("the market's edge answered {status}");
    let again = status.is_server_error() || AGAIN.contains(&status);
    Err(NotPut { problem, is_final: !again })
}
