//! Snapshots of the state that a process has *folded* (computed event by event) from the log, the stream MARKET. With a
//! snapshot, a process that starts need not read the whole log.
//!
//! A snapshot only saves time: the log alone is the truth. A reader uses a snapshot only if a key that the reader
//! trusts has signed the snapshot, if the reader's version of the rules has folded the state, and if the state was
//! folded from the log that the reader reads. Otherwise the reader folds the log from the first event.

use std::{collections::HashMap, time::Duration};

use async_nats::jetstream::{
    self,
    object_store::{GetErrorKind, Object, ObjectInfo, ObjectMetadata, ObjectStore},
};
use gpubnb_events::{BoxError, Chain, Event, Seq};
use nkeys::KeyPair;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tracing::warn;

use crate::{Log, stream::SNAPSHOTS};

/// Longest time for storing one snapshot.
const PUT_TIMEOUT: Duration = Duration::from_secs(900);
/// Longest time without an answer of the broker while a snapshot is fetched.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Number of attempts to fetch a snapshot, if each attempt fails with [`SnapshotError::Incomplete`].
const MAX_ATTEMPTS: u32 = 3;
/// Most bytes of a snapshot in one read.
const CHUNK_BYTES: usize = 128 * 1024;
/// Key of the manifest in the metadata of a stored object.
const MANIFEST: &str = "manifest";

/// The identity of the state in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotId {
    /// The name of the state: a read model's name, or `world` for the state that the services decide from.
    pub name: String,
    /// The version of the state's form and of the rules that folded the state. A reader uses snapshots of its own
    /// version only.
    pub version: String,
    /// The sequence of the last event in the state.
    pub seq: Seq,
    /// The leaf of that event in the log's Merkle tree, hexadecimal. Another log has another leaf at this sequence.
    pub leaf: String,
}

/// The signed description of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotManifest {
    /// The name, version and last event of the state that the snapshot holds.
    #[serde(flatten)]
    pub id: SnapshotId,
    /// Length of the snapshot's content, bytes.
    pub bytes: u64,
    /// SHA-256 of the snapshot's content, hexadecimal.
    pub sha256: String,
    /// Public key (an `NKey`) of the process that made the snapshot.
    pub key: String,
    /// The key's Ed25519 signature of `id`, `bytes` and `sha256`, hexadecimal.
    pub signature: String,
}

