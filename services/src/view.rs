//! The replica's own view of the world: MARKET folded in memory, and a way to wait until it has seen enough.

use std::{
    sync::{PoisonError, RwLock},
    time::Duration,
};

use gpubnb_domain::{Settings, World};
use gpubnb_events::Seq;
use gpubnb_log::Log;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long a command waits for the fold to catch up with what it has just written.
const PATIENCE: Duration = Duration::from_secs(3);

/// MARKET, folded.
pub(crate) struct View {
    world: RwLock<World>,
    applied: watch::Sender<Seq>,
}

impl View {
    /// As the world was found.
    pub(crate) fn new(world: World) -> Self {
        let applied = watch::Sender::new(world.applied());
        Self { world: RwLock::new(world), applied }
    }

    /// Reads the world. The closure must be short: the fold waits for it.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&World) -> T) -> T {
        // A poisoned lock would mean that `apply` panicked, which it cannot: it is infallible.
        read(&self.world.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells of every change.
    pub(crate) fn changes(&self) -> watch::Receiver<Seq> {
        self.applied.subscribe()
    }

    /// Waits until `seq` is folded; false if that took too long.
    pub(crate) async fn wait_for(&self, seq: Seq) -> bool {
        let mut applied = self.applied.subscribe();
        tokio::time::timeout(PATIENCE, applied.wait_for(|applied| *applied >= seq)).await.is_ok()
    }

    /// Folds MARKET until shutdown.
    pub(crate) async fn fold(&self, log: &Log, settings: &Settings, shutdown: CancellationToken) {
        let mut follower = log.follow(self.read(World::applied).next());
        loop {
            let batch = tokio::select! {
                () = shutdown.cancelled() => return,
                batch = follower.next_batch() => batch,
            };
            // In pieces, so that readers get their turn during a long catch-up.
            for piece in batch.chunks(500) {
                let mut world = self.world.write().unwrap_or_else(PoisonError::into_inner);
                for recorded in piece {
                    world.apply(recorded, settings);
                }
                let applied = world.applied();
                drop(world);
                self.applied.send_replace(applied);
            }
        }
    }
}
