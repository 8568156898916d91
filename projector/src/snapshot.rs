//! Snapshots of the read models in the bucket SNAPSHOTS. A projector without rows loads them, and folds only the events
//! that came after.

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
    snapshot::{self, SnapshotError, SnapshotId, SnapshotManifest, Snapshots, fetched, folded_anew},
};
use gpubnb_store::{self, CHECKPOINT, Database, LONGEST_BLOCK, SnapshotCopy, StoreError, Table};
use nkeys::KeyPair;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    fold::{ModelCopy, Tables},
    serve::Applied,
};

/// Shortest pause between two rounds over the models.
const PAUSE: Duration = Duration::from_secs(10);
/// A model is written again when it has grown by at least one part in this many.
const GROWTH: u64 = 10;

/// Writes snapshots of the models, and loads them.
pub(crate) struct Snapshotter {
    log: Log,
    store: Snapshots,
    key: KeyPair,
    /// The directory for temporary files.
    directory: PathBuf,
}

/// The name of a model's snapshot, and the version of the rules that the model was folded by.
fn snapshot_key(name: &str, version: u32) -> (String, String) {
    (format!("model-{name}"), snapshot::version(version))
}

fn content(e: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> SnapshotError {
    SnapshotError::Content(std::io::Error::other(e))
}

impl Snapshotter {
    /// Opens the bucket; `None` where there is none, or the projector may not read it: it works without snapshots.
    pub(crate) async fn open(js: &jetstream::Context, log: Log, key: KeyPair, directory: &Path) -> Option<Self> {
        let opened = Snapshots::open(js).await;
        let unavailable = |e: &SnapshotError| warn!(error = e as &dyn std::error::Error, "working without snapshots");
        let store = opened.inspect_err(unavailable).ok()?;
        Some(Self { log, store, key, directory: directory.to_owned() })
    }

    /// Loads the newest snapshot of every model that has no rows yet.
    pub(crate) async fn fill(&self, db: &Database) -> Result<(), StoreError> {
        for projection in gpubnb_model::all() {
            let (name, version) = (projection.name(), projection.version());
            let table = db.model(projection.model_version())?;
            if gpubnb_store::checkpoint(&table)? > Seq::ZERO {
                continue;
            }
            match fetched(async || self.fetch(&table, name, version).await).await {
                Ok(Some(seq)) => info!(model = name, seq = seq.0, "begins from a snapshot"),
                Ok(None) => {}
                Err(e) => {
                    folded_anew(name, &e);
                    table.clear()?;
                }
            }
        }
        Ok(())
    }

    async fn fetch(&self, table: &Table, name: &str, version: u32) -> Result<Option<Seq>, SnapshotError> {
        let file = tempfile::tempfile_in(&self.directory)?;
        let mut to = tokio::fs::File::from_std(file.try_clone()?);
        let (name, version) = snapshot_key(name, version);
        let found = self.store.fetch((&name, &version), &self.key, &self.log, &mut to).await?;
        let Some(manifest) = found else { return Ok(None) };
        let table = table.clone();
        let filled = tokio::task::spawn_blocking(move || {
            let mut file = file;
            file.rewind()?;
            fill(&table, file, &manifest.id)
        });
        filled.await.map_err(content)?.map(Some)
    }

    /// Writes a snapshot of each model whenever the model has folded enough events since the last, or was rebuilt;
    /// until shutdown. Begins when the models have caught up with the log as it was at the start.
    pub(crate) async fn keep(
        self,
        tables: Tables,
        models: Vec<ModelCopy>,
        (mut applied, floor): (watch::Receiver<Applied>, Seq),
        every: u64,
        shutdown: CancellationToken,
    ) {
        let keeping = async {
            while applied.wait_for(|applied| applied.seq >= floor).await.is_ok() {
                for model in &models {
                    self.keep_one(&tables, model, every).await;
                }
                tokio::time::sleep(PAUSE).await;
                if applied.changed().await.is_err() {
                    return;
                }
            }
        };
        shutdown.run_until_cancelled(keeping).await;
        // A copy that is being made on another thread ends before its next piece.
        for model in &models {
            model.snapshot_copy.give_up();
        }
    }

    async fn keep_one(&self, tables: &Tables, model: &ModelCopy, every: u64) {
        let (name, version) = snapshot_key(model.name, model.version);
        let rebuilt = model.snapshot_copy.take_replaced();
        // The bucket is asked each time, because another projector may have written a snapshot meanwhile.
        let last = self.store.newest((&name, &version), &self.key).await.unwrap_or_default();
        let at = tables.named(model.name).and_then(|table| gpubnb_store::checkpoint(&table)).unwrap_or_default();
        // A snapshot holds the whole model: the longer the log, the more events must have come since the last one.
        if !rebuilt && at.0.saturating_sub(last.0) < every.max(last.0 / GROWTH) {
            return;
        }
        match self.write(tables, model, (name, version)).await {
            Ok(seq) => info!(model = model.name, seq = seq.0, "a snapshot was kept"),
            Err(e) => {
                let error = &e as &dyn std::error::Error;
                warn!(model = model.name, error, "the snapshot will be written later");
                if rebuilt {
                    model.snapshot_copy.set_replaced();
                }
            }
        }
    }

    async fn write(
        &self,
        tables: &Tables,
        model: &ModelCopy,
        (name, version): (String, String),
    ) -> Result<Seq, SnapshotError> {
        let table = tables.named(model.name).map_err(content)?;
        let (snapshot_copy, directory) = (Arc::clone(&model.snapshot_copy), self.directory.clone());
        let written = tokio::task::spawn_blocking(move || write(&snapshot_copy, &table, &directory));
        let SnapshotFile { file, seq, leaf, bytes, sha256 } = written.await.map_err(content)??;
        let leaf = leaf.ok_or(SnapshotError::Doubtful("it does not know which message its last event is"))?;
        let of = SnapshotId { name, version, seq, leaf: gpubnb_events::hex(leaf) };
        let manifest = SnapshotManifest::sign(of, bytes, sha256, &self.key)?;
        self.store.put(&manifest, &mut tokio::fs::File::from_std(file)).await?;
        Ok(seq)
    }
}

/// The file of a snapshot, and what its manifest says of it.
struct SnapshotFile {
    file: File,
    seq: Seq,
    leaf: Option<Hash>,
    bytes: u64,
    sha256: String,
}

/// Counts and hashes the bytes that pass through.
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

fn write(snapshot_copy: &SnapshotCopy, table: &Table, directory: &Path) -> Result<SnapshotFile, SnapshotError> {
    let file = tempfile::tempfile_in(directory)?;
    let hashed = HashingWriter { to: BufWriter::new(file), hash: Sha256::new(), bytes: 0 };
    let mut to = GzEncoder::new(hashed, Compression::fast());
    let mut checkpoint = None;
    let each = |key: &[u8], value: &[u8]| -> Result<(), SnapshotError> {
        if key == CHECKPOINT {
            checkpoint = Some((gpubnb_store::checkpoint_in(value).map_err(content)?, gpubnb_store::leaf_in(value)));
        }
        for part in [key, value] {
            let length = u32::try_from(part.len()).map_err(content)?;
            to.write_all(&length.to_le_bytes())?;
            to.write_all(part)?;
        }
        Ok(())
    };
    let whole = snapshot_copy.copy(table, each, content)?;
    let HashingWriter { to, hash, bytes } = to.finish()?;
    let mut file = to.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    if !whole {
        return Err(SnapshotError::Doubtful("the model changed faster than it was copied, or was rebuilt"));
    }
    let (seq, leaf) = checkpoint.ok_or(SnapshotError::Doubtful("it has no checkpoint"))?;
    file.rewind()?;
    Ok(SnapshotFile { file, seq, leaf, bytes, sha256: gpubnb_events::hex(hash.finalize()) })
}

/// Fills a table from a snapshot. The checkpoint is written last: a table whose filling was cut off has none, and is
/// filled again.
fn fill(table: &Table, file: File, of: &SnapshotId) -> Result<Seq, SnapshotError> {
    table.clear().map_err(content)?;
    let mut from = BufReader::new(GzDecoder::new(BufReader::new(file)));
    let mut checkpoint = None;
    while let Some((place, stored)) = block(&mut from)? {
        if place == CHECKPOINT {
            checkpoint = Some((place, stored));
        } else {
            table.put_stored(&place, stored).map_err(content)?;
        }
    }
    let (key, value) = checkpoint.ok_or(SnapshotError::Doubtful("it has no checkpoint"))?;
    let leaf = gpubnb_store::leaf_in(&value).map(gpubnb_events::hex);
    if gpubnb_store::checkpoint_in(&value).map_err(content)? != of.seq || leaf.as_ref() != Some(&of.leaf) {
        return Err(SnapshotError::Doubtful("it ends at another event than it says"));
    }
    table.flush().map_err(content)?;
    table.put_stored(&key, value).map_err(content)?;
    Ok(of.seq)
}

/// The place of a block, and the block as it is stored.
type StoredBlock = (Vec<u8>, Vec<u8>);

fn block(from: &mut impl Read) -> Result<Option<StoredBlock>, SnapshotError> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let key = part(from, length)?;
    from.read_exact(&mut length)?;
    Ok(Some((key, part(from, length)?)))
}

