//! Snapshots of what was folded from MARKET, so that a start need not read it all. A snapshot is a convenience and never
//! the truth: it counts only if it was signed by a key that the reader trusts, is of the reader's very version, and is of
//! this log; whoever doubts it folds from the first event.

use std::{collections::HashMap, time::Duration};

use async_nats::jetstream::{
    self,
    object_store::{GetErrorKind, Object, ObjectInfo, ObjectMetadata, ObjectStore},
};
use gpubnb_events::{Event, Seq};
use nkeys::KeyPair;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tracing::warn;

use crate::{Log, stream::SNAPSHOTS};

/// How long a snapshot may take to be put or fetched.
const PATIENCE: Duration = Duration::from_secs(900);
/// Longest silence while one is fetched.
const SILENCE: Duration = Duration::from_secs(10);
/// Tries to fetch one that is being replaced.
const TRIES: u32 = 3;
/// Bytes of a piece.
const PIECE: usize = 128 * 1024;
/// The entry of the object's metadata that is the manifest.
const MANIFEST: &str = "manifest";

/// What a snapshot is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotId {
    /// What was folded: a read model's name, or the services' world.
    pub name: String,
    /// The version of its form and of the rules it was folded by. Another version is another thing.
    pub version: String,
    /// The last event in it.
    pub seq: Seq,
    /// The leaf of that message in the log's tree, hexadecimal: another log has another one there.
    pub leaf: String,
}

/// What a snapshot says of itself, under a signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotManifest {
    /// What it is of.
    #[serde(flatten)]
    pub id: SnapshotId,
    /// Length of the content, bytes.
    pub bytes: u64,
    /// SHA-256 of the content, hexadecimal.
    pub sha256: String,
    /// Public key (an `NKey`) of who made it.
    pub key: String,
    /// Its Ed25519 signature of all of that, hexadecimal.
    pub signature: String,
}

