//! Saves a stream of the broker to a file, and restores the stream from the file. The broker's snapshot API keeps the
//! sequences and times of messages.
//!
//! The protocol is that of nats-server's `$JS.API.STREAM.SNAPSHOT` and `…RESTORE` (ADR-1 of
//! nats-architecture-and-design for its JSON). The data comes as chunks on a subject. Each chunk is acknowledged, and
//! an empty chunk ends the data.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use async_nats::{Client, StatusCode};
use futures_util::StreamExt as _;
use gpubnb_log::archive::sha256;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// Time limit for the broker to check a whole stream.
const CHECK_TIMEOUT: Duration = Duration::from_secs(900);
/// Time limit for any other message of the broker.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(60);
/// Size of a chunk.
const CHUNK_BYTES: usize = 128 * 1024;

/// A stream that was saved to a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct StreamSnapshot {
    /// The stream.
    pub(super) stream: String,
    /// The stream's definition, in the broker's own form.
    config: Value,
    /// The stream's state when it was saved.
    state: Value,
    /// Bytes of the file.
    bytes: u64,
    /// SHA-256 of the file, hexadecimal.
    sha256: String,
}

impl StreamSnapshot {
    /// The stream's last sequence.
    pub(super) fn last(&self) -> u64 {
        self.state["last_seq"].as_u64().unwrap_or(0)
    }

    /// The number of messages.
    pub(super) fn messages(&self) -> u64 {
        self.state["messages"].as_u64().unwrap_or(0)
    }
}

/// Calls the broker's API. A refusal is an error.
async fn call_api<T: DeserializeOwned>(client: &Client, call: &str, body: &Value) -> anyhow::Result<T> {
    let subject = format!("$JS.API.{call}");
    // The broker checks the whole stream before it answers.
    let request = async_nats::Request::new().payload(body.to_string().into()).timeout(Some(CHECK_TIMEOUT));
    let answer = client.send_request(subject, request).await.with_context(|| call.to_owned())?;
    parse_reply(&answer.payload).with_context(|| call.to_owned())
}

fn parse_reply<T: DeserializeOwned>(payload: &[u8]) -> anyhow::Result<T> {
    let answer: Value = serde_json::from_slice(payload)?;
    if let Some(why) = answer["error"]["description"].as_str() {
        bail!("the broker says: {why}");
    }
    Ok(serde_json::from_value(answer)?)
}

/// The last sequence of a stream; `None` if the stream does not exist.
pub(super) async fn last_sequence(client: &Client, stream: &str) -> anyhow::Result<Option<u64>> {
    let subject = format!("$JS.API.STREAM.INFO.{stream}");
    let answer: Value = serde_json::from_slice(&client.request(subject, "".into()).await?.payload)?;
    match answer["error"]["code"].as_u64() {
        None => Ok(answer["state"]["last_seq"].as_u64()),
        Some(404) => Ok(None),
        Some(_) => bail!("{stream}: the broker says: {}", answer["error"]["description"]),
    }
}

#[derive(Deserialize)]
struct SnapshotReply {
    config: Value,
    state: Value,
}

/// Writes a stream to a file. `progress` is called with the bytes so far and an estimate of the total.
pub(super) async fn save(
    client: &Client,
    stream: &str,
    file: &Path,
    mut progress: impl FnMut(u64, u64),
) -> anyhow::Result<StreamSnapshot> {
    let inbox = client.new_inbox();
    let mut chunks = client.subscribe(inbox.clone()).await?;
    let body = json!({ "deliver_subject": inbox, "no_consumers": true, "chunk_size": CHUNK_BYTES, "jsck": true });
    let begun: SnapshotReply = call_api(client, &format!("STREAM.SNAPSHOT.{stream}"), &body).await?;
    let estimated_bytes = begun.state["bytes"].as_u64().unwrap_or(0);
    let partial = file.with_extension("partial");
    // The file holds hashes of passwords and secrets of jobs: nobody else may read it.
    let private = File::options().write(true).create(true).truncate(true).mode(0o600).open(&partial);
    let mut out = private.with_context(|| partial.display().to_string())?;
    let mut bytes = 0;
    loop {
        let chunk = tokio::time::timeout(MESSAGE_TIMEOUT, chunks.next()).await.context("the broker fell silent")?;
        let chunk = chunk.context("the connection was closed")?;
        if chunk.payload.is_empty() {
            let bad = chunk.status.filter(|status| *status != StatusCode::OK && status.as_u16() != 204);
            ensure!(bad.is_none(), "the broker gave up: {}", chunk.description.as_deref().unwrap_or("no reason given"));
            break;
        }
        out.write_all(&chunk.payload)?;
        bytes += chunk.payload.len() as u64;
        progress(bytes, estimated_bytes);
        if let Some(reply) = chunk.reply {
            client.publish(reply, "".into()).await?;
        }
    }
    out.sync_all()?;
    fs::rename(&partial, file)?;
    let (config, state, sha256) = (begun.config, begun.state, sha256(file)?);
    Ok(StreamSnapshot { stream: stream.to_owned(), config, state, bytes, sha256 })
}

#[derive(Deserialize)]
struct RestoreReply {
    deliver_subject: String,
}

/// Restores a stream from a file. The broker must not have a stream of this name.
pub(super) async fn load(
    client: &Client,
    snapshot: &StreamSnapshot,
    replicas: usize,
    file: &Path,
    mut progress: impl FnMut(u64, u64),
) -> anyhow::Result<()> {
    ensure!(sha256(file)? == snapshot.sha256, "{} is not the file that was written", file.display());
    let mut config = snapshot.config.clone();
    config["num_replicas"] = json!(replicas);
    let body = json!({ "config": config, "state": snapshot.state });
    let ready: RestoreReply = call_api(client, &format!("STREAM.RESTORE.{}", snapshot.stream), &body).await?;
    let mut from = File::open(file)?;
    let (mut buffer, mut bytes) = (vec![0; CHUNK_BYTES], 0);
    loop {
        let read = from.read(&mut buffer)?;
        let chunk = buffer.get(..read).unwrap_or_default().to_vec();
        let timeout = if read == 0 { CHECK_TIMEOUT } else { MESSAGE_TIMEOUT };
        let request = async_nats::Request::new().payload(chunk.into()).timeout(Some(timeout));
        let answer = client.send_request(ready.deliver_subject.clone(), request).await?;
        if read == 0 {
            return parse_reply::<Value>(&answer.payload).map(drop);
        }
        if !answer.payload.is_empty() {
            parse_reply::<Value>(&answer.payload)?;
        }
        bytes += read as u64;
        progress(bytes, snapshot.bytes);
    }
}