/// The reason why a snapshot could not be made or used. The process then folds the log itself, so only time is lost.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The broker refused, or did not answer.
    #[error("the broker refused, or did not answer")]
    Broker(#[source] BoxError),
    /// The snapshot's content cannot be read or written.
    #[error("the content of the snapshot cannot be read or written")]
    Content(#[from] std::io::Error),
    /// The manifest cannot be signed.
    #[error("the manifest cannot be signed")]
    Sign(#[from] nkeys::error::Error),
    /// The rest of the content does not arrive, most likely because a newer snapshot has replaced this one.
    #[error("the rest of the snapshot does not arrive: a newer one has taken its place, or the broker is silent")]
    Incomplete,
    /// The snapshot must not be used, for the reason in the text.
    #[error("the snapshot is not trusted: {0}")]
    Untrusted(&'static str),
}

fn broker(e: impl Into<BoxError>) -> SnapshotError {
    SnapshotError::Broker(e.into())
}

impl SnapshotManifest {
    /// The text that the key signs.
    fn signed_text(id: &SnapshotId, bytes: u64, sha256: &str) -> Vec<u8> {
        let SnapshotId { name, version, seq, leaf } = id;
        format!("gpubnb snapshot\n{name}\n{version}\n{seq}\n{leaf}\n{bytes}\n{sha256}\n").into_bytes()
    }

    /// Describes a snapshot and signs the description.
    pub fn sign(id: SnapshotId, bytes: u64, sha256: String, key: &KeyPair) -> Result<Self, SnapshotError> {
        let signature = gpubnb_events::hex(key.sign(&Self::signed_text(&id, bytes, &sha256))?);
        Ok(Self { id, bytes, sha256, key: key.public_key(), signature })
    }

    /// True if the signature was made by `self.key` and fits the other fields.
    fn is_signed(&self) -> bool {
        gpubnb_proof::is_signed(&self.key, &Self::signed_text(&self.id, self.bytes, &self.sha256), &self.signature)
    }
}

/// The object store of snapshots.
#[derive(Clone)]
pub struct Snapshots {
    store: ObjectStore,
}

impl Snapshots {
    /// Opens the store.
    pub async fn open(js: &jetstream::Context) -> Result<Self, SnapshotError> {
        Ok(Self { store: js.get_object_store(SNAPSHOTS).await.map_err(broker)? })
    }

    /// The sequence of the last event in the newest snapshot of this name and version. `None` if there is no such
    /// snapshot, if `key` did not sign the snapshot, or if the broker does not answer.
    pub async fn newest(&self, (name, version): (&str, &str), key: &KeyPair) -> Option<Seq> {
        let found = parse_manifest(&self.store.info(object_name(name, version)).await.ok()?)?;
        (found.key == key.public_key() && found.is_signed()).then_some(found.id.seq)
    }

    /// Stores a snapshot in place of the previous snapshot of the same name and version.
    pub async fn put<R>(&self, manifest: &SnapshotManifest, content: &mut R) -> Result<(), SnapshotError>
    where
        R: AsyncRead + Unpin + Send,
    {
        let text = serde_json::to_string(manifest).map_err(broker)?;
        let meta = ObjectMetadata {
            name: object_name(&manifest.id.name, &manifest.id.version),
            metadata: HashMap::from([(MANIFEST.to_owned(), text)]),
            ..ObjectMetadata::default()
        };
        let put = tokio::time::timeout(PUT_TIMEOUT, self.store.put(meta, content)).await;
        put.map_err(broker)?.map_err(broker)?;
        Ok(())
    }

    /// Fetches the newest snapshot of this name and version into `to`, if the snapshot can be trusted: signed by `key`,
    /// folded from `log`, and complete. Returns `None` if there is no snapshot. After a failure, `to` may contain
    /// some bytes of the snapshot: discard them. After [`SnapshotError::Incomplete`], another attempt may succeed.
    pub async fn fetch<W>(
        &self,
        (name, version): (&str, &str),
        key: &KeyPair,
        log: &Log,
        to: &mut W,
    ) -> Result<Option<SnapshotManifest>, SnapshotError>
    where
        W: AsyncWrite + Unpin + Send,
    {
        let found =
            tokio::time::timeout(READ_TIMEOUT, self.store.get(object_name(name, version))).await.map_err(broker)?;
        let found = match found {
            Ok(found) => found,
            Err(e) if e.kind() == GetErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(broker(e)),
        };
        let manifest = parse_manifest(found.info()).ok_or(SnapshotError::Untrusted("it has no readable manifest"))?;
        verify_manifest(&manifest, (name, version), key, log).await?;
        copy_content(found, &manifest, to).await?;
        Ok(Some(manifest))
    }
}

/// Calls `fetch`, and repeats the call if it fails with [`SnapshotError::Incomplete`], at most `MAX_ATTEMPTS` calls in
/// all.
pub async fn fetch_with_retries<T>(
    mut fetch: impl AsyncFnMut() -> Result<T, SnapshotError>,
) -> Result<T, SnapshotError> {
    for _ in 1..MAX_ATTEMPTS {
        match fetch().await {
            Err(SnapshotError::Incomplete) => {}
            done => return done,
        }
    }
    fetch().await
}

/// Copies the content of a stored snapshot into `to`, and checks the content's length and hash against the manifest.
/// If a newer snapshot replaces this one during the copy, the rest of the content never arrives.
async fn copy_content<W: AsyncWrite + Unpin + Send>(
    object: Object,
    manifest: &SnapshotManifest,
    to: &mut W,
) -> Result<(), SnapshotError> {
    let mut object = object.take(manifest.bytes);
    let (mut hash, mut read) = (Sha256::new(), 0_u64);
    let mut chunk = vec![0; CHUNK_BYTES];
    while read < manifest.bytes {
        let length = tokio::time::timeout(READ_TIMEOUT, object.read(&mut chunk))
            .await
            .map_err(|_| SnapshotError::Incomplete)??;
        let Some(bytes) = chunk.get(..length).filter(|bytes| !bytes.is_empty()) else { break };
        hash.update(bytes);
        read += length as u64;
        to.write_all(bytes).await?;
    }
    to.flush().await?;
    let is_as_signed = read == manifest.bytes && gpubnb_events::hex(hash.finalize()) == manifest.sha256;
    if is_as_signed { Ok(()) } else { Err(SnapshotError::Untrusted("its content is not what was signed")) }
}

/// The name under which the broker stores a snapshot.
fn object_name(name: &str, version: &str) -> String {
    format!("{name}.{version}")
}

/// The manifest of a stored snapshot; `None` if the manifest is missing or cannot be parsed.
fn parse_manifest(stored: &ObjectInfo) -> Option<SnapshotManifest> {
    serde_json::from_str(stored.metadata.get(MANIFEST)?).ok()
}

/// Checks the manifest before the content is fetched: the name, the version, the signature and the log.
async fn verify_manifest(
    manifest: &SnapshotManifest,
    (name, version): (&str, &str),
    key: &KeyPair,
    log: &Log,
) -> Result<(), SnapshotError> {
    if (manifest.id.name.as_str(), manifest.id.version.as_str()) != (name, version) {
        return Err(SnapshotError::Untrusted("it holds another state, or a state that was folded by other rules"));
    }
    if manifest.key != key.public_key() || !manifest.is_signed() {
        return Err(SnapshotError::Untrusted("it is signed by a foreign key, or not at all"));
    }
    let message = log.get_raw(manifest.id.seq).await.map_err(broker)?;
    if message.is_none_or(|message| gpubnb_events::hex(message.leaf()) != manifest.id.leaf) {
        return Err(SnapshotError::Untrusted("it was made from another log, or from more events than this log has"));
    }
    Ok(())
}

/// The version of a state, made from the version of the rules that fold the state and from the set of events that this
/// program knows. A fold skips unknown events, so a program that knows more events folds another state.
pub fn version(rules: impl std::fmt::Display) -> String {
    let events = gpubnb_events::hex(Sha256::digest(Event::WIRE_NAMES.join("\n")));
    format!("{rules}-{}", &events[..8])
}

/// Logs the reason why a snapshot is not used. The process then folds the log from the first event.
pub fn warn_unused_snapshot(name: &str, why: &SnapshotError) {
    warn!(name, why = %Chain(why), "the snapshot is not used: everything is folded from the first event");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_that_was_changed_is_not_signed() {
        let id = SnapshotId { name: "jobs".to_owned(), version: "3".to_owned(), seq: Seq(7), leaf: "00".to_owned() };
        let signed = SnapshotManifest::sign(id, 5, "ab".to_owned(), &KeyPair::new_user()).unwrap();
        assert!(signed.is_signed());
        let later = SnapshotId { seq: Seq(8), ..signed.id.clone() };
        assert!(!SnapshotManifest { id: later, ..signed.clone() }.is_signed());
        assert!(!SnapshotManifest { bytes: 6, ..signed.clone() }.is_signed());
        assert!(!SnapshotManifest { sha256: "ac".to_owned(), ..signed.clone() }.is_signed());
        assert!(!SnapshotManifest { key: KeyPair::new_user().public_key(), ..signed }.is_signed());
    }
}