fn part(from: &mut impl Read, length: [u8; 4]) -> Result<Vec<u8>, SnapshotError> {
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > LONGEST_BLOCK {
        return Err(SnapshotError::Doubtful("a block of it is too long"));
    }
    let mut part = vec![0; length];
    from.read_exact(&mut part)?;
    Ok(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_store::WriteBatch;

    #[test]
    fn a_model_comes_out_of_its_file_as_it_went_in() {
        let (directory, db) = (tempfile::tempdir().unwrap(), Database::temporary(8).unwrap());
        let (table, other, snapshot_copy) = (db.table("a").unwrap(), db.table("b").unwrap(), SnapshotCopy::default());
        let mut rows = WriteBatch::new(&table);
        for n in 0..3_000_u32 {
            rows.put_bytes(n.to_be_bytes().to_vec(), vec![7; n as usize % 50]);
        }
        rows.commit_of(Seq(9), Some([5; 32])).unwrap();
        let written = write(&snapshot_copy, &table, directory.path()).unwrap();
        assert_eq!((written.seq, written.leaf), (Seq(9), Some([5; 32])));
        let mut of = SnapshotId {
            name: "model-a".to_owned(),
            version: "1".to_owned(),
            seq: Seq(9),
            leaf: gpubnb_events::hex([5; 32]),
        };
        other.put_stored(&[1, b'x'], b"left over by a fill that was cut off").unwrap();
        fill(&other, written.file.try_clone().unwrap(), &of).unwrap();
        let rows = |table: &Table| table.all().collect::<Result<Vec<_>, _>>().unwrap();
        assert_eq!(rows(&table), rows(&other));
        assert_eq!(gpubnb_store::last_leaf(&other).unwrap(), Some([5; 32]));
        // A snapshot that ends at another event than its manifest says leaves no checkpoint.
        of.seq = Seq(10);
        let mut file = written.file;
        file.rewind().unwrap();
        assert!(fill(&other, file, &of).is_err());
        assert_eq!(gpubnb_store::checkpoint(&other).unwrap(), Seq::ZERO);
    }
}
