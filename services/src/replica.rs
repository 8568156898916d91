//! This replica's state: MARKET folded in memory, and a way to wait until a certain event is folded.

use std::time::Duration;

use gpubnb_domain::{Settings, World};
use gpubnb_events::Seq;
use gpubnb_log::Log;
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Time limit for a command that waits for the fold of an event.
const FOLD_TIMEOUT: Duration = Duration::from_secs(3);
/// Events that are folded under one write lock. A reader waits for the fold of at most this many events.
const CHUNK: usize = 500;

/// The market, as folded by this replica.
pub(crate) struct Replica {
    world: RwLock<World>,
    applied: watch::Sender<Seq>,
}

impl Replica {
    /// Creates a replica that begins with this world, which is empty or from a snapshot.
    pub(crate) fn new(world: World) -> Self {
        let applied = watch::Sender::new(world.applied());
        Self { world: RwLock::new(world), applied }
    }

    /// Reads the world. The closure must be short: the fold waits for it.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&World) -> T) -> T {
        read(&self.world.read())
    }

    /// Watches the last sequence that is folded.
    pub(crate) fn watch_applied(&self) -> watch::Receiver<Seq> {
        self.applied.subscribe()
    }

    /// Waits until `seq` is folded; false on a timeout.
    pub(crate) async fn wait_for(&self, seq: Seq) -> bool {
        let mut applied = self.applied.subscribe();
        tokio::time::timeout(FOLD_TIMEOUT, applied.wait_for(|applied| *applied >= seq)).await.is_ok()
    }

    /// Folds MARKET until shutdown.
    pub(crate) async fn fold(&self, log: &Log, settings: &Settings, shutdown: CancellationToken) {
        let mut follower = log.follow(self.read(World::applied).next());
        loop {
            let batch = tokio::select! {
                () = shutdown.cancelled() => return,
                batch = follower.next_batch() => batch,
            };
            for chunk in batch.chunks(CHUNK) {
                let mut world = self.world.write();
                for recorded in chunk {
                    world.apply(recorded, settings);
                }
                let applied = world.applied();
                drop(world);
                self.applied.send_replace(applied);
            }
        }
    }
}
