//! The world as it was, kept in SNAPSHOTS: a replica that starts takes it up and folds only what came after it.

use std::{
    io::{BufReader, BufWriter, Read as _, Write as _},
    sync::Arc,
    time::Duration,
};

use async_nats::jetstream;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use gpubnb_domain::{Settings, World};
use gpubnb_events::Seq;
use gpubnb_log::{
    Log,
    snapshot::{SnapshotError, SnapshotId, SnapshotManifest, Snapshots, fetched, folded_anew, version},
};
use nkeys::KeyPair;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{process::Leadership, replica::Replica};

const NAME: &str = "world";
/// Shortest pause between two.
const PAUSE: Duration = Duration::from_secs(10);
/// Longest text of a world that is taken up, bytes.
const LONGEST: u64 = 4 << 30;

/// Keeps the world, and finds it again.
pub(crate) struct WorldSnapshots {
    log: Log,
    store: Option<Snapshots>,
    key: KeyPair,
    version: String,
}

impl WorldSnapshots {
    /// Opens the store. Without one nothing is kept, and nothing found.
    pub(crate) async fn open(js: &jetstream::Context, log: Log, key: KeyPair, settings: &Settings) -> Self {
        let store = Snapshots::open(js).await.inspect_err(|e| warn!(error = %e, "no snapshots")).ok();
        Self { log, store, key, version: version(World::version(settings)) }
    }

    /// The world that was kept last, or an empty one.
    pub(crate) async fn found(&self) -> World {
        let Some(store) = &self.store else { return World::default() };
        match fetched(async || self.read(store).await).await {
            Ok(Some(world)) => {
                info!(seq = world.applied().0, "begins from a snapshot");
                world
            }
            Ok(None) => World::default(),
            Err(e) => {
                folded_anew(NAME, &e);
                World::default()
            }
        }
    }

    async fn read(&self, store: &Snapshots) -> Result<Option<World>, SnapshotError> {
        let mut content = Vec::new();
        let found = store.fetch((NAME, &self.version), &self.key, &self.log, &mut content).await?;
        let Some(manifest) = found else { return Ok(None) };
        let read = tokio::task::spawn_blocking(move || -> std::io::Result<World> {
            let text = GzDecoder::new(content.as_slice()).take(LONGEST);
            Ok(serde_json::from_reader(BufReader::new(text))?)
        });
        let world = read.await.map_err(std::io::Error::other)??;
        if world.applied() == manifest.id.seq {
            Ok(Some(world))
        } else {
            Err(SnapshotError::Doubtful("it ends at another event than it says"))
        }
    }

    /// Keeps the world whenever it has taken in `every` more events, until shutdown. One replica does it for all.
    pub(crate) async fn keep(self, replica: Arc<Replica>, leads: Leadership, every: u64, shutdown: CancellationToken) {
        let Some(store) = self.store.clone().filter(|_| every > 0) else { return };
        let mut last = store.newest((NAME, &self.version), &self.key).await.unwrap_or_default();
        let mut changes = replica.changes();
        loop {
            let due = changes.wait_for(|applied| applied.0 >= last.0.saturating_add(every));
            match shutdown.run_until_cancelled(due).await {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            }
            if leads.leads() {
                match shutdown.run_until_cancelled(self.write(&store, &replica)).await {
                    Some(Ok(seq)) => {
                        info!(seq = seq.0, "a snapshot was kept");
                        last = seq;
                    }
                    Some(Err(e)) => warn!(error = %e, "the world is kept later"),
                    None => return,
                }
            } else if let Some(seq) = store.newest((NAME, &self.version), &self.key).await {
                last = seq;
            }
            if shutdown.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
                return;
            }
        }
    }

    async fn write(&self, store: &Snapshots, replica: &Replica) -> Result<Seq, SnapshotError> {
        // A copy, so that nobody waits while it is written out.
        let world = replica.read(World::clone);
        let seq = world.applied();
        let message = self.log.get_raw(seq).await.map_err(|e| SnapshotError::Broker(e.to_string()))?;
        let leaf = message.ok_or(SnapshotError::Doubtful("its last event is not in the log"))?.leaf();
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
