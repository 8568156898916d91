//! Snapshots of the read models in the object store SNAPSHOTS. A projector whose models are empty loads the snapshots,
//! and folds only the events after each snapshot.
//!
//! A snapshot file is compressed with gzip. The file has all entries of the model's table: for each entry the length of
//! the key (u32, little-endian), the key, the length of the value (u32) and the value. An entry is a block of rows, or
//! the checkpoint (the sequence and the leaf of the last folded event).

use std::{
    fs::File,
    io::{BufReader, BufWriter, Read, Seek as _, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_nats::jetstream;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use gpubnb_events::{Seq, message::Hash};
use gpubnb_log::{
    Log,
    snapshot::{
        self, SnapshotError, SnapshotId, SnapshotManifest, Snapshots, fetch_with_retries, warn_unused_snapshot,
    },
};
use gpubnb_store::{self, CHECKPOINT, Database, MAX_BLOCK_BYTES, SnapshotCopy, StoreError, Table};
use nkeys::KeyPair;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    fold::{SnapshotSource, Tables},
    serve::FoldProgress,
};

/// The shortest pause before the models are looked at again.
const PAUSE: Duration = Duration::from_secs(10);
/// The next snapshot is written when the model has at least one tenth more events than its last snapshot. Example:
/// after a snapshot at sequence 5,000,000 the next snapshot is written at 5,500,000 at the earliest.
const GROWTH_DIVISOR: u64 = 10;

/// Writes snapshots of the models, and loads them.
pub(crate) struct Snapshotter {
    log: Log,
    store: Snapshots,
    key: KeyPair,
    /// The directory for temporary snapshot files.
    directory: PathBuf,
}

/// The name of a model's snapshot, such as `model-jobs`, and the version of the rules that fold the model.
fn snapshot_key(name: &str, version: u32) -> (String, String) {
    (format!("model-{name}"), snapshot::version(version))
}

fn content_error(e: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> SnapshotError {
    SnapshotError::Content(std::io::Error::other(e))
}

impl Snapshotter {
    /// Opens the object store. `None` if it does not exist, or if the projector may not read it. Then the projector
    /// works without snapshots.
    pub(crate) async fn open(js: &jetstream::Context, log: Log, key: KeyPair, directory: &Path) -> Option<Self> {
        let opened = Snapshots::open(js).await;
        let unavailable = |e: &SnapshotError| warn!(error = e as &dyn std::error::Error, "working without snapshots");
        let store = opened.inspect_err(unavailable).ok()?;
        Some(Self { log, store, key, directory: directory.to_owned() })
    }

    /// Loads the newest snapshot of every model that is empty.
    pub(crate) async fn load_all(&self, db: &Database) -> Result<(), StoreError> {
        for projection in gpubnb_model::all() {
            let (name, version) = (projection.name(), projection.version());
            let table = db.current_table(projection.model_version())?;
            if gpubnb_store::checkpoint(&table)? > Seq::ZERO {
                continue;
            }
            match fetch_with_retries(async || self.load(&table, name, version).await).await {
                Ok(Some(seq)) => info!(model = name, seq = seq.0, "begins from a snapshot"),
                Ok(None) => {}
                Err(e) => {
                    warn_unused_snapshot(name, &e);
                    table.clear()?;
                }
            }
        }
        Ok(())
    }

    /// Loads the newest snapshot of a model into its table. Returns the sequence of the snapshot's last event.
    async fn load(&self, table: &Table, name: &str, version: u32) -> Result<Option<Seq>, SnapshotError> {
        let file = tempfile::tempfile_in(&self.directory)?;
        let mut to = tokio::fs::File::from_std(file.try_clone()?);
        let (name, version) = snapshot_key(name, version);
        let found = self.store.fetch((&name, &version), &self.key, &self.log, &mut to).await?;
        let Some(manifest) = found else { return Ok(None) };
        let table = table.clone();
        let loaded = tokio::task::spawn_blocking(move || {
            let mut file = file;
            file.rewind()?;
            load_file(&table, file, &manifest.id)
        });
        loaded.await.map_err(content_error)?.map(Some)
    }

    /// Writes a snapshot of each model whenever the model has folded `every` events since its last snapshot, or was
    /// rebuilt, until shutdown. Begins when the models have folded the event `floor`.
    pub(crate) async fn run(
        self,
        tables: Tables,
        models: Vec<SnapshotSource>,
        (mut applied, floor): (watch::Receiver<FoldProgress>, Seq),
        every: u64,
        shutdown: CancellationToken,
    ) {
        let writing = async {
            while applied.wait_for(|applied| applied.seq >= floor).await.is_ok() {
                for model in &models {
                    self.write_if_due(&tables, model, every).await;
                }
                tokio::time::sleep(PAUSE).await;
                if applied.changed().await.is_err() {
                    return;
                }
            }
        };
        shutdown.run_until_cancelled(writing).await;
        // A copy that another thread is making ends before its next piece.
        for model in &models {
            model.snapshot_copy.cancel();
        }
    }

    /// Writes a snapshot of a model if the model has enough new events or was rebuilt.
    async fn write_if_due(&self, tables: &Tables, model: &SnapshotSource, every: u64) {
        let (name, version) = snapshot_key(model.name, model.version);
        let is_rebuilt = model.snapshot_copy.take_replaced();
        // The object store is asked each time, because another projector may have written a newer snapshot.
        let last = self.store.newest((&name, &version), &self.key).await.unwrap_or_default();
        let at = tables.by_name(model.name).and_then(|table| gpubnb_store::checkpoint(&table)).unwrap_or_default();
        // A snapshot has the whole model, so on a long log snapshots are written less often.
        if !is_rebuilt && at.0.saturating_sub(last.0) < every.max(last.0 / GROWTH_DIVISOR) {
            return;
        }
        match self.write_and_store(tables, model, (name, version)).await {
            Ok(seq) => info!(model = model.name, seq = seq.0, "a snapshot was kept"),
            Err(e) => {
                let error = &e as &dyn std::error::Error;
                warn!(model = model.name, error, "no snapshot was written; trying again later");
                if is_rebuilt {
                    model.snapshot_copy.set_replaced();
                }
            }
        }
    }

    /// Writes a snapshot file, signs its manifest and puts both into the object store. Returns the snapshot's sequence.
    async fn write_and_store(
        &self,
        tables: &Tables,
        model: &SnapshotSource,
        (name, version): (String, String),
    ) -> Result<Seq, SnapshotError> {
        let table = tables.by_name(model.name).map_err(content_error)?;
        let (snapshot_copy, directory) = (Arc::clone(&model.snapshot_copy), self.directory.clone());
        let written = tokio::task::spawn_blocking(move || write_file(&snapshot_copy, &table, &directory));
        let SnapshotFile { file, seq, leaf, bytes, sha256 } = written.await.map_err(content_error)??;
        let leaf = leaf.ok_or(SnapshotError::Untrusted("its checkpoint has no leaf"))?;
        let id = SnapshotId { name, version, seq, leaf: gpubnb_events::hex(leaf) };
        let manifest = SnapshotManifest::sign(id, bytes, sha256, &self.key)?;
        self.store.put(&manifest, &mut tokio::fs::File::from_std(file)).await?;
        Ok(seq)
    }
}

/// A snapshot file, and the facts about it that go into the manifest.
struct SnapshotFile {
    file: File,
    seq: Seq,
    leaf: Option<Hash>,
    bytes: u64,
    sha256: String,
}

/// A writer that counts and hashes the written bytes.
struct HashingWriter<W> {
    to: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, from: &[u8]) -> std::io::Result<usize> {
        let written = self.to.write(from)?;
        self.hash.update(from.get(..written).unwrap_or_default());
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}

/// Writes a snapshot of a table into a temporary file.
fn write_file(snapshot_copy: &SnapshotCopy, table: &Table, directory: &Path) -> Result<SnapshotFile, SnapshotError> {
    let file = tempfile::tempfile_in(directory)?;
    let hashed = HashingWriter { to: BufWriter::new(file), hash: Sha256::new(), bytes: 0 };
    let mut to = GzEncoder::new(hashed, Compression::fast());
    let mut checkpoint = None;
    let each = |key: &[u8], value: &[u8]| -> Result<(), SnapshotError> {
        if key == CHECKPOINT {
            checkpoint = Some((
                gpubnb_store::decode_checkpoint(value).map_err(content_error)?,
                gpubnb_store::decode_leaf(value),
            ));
        }
        for bytes in [key, value] {
            let length = u32::try_from(bytes.len()).map_err(content_error)?;
            to.write_all(&length.to_le_bytes())?;
            to.write_all(bytes)?;
        }
        Ok(())
    };
    let is_complete = snapshot_copy.copy(table, each, content_error)?;
    let HashingWriter { to, hash, bytes } = to.finish()?;
    let mut file = to.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    if !is_complete {
        return Err(SnapshotError::Untrusted("the model changed faster than it was copied, or was rebuilt"));
    }
    let (seq, leaf) = checkpoint.ok_or(SnapshotError::Untrusted("it has no checkpoint"))?;
    file.rewind()?;
    Ok(SnapshotFile { file, seq, leaf, bytes, sha256: gpubnb_events::hex(hash.finalize()) })
}

/// Loads a snapshot file into a table. The checkpoint is written last: if loading is interrupted, the table has no
/// checkpoint, and the snapshot is loaded again.
fn load_file(table: &Table, file: File, id: &SnapshotId) -> Result<Seq, SnapshotError> {
    table.clear().map_err(content_error)?;
    let mut from = BufReader::new(GzDecoder::new(BufReader::new(file)));
    let mut checkpoint = None;
    while let Some((key, value)) = read_entry(&mut from)? {
        if key == CHECKPOINT {
            checkpoint = Some((key, value));
        } else {
            table.put_entry(&key, value).map_err(content_error)?;
        }
    }
    let (key, value) = checkpoint.ok_or(SnapshotError::Untrusted("it has no checkpoint"))?;
    let leaf = gpubnb_store::decode_leaf(&value).map(gpubnb_events::hex);
    if gpubnb_store::decode_checkpoint(&value).map_err(content_error)? != id.seq || leaf.as_ref() != Some(&id.leaf) {
        return Err(SnapshotError::Untrusted("its last event is not the one in its manifest"));
    }
    table.flush().map_err(content_error)?;
    table.put_entry(&key, value).map_err(content_error)?;
    Ok(id.seq)
}

/// The key and the value of an entry of a table.
type Entry = (Vec<u8>, Vec<u8>);

/// Reads the next entry. `None` at the end of the file.
fn read_entry(from: &mut impl Read) -> Result<Option<Entry>, SnapshotError> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let key = read_bytes(from, length)?;
    from.read_exact(&mut length)?;
    Ok(Some((key, read_bytes(from, length)?)))
}

fn read_bytes(from: &mut impl Read, length: [u8; 4]) -> Result<Vec<u8>, SnapshotError> {
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > MAX_BLOCK_BYTES {
        return Err(SnapshotError::Untrusted("one of its blocks is too long"));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_store::WriteBatch;

    #[test]
    fn a_loaded_table_equals_the_table_that_was_written() {
        let (directory, db) = (tempfile::tempdir().unwrap(), Database::temporary(8).unwrap());
        let (table, other, snapshot_copy) = (db.table("a").unwrap(), db.table("b").unwrap(), SnapshotCopy::default());
        let mut rows = WriteBatch::new(&table);
        for n in 0..3_000_u32 {
            rows.put_bytes(n.to_be_bytes().to_vec(), vec![7; n as usize % 50]);
        }
        rows.commit_with_leaf(Seq(9), Some([5; 32])).unwrap();
        let written = write_file(&snapshot_copy, &table, directory.path()).unwrap();
        assert_eq!((written.seq, written.leaf), (Seq(9), Some([5; 32])));
        let mut id = SnapshotId {
            name: "model-a".to_owned(),
            version: "1".to_owned(),
            seq: Seq(9),
            leaf: gpubnb_events::hex([5; 32]),
        };
        other.put_entry(&[1, b'x'], b"left by an interrupted load").unwrap();
        load_file(&other, written.file.try_clone().unwrap(), &id).unwrap();
        let rows = |table: &Table| table.all().collect::<Result<Vec<_>, _>>().unwrap();
        assert_eq!(rows(&table), rows(&other));
        assert_eq!(gpubnb_store::checkpoint_leaf(&other).unwrap(), Some([5; 32]));
        // If the last event is not the one in the manifest, loading fails and the table has no checkpoint.
        id.seq = Seq(10);
        let mut file = written.file;
        file.rewind().unwrap();
        assert!(load_file(&other, file, &id).is_err());
        assert_eq!(gpubnb_store::checkpoint(&other).unwrap(), Seq::ZERO);
    }
}
