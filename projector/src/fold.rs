//! Runs the read models: reads MARKET once, and folds each batch into every model from its own checkpoint.
//!
//! A model that fails on an event stops there, visibly; the others go on. It is retried from its
//! checkpoint at the next start, never skipped.

use std::{collections::BTreeMap, sync::Arc};

use gpubnb_events::{Log, Recorded, Seq, log::Follower};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::{
    model::{self, Projection},
    store::{self, Rows, StoreError},
};

/// One model and its tree.
pub struct Model {
    projection: Box<dyn Projection>,
    tree: sled::Tree,
    checkpoint: Seq,
    stopped: Option<String>,
}

/// Every model of a projector.
pub struct Models {
    models: Vec<Model>,
}

/// The trees, for reading.
#[derive(Clone)]
pub struct Trees(Arc<BTreeMap<&'static str, sled::Tree>>);

impl Trees {
    /// A model's tree. Every model's name is known when the program is written.
    pub fn of(&self, projection: &impl Projection) -> Result<&sled::Tree, StoreError> {
        self.0.get(projection.name()).ok_or_else(|| {
            StoreError::Sled(sled::Error::Unsupported(format!("no model is called {}", projection.name())))
        })
    }
}

impl Models {
    /// Opens every model in a database.
    pub fn open(db: &sled::Db) -> Result<Self, StoreError> {
        let models = model::all().into_iter().map(|projection| {
            let tree = store::tree(db, projection.name(), projection.version())?;
            let checkpoint = store::checkpoint(&tree)?;
            info!(model = projection.name(), checkpoint = checkpoint.0, "opened");
            Ok(Model { projection, tree, checkpoint, stopped: None })
        });
        Ok(Self { models: models.collect::<Result<_, StoreError>>()? })
    }

    /// The trees, for reading.
    pub fn trees(&self) -> Trees {
        Trees(Arc::new(self.models.iter().map(|m| (m.projection.name(), m.tree.clone())).collect()))
    }

    /// Where to read on: after the checkpoint that is furthest behind.
    pub fn next(&self) -> Seq {
        self.applied().next()
    }

    /// What every running model has taken in.
    pub fn applied(&self) -> Seq {
        self.running().map(|m| m.checkpoint).min().unwrap_or(Seq::ZERO)
    }

    /// Models that stopped, and why.
    pub fn stopped(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.models.iter().filter_map(|m| Some((m.projection.name(), m.stopped.as_deref()?)))
    }

    fn running(&self) -> impl Iterator<Item = &Model> {
        self.models.iter().filter(|m| m.stopped.is_none())
    }

    /// Folds a batch into every model. A large one goes into all of them at the same time.
    pub fn fold(&mut self, batch: &[Recorded]) {
        let running = self.models.iter_mut().filter(|m| m.stopped.is_none());
        if batch.len() < LARGE {
            running.for_each(|model| model.fold_or_stop(batch));
            return;
        }
        std::thread::scope(|threads| {
            for model in running {
                threads.spawn(|| model.fold_or_stop(batch));
            }
        });
    }
}

/// Folds everything up to `until`, or a little further, into a database. Reading and folding go on beside each other.
pub async fn catch_up(log: &Log, db: &sled::Db, until: Seq) -> Result<Models, StoreError> {
    let models = Models::open(db)?;
    let reached = CancellationToken::new();
    if models.applied() >= until {
        return Ok(models);
    }
    let (events, waiting) = mpsc::channel(READ_AHEAD);
    let reading = tokio::spawn(read(log.follow(models.next()), events, reached.clone()));
    let folding = tokio::task::spawn_blocking(move || {
        fold(models, waiting, |_, batch| {
            if batch.last().is_some_and(|last| last.seq >= until) {
                reached.cancel();
            }
        })
    });
    let folded = folding.await;
    reading.abort();
    folded.map_err(|e| StoreError::Sled(sled::Error::ReportableBug(format!("the fold ended: {e}"))))
}

/// From this many events on it is worth a thread a model.
const LARGE: usize = 512;
/// Most events read ahead of the fold.
pub(crate) const READ_AHEAD: usize = 20_000;
/// Most events in one transaction: a row that many of them change is written once.
const BATCH: usize = 20_000;

/// Reads MARKET into a channel until told to stop.
pub(crate) async fn read(mut follower: Follower, events: mpsc::Sender<Recorded>, stop: CancellationToken) {
    let reading = async {
        loop {
            for recorded in follower.next_batch().await {
                if events.send(recorded).await.is_err() {
                    return;
                }
            }
        }
    };
    stop.run_until_cancelled(reading).await;
}

/// Folds what waits, as much at once as there is, until nobody reads any more. `folded` sees each batch.
pub(crate) fn fold(
    mut models: Models,
    mut waiting: mpsc::Receiver<Recorded>,
    mut folded: impl FnMut(&Models, Vec<Recorded>),
) -> Models {
    let mut batch = Vec::new();
    while waiting.blocking_recv_many(&mut batch, BATCH) > 0 {
        models.fold(&batch);
        folded(&models, std::mem::take(&mut batch));
    }
    models
}

impl Model {
    fn fold_or_stop(&mut self, batch: &[Recorded]) {
        if let Err((seq, e)) = self.fold(batch) {
            error!(model = self.projection.name(), seq = seq.0, error = %e, "a projection stopped: fix it and start again");
            self.stopped = Some(format!("at sequence {seq}: {e}"));
        }
    }

    fn fold(&mut self, batch: &[Recorded]) -> Result<(), (Seq, StoreError)> {
        let Some(last) = batch.last() else { return Ok(()) };
        let mut rows = Rows::new(&self.tree);
        for recorded in batch.iter().filter(|r| r.seq > self.checkpoint) {
            if let Some(event) = recorded.event() {
                self.projection.apply(&mut rows, recorded, event).map_err(|e| (recorded.seq, e))?;
            }
        }
        if last.seq > self.checkpoint {
            rows.commit(last.seq).map_err(|e| (last.seq, e))?;
            self.checkpoint = last.seq;
        }
        Ok(())
    }
}