/// A snapshot that was not made or not taken. Nothing is lost but time.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The broker did not do its part.
    #[error("the broker: {0}")]
    Broker(String),
    /// Reading or writing the content.
    #[error("its content: {0}")]
    Content(#[from] std::io::Error),
    /// It cannot be signed.
    #[error("signing it: {0}")]
    Sign(#[from] nkeys::error::Error),
    /// The rest of it does not come.
    #[error("the rest of it does not come: a newer one has taken its place, or the broker is silent")]
    Replaced,
    /// It is not to be believed.
    #[error("it is not believed: {0}")]
    Doubtful(&'static str),
}

fn broker(e: impl std::fmt::Display) -> SnapshotError {
    SnapshotError::Broker(e.to_string())
}

impl SnapshotManifest {
    fn signed_text(id: &SnapshotId, bytes: u64, sha256: &str) -> Vec<u8> {
        let SnapshotId { name, version, seq, leaf } = id;
        format!("gpubnb snapshot\n{name}\n{version}\n{seq}\n{leaf}\n{bytes}\n{sha256}\n").into_bytes()
    }

    /// Signs what a snapshot is.
    pub fn sign(id: SnapshotId, bytes: u64, sha256: String, key: &KeyPair) -> Result<Self, SnapshotError> {
        let signature = gpubnb_events::hex(key.sign(&Self::signed_text(&id, bytes, &sha256))?);
        Ok(Self { id, bytes, sha256, key: key.public_key(), signature })
    }

    fn is_signed(&self) -> bool {
        gpubnb_proof::is_signed(&self.key, &Self::signed_text(&self.id, self.bytes, &self.sha256), &self.signature)
    }
}

/// The store of snapshots, for whoever has a key to sign with.
#[derive(Clone)]
pub struct Snapshots {
    store: ObjectStore,
}

impl Snapshots {
    /// Opens the store.
    pub async fn open(js: &jetstream::Context) -> Result<Self, SnapshotError> {
        Ok(Self { store: js.get_object_store(SNAPSHOTS).await.map_err(broker)? })
    }

    /// Where the newest snapshot of something ends that somebody with this key made.
    pub async fn newest(&self, (name, version): (&str, &str), key: &KeyPair) -> Option<Seq> {
        let found = manifest(&self.store.info(object(name, version)).await.ok()?)?;
        (found.key == key.public_key() && found.is_signed()).then_some(found.id.seq)
    }

    /// Puts one in the place of the one before.
    pub async fn put<R>(&self, manifest: &SnapshotManifest, content: &mut R) -> Result<(), SnapshotError>
    where
        R: AsyncRead + Unpin + Send,
    {
        let said = serde_json::to_string(manifest).map_err(broker)?;
        let meta = ObjectMetadata {
            name: object(&manifest.id.name, &manifest.id.version),
            metadata: HashMap::from([(MANIFEST.to_owned(), said)]),
            ..ObjectMetadata::default()
        };
        let put = tokio::time::timeout(PATIENCE, self.store.put(meta, content)).await;
        put.map_err(broker)?.map_err(broker)?;
        Ok(())
    }

    /// Fetches the newest one of something into `to`, if it is to be believed: signed by `key`, of this log, and whole.
    /// `None`: there is none. What was written is of no use where this fails; where it was replaced, another try may do.
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
        let found = tokio::time::timeout(SILENCE, self.store.get(object(name, version))).await.map_err(broker)?;
        let found = match found {
            Ok(found) => found,
            Err(e) if e.kind() == GetErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(broker(e)),
        };
        let manifest = manifest(found.info()).ok_or(SnapshotError::Doubtful("it does not say what it is"))?;
        believed(&manifest, (name, version), key, log).await?;
        read(found, &manifest, to).await?;
        Ok(Some(manifest))
    }
}

/// Fetches again, a few times, what was replaced meanwhile.
pub async fn fetched<T>(mut fetch: impl AsyncFnMut() -> Result<T, SnapshotError>) -> Result<T, SnapshotError> {
    for _ in 1..TRIES {
        match fetch().await {
            Err(SnapshotError::Replaced) => {}
            done => return done,
        }
    }
    fetch().await
}

/// Reads exactly what was signed. A newer one may take its place meanwhile: then the rest of this one never comes.
async fn read<W: AsyncWrite + Unpin + Send>(
    object: Object,
    manifest: &SnapshotManifest,
    to: &mut W,
) -> Result<(), SnapshotError> {
    let mut object = object.take(manifest.bytes);
    let (mut hash, mut read) = (Sha256::new(), 0_u64);
    let mut piece = vec![0; PIECE];
    while read < manifest.bytes {
        let length =
            tokio::time::timeout(SILENCE, object.read(&mut piece)).await.map_err(|_| SnapshotError::Replaced)??;
        let Some(bytes) = piece.get(..length).filter(|bytes| !bytes.is_empty()) else { break };
        hash.update(bytes);
        read += length as u64;
        to.write_all(bytes).await?;
    }
    to.flush().await?;
    let whole = read == manifest.bytes && gpubnb_events::hex(hash.finalize()) == manifest.sha256;
    if whole { Ok(()) } else { Err(SnapshotError::Doubtful("its content is not what was signed")) }
}

fn object(name: &str, version: &str) -> String {
    format!("{name}.{version}")
}

fn manifest(of: &ObjectInfo) -> Option<SnapshotManifest> {
    serde_json::from_str(of.metadata.get(MANIFEST)?).ok()
}

async fn believed(
    manifest: &SnapshotManifest,
    (name, version): (&str, &str),
    key: &KeyPair,
    log: &Log,
) -> Result<(), SnapshotError> {
    if (manifest.id.name.as_str(), manifest.id.version.as_str()) != (name, version) {
        return Err(SnapshotError::Doubtful("it is of something else"));
    }
    if manifest.key != key.public_key() || !manifest.is_signed() {
        return Err(SnapshotError::Doubtful("it is signed by a foreign key, or not at all"));
    }
    let message = log.get_raw(manifest.id.seq).await.map_err(broker)?;
    if message.is_none_or(|message| gpubnb_events::hex(message.leaf()) != manifest.id.leaf) {
        return Err(SnapshotError::Doubtful("it is of another log, or of more than the log has"));
    }
    Ok(())
}

/// The version of something that is folded by rules of this version: another set of events that can be read is another
/// one as well, for what could not be read was passed over.
pub fn version(rules: impl std::fmt::Display) -> String {
    let events = gpubnb_events::hex(Sha256::digest(Event::WIRE_NAMES.join("\n")));
    format!("{rules}-{}", &events[..8])
}

/// Says why a snapshot was not used. It is no failure: the log is read instead.
pub fn folded_anew(name: &str, why: &SnapshotError) {
    warn!(name, why = %why, "the snapshot is not used: everything is folded from the first event");
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
