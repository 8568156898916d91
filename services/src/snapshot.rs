//! Snapshots of the state, in the object store SNAPSHOTS. A new replica loads the newest snapshot and folds only the
//! events after that snapshot.

use std::{
    io::{BufReader, BufWriter, Read as _, Write as _},
    sync::Arc,
    time::Duration,
};

use async_nats::jetstream;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use gpubnb_domain::{Settings, World};
use gpubnb_events::{Chain, Seq};
use gpubnb_log::{
    Log,
    snapshot::{
        SnapshotError, SnapshotId, SnapshotManifest, Snapshots, fetch_with_retries, version, warn_unused_snapshot,
    },
};
use nkeys::KeyPair;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{process::Leadership, replica::Replica};

const NAME: &str = "world";
/// Shortest time between two snapshots.
const MIN_INTERVAL: Duration = Duration::from_secs(10);
/// Most bytes that are read of a snapshot, uncompressed.
const MAX_TEXT_BYTES: u64 = 4 << 30;

/// Stores snapshots of the state, and loads the newest snapshot.
pub(crate) struct WorldSnapshots {
    log: Log,
    store: Option<Snapshots>,
    key: KeyPair,
    version: String,
}

impl WorldSnapshots {
    /// Opens the object store. If that fails, no snapshot is stored or loaded.
    pub(crate) async fn open(js: &jetstream::Context, log: Log, key: KeyPair, settings: &Settings) -> Self {
        let store = Snapshots::open(js).await.inspect_err(|e| warn!(error = %Chain(e), "there are no snapshots")).ok();
        Self { log, store, key, version: version(World::version(settings)) }
    }

    /// The state in the newest snapshot, or an empty state.
    pub(crate) async fn newest(&self) -> World {
        let Some(store) = &self.store else { return World::default() };
        match fetch_with_retries(async || self.read(store).await).await {
            Ok(Some(world)) => {
                info!(seq = world.applied().0, "begins from a snapshot");
                world
            }
            Ok(None) => World::default(),
            Err(e) => {
                warn_unused_snapshot(NAME, &e);
                World::default()
            }
        }
    }

    async fn read(&self, store: &Snapshots) -> Result<Option<World>, SnapshotError> {
        let mut content = Vec::new();
        let found = store.fetch((NAME, &self.version), &self.key, &self.log, &mut content).await?;
        let Some(manifest) = found else { return Ok(None) };
        let read = tokio::task::spawn_blocking(move || -> std::io::Result<World> {
            let text = GzDecoder::new(content.as_slice()).take(MAX_TEXT_BYTES);
            Ok(serde_json::from_reader(BufReader::new(text))?)
        });
        let world = read.await.map_err(std::io::Error::other)??;
        if world.applied() == manifest.id.seq {
            Ok(Some(world))
        } else {
            Err(SnapshotError::Untrusted("its state ends at another event than its manifest says"))
        }
    }

    /// Stores a snapshot whenever `every` more events are folded, until shutdown. Only the leader does so.
    pub(crate) async fn store_periodically(
        self,
        replica: Arc<Replica>,
        leadership: Leadership,
        every: u64,
        shutdown: CancellationToken,
    ) {
        let Some(store) = self.store.clone().filter(|_| every > 0) else { return };
        let mut last = store.newest((NAME, &self.version), &self.key).await.unwrap_or_default();
        let mut applied = replica.watch_applied();
        loop {
            let due = applied.wait_for(|applied| applied.0 >= last.0.saturating_add(every));
            match shutdown.run_until_cancelled(due).await {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            }
            if leadership.is_leader() {
                match shutdown.run_until_cancelled(self.write(&store, &replica)).await {
                    Some(Ok(seq)) => {
                        info!(seq = seq.0, "a snapshot was kept");
                        last = seq;
                    }
                    Some(Err(e)) => warn!(error = %Chain(&e), "the snapshot could not be made; trying again later"),
                    None => return,
                }
            } else if let Some(seq) = store.newest((NAME, &self.version), &self.key).await {
                last = seq;
            }
            if shutdown.run_until_cancelled(tokio::time::sleep(MIN_INTERVAL)).await.is_none() {
                return;
            }
        }
    }

    async fn write(&self, store: &Snapshots, replica: &Replica) -> Result<Seq, SnapshotError> {
        // Clone the state, so that the fold does not wait while the snapshot is written.
        let world = replica.read(World::clone);
        let seq = world.applied();
        let message = self.log.get_raw(seq).await.map_err(|e| SnapshotError::Broker(e.into()))?;
        let leaf = message.ok_or(SnapshotError::Untrusted("its last event is not in the log"))?.leaf();
        let written = tokio::task::spawn_blocking(move || -> std::io::Result<Vec<u8>> {
            let mut to = GzEncoder::new(Vec::new(), Compression::fast());
            let mut text = BufWriter::new(&mut to);
            serde_json::to_writer(&mut text, &world)?;
            text.flush()?;
            drop(text);
            to.finish()
        });
        let content = written.await.map_err(std::io::Error::other)??;
        let (name, version) = (NAME.to_owned(), self.version.clone());
        let id = SnapshotId { name, version, seq, leaf: gpubnb_events::hex(leaf) };
        let manifest =
            SnapshotManifest::sign(id, content.len() as u64, gpubnb_events::hex(Sha256::digest(&content)), &self.key)?;
        store.put(&manifest, &mut content.as_slice()).await?;
        Ok(seq)
    }
}
