//! Folds the events of MARKET (the log) into all read models. Each model has a table and a checkpoint: the sequence of
//! the last event that was folded into the table.
//!
//! If a model cannot fold an event, this model stops and operators see the reason. The other models continue. At the
//! next start the stopped model tries the same event again: no event is skipped.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use gpubnb_events::{Recorded, Seq};
use gpubnb_log::Log;
use gpubnb_model::Projection;
use gpubnb_store::{self, Database, SnapshotCopy, StoreError, Table, WriteBatch};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

/// A read model: a projection (the rules of the fold), its table, and its checkpoint.
pub struct Model {
    projection: Box<dyn Projection>,
    table: Table,
    snapshot_copy: Arc<SnapshotCopy>,
    checkpoint: Seq,
    /// The reason why the model stopped. `None` while it runs.
    stopped: Option<String>,
}

/// The parts of a model that are needed to write a snapshot of the model.
pub(crate) struct SnapshotSource {
    pub(crate) name: &'static str,
    pub(crate) version: u32,
    pub(crate) snapshot_copy: Arc<SnapshotCopy>,
}

/// The reason why a fold ended too early.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    /// The store failed.
    #[error("the read models cannot be written or read")]
    Store(#[from] StoreError),
    /// The thread of the fold ended early.
    #[error("the fold ended early")]
    Ended(#[from] tokio::task::JoinError),
}

/// The error of a model that cannot fold an event.
#[derive(Debug, thiserror::Error)]
#[error("the model {model} cannot fold the event at sequence {seq}")]
pub(crate) struct ModelError {
    model: &'static str,
    seq: Seq,
    source: StoreError,
}

/// All read models of a projector.
pub struct Models {
    all: Vec<Model>,
    tables: Tables,
    swap_queue: SwapQueue,
}

/// The tables that queries read. The table of a rebuilt model replaces the model's old table.
#[derive(Clone)]
pub struct Tables(Arc<RwLock<BTreeMap<&'static str, Table>>>);

impl Tables {
    /// The table of a projection.
    pub fn of(&self, projection: &impl Projection) -> Result<Table, StoreError> {
        self.by_name(projection.name())
    }

    /// The table of the model with this name.
    pub fn by_name(&self, name: &str) -> Result<Table, StoreError> {
        let tables = self.0.read().unwrap_or_else(PoisonError::into_inner);
        tables.get(name).cloned().ok_or_else(|| StoreError::corrupt(name.as_bytes(), "no model has this name"))
    }

    fn replace(&self, name: &'static str, table: Table) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(name, table);
    }
}

/// Rebuilt models that will replace the old models of the same names. The reader goes back to the checkpoint of a
/// rebuilt model, and the fold folds events into both models. When the rebuilt model has caught up, the fold swaps the
/// tables. Clones share the queue.
#[derive(Clone)]
pub(crate) struct SwapQueue {
    db: Database,
    rebuilt: Arc<Mutex<Vec<Model>>>,
    /// The next event of the rebuilt model that is furthest behind. The reader goes back to this event.
    read_from: watch::Sender<Seq>,
}

impl SwapQueue {
    /// Adds a rebuilt model. The log must have an event after the model's checkpoint, because the fold swaps only when
    /// it folds a batch.
    pub(crate) fn push(&self, model: Model) {
        let mut rebuilt = self.rebuilt.lock().unwrap_or_else(PoisonError::into_inner);
        rebuilt.push(model);
        let furthest_behind = rebuilt.iter().map(|m| m.checkpoint).min().unwrap_or(Seq::ZERO);
        self.read_from.send_replace(furthest_behind.next());
    }

    /// True if a rebuilt model of this name waits in the queue.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.rebuilt.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|m| m.name() == name)
    }
}

impl Models {
    /// Opens all models in a database.
    pub fn open(db: &Database) -> Result<Self, StoreError> {
        let models = gpubnb_model::all().into_iter().map(|projection| {
            let table = db.current_table(projection.model_version())?;
            if gpubnb_store::checkpoint(&table)? == Seq::ZERO {
                // A table with rows but without a checkpoint comes from a snapshot that was not loaded completely.
                table.clear()?;
            }
            let model = Model::new(projection, table)?;
            info!(model = model.name(), checkpoint = model.checkpoint.0, "opened");
            Ok(model)
        });
        let models: Vec<Model> = models.collect::<Result<_, StoreError>>()?;
        let tables = models.iter().map(|m| (m.projection.name(), m.table.clone())).collect();
        let swap_queue =
            SwapQueue { db: db.clone(), rebuilt: Arc::default(), read_from: watch::Sender::new(Seq::ZERO) };
        Ok(Self { all: models, tables: Tables(Arc::new(RwLock::new(tables))), swap_queue })
    }

    /// The tables for queries.
    pub fn tables(&self) -> Tables {
        self.tables.clone()
    }

    /// The parts of each model that are needed to write snapshots.
    pub(crate) fn snapshot_sources(&self) -> Vec<SnapshotSource> {
        let source = |m: &Model| SnapshotSource {
            name: m.name(),
            version: m.projection.version(),
            snapshot_copy: Arc::clone(&m.snapshot_copy),
        };
        self.all.iter().map(source).collect()
    }

    /// The queue for rebuilt models.
    pub(crate) fn swap_queue(&self) -> SwapQueue {
        self.swap_queue.clone()
    }

    /// The next sequence that the fold needs: the one after the lowest checkpoint of the running models.
    pub fn next_seq(&self) -> Seq {
        self.applied().next()
    }

    /// The lowest checkpoint of the running models: every running model has folded the events up to this sequence.
    pub fn applied(&self) -> Seq {
        self.running().map(|m| m.checkpoint).min().unwrap_or(Seq::ZERO)
    }

    /// The name and the checkpoint of each model, and the reason why the model stopped (`None` while it runs).
    pub fn states(&self) -> impl Iterator<Item = (&'static str, Seq, Option<&str>)> {
        self.all.iter().map(|m| (m.name(), m.checkpoint, m.stopped.as_deref()))
    }

    fn running(&self) -> impl Iterator<Item = &Model> {
        self.all.iter().filter(|m| m.stopped.is_none())
    }

    /// Folds a batch into every model, one model after the other. This order lets sled (the embedded database) free
    /// the memory of one transaction before the next, and two models at a time were not faster.
    ///
    /// An event that a model cannot fold stops this model only. Fails if the disk fails: a full disk, say, concerns
    /// every model, and no event is to blame.
    pub fn fold(&mut self, batch: &[Recorded]) -> Result<(), StoreError> {
        let mut rebuilt = self.swap_queue.rebuilt.lock().unwrap_or_else(PoisonError::into_inner);
        let running = self.all.iter_mut().chain(rebuilt.iter_mut()).filter(|m| m.stopped.is_none());
        for model in running {
            model.fold_or_stop(batch)?;
        }
        // The reader continues after the highest checkpoint. A rebuilt model with a lower checkpoint would miss events,
        // so it must reach the highest checkpoint before the swap.
        let furthest = self.all.iter().map(|m| m.checkpoint).max().unwrap_or(Seq::ZERO);
        let (models, tables, db) = (&mut self.all, &self.tables, &self.swap_queue.db);
        rebuilt.retain(|new| !models.iter_mut().any(|old| old.try_swap(new, furthest, tables, db)));
        Ok(())
    }
}

/// Folds the log into a database, at least up to the event `until`. Reads and folds at the same time.
pub async fn catch_up(log: &Log, db: &Database, until: Seq) -> Result<Models, FoldError> {
    let models = Models::open(db)?;
    let reached = CancellationToken::new();
    if models.applied() >= until {
        return Ok(models);
    }
    let (events, waiting) = mpsc::channel(READ_AHEAD);
    let reading = tokio::spawn(read_log(log.clone(), models.next_seq(), models.swap_queue(), events, reached.clone()));
    let folding = tokio::task::spawn_blocking(move || {
        fold_chunks(models, waiting, |_, batch| {
            if batch.last().is_some_and(|last| last.seq >= until) {
                reached.cancel();
            }
        })
    });
    let folded = folding.await;
    reading.abort();
    Ok(folded??)
}

/// The number of chunks that the channel between the reader and the fold holds.
pub(crate) const READ_AHEAD: usize = 4;
/// The most events in one chunk. The reader gets batches of 1 to 5,000 events from the log and splits them into chunks.
/// Small chunks limit the memory of the channel: at most 4 times 500 events. The fold joins the waiting chunks again,
/// so that many events share one transaction.
const CHUNK: usize = 500;
/// The fold adds no more chunks to a transaction that has this many events. The store writes rows in blocks (many
/// neighbouring rows in one value). Large transactions write fewer blocks: a block that many events change is written
/// once. But until the transaction ends, sled keeps every replaced block in memory.
pub const BATCH: usize = 2_500;

/// Reads MARKET and sends the events to the fold, until `stop` is cancelled. If a rebuilt model waits in the queue,
/// goes back to the model's next event.
pub(crate) async fn read_log(
    log: Log,
    from: Seq,
    swap_queue: SwapQueue,
    events: mpsc::Sender<Vec<Recorded>>,
    stop: CancellationToken,
) {
    let mut read_from = swap_queue.read_from.subscribe();
    let mut follower = log.follow(from);
    let reading = async {
        loop {
            let batch = tokio::select! {
                batch = follower.next_batch() => batch,
                Ok(()) = read_from.changed() => {
                    follower = log.follow(*read_from.borrow_and_update());
                    continue;
                }
            };
            let mut batch = batch.into_iter();
            loop {
                let chunk: Vec<_> = batch.by_ref().take(CHUNK).collect();
                if chunk.is_empty() {
                    break;
                }
                if events.send(chunk).await.is_err() {
                    return;
                }
            }
        }
    };
    stop.run_until_cancelled(reading).await;
}

/// Folds the events that the reader sends, until the reader ends or the database fails. Joins waiting chunks into one
/// batch. After each batch, calls `folded` with the models and the batch.
pub(crate) fn fold_chunks(
    mut models: Models,
    mut waiting: mpsc::Receiver<Vec<Recorded>>,
    mut folded: impl FnMut(&Models, Vec<Recorded>),
) -> Result<Models, StoreError> {
    while let Some(mut batch) = waiting.blocking_recv() {
        while batch.len() < BATCH
            && let Ok(chunk) = waiting.try_recv()
        {
            batch.extend(chunk);
        }
        models.fold(&batch)?;
        folded(&models, batch);
    }
    Ok(models)
}

impl Model {
    /// Makes a model and reads its checkpoint from the table.
    pub(crate) fn new(projection: Box<dyn Projection>, table: Table) -> Result<Self, StoreError> {
        let checkpoint = gpubnb_store::checkpoint(&table)?;
        Ok(Self { projection, table, snapshot_copy: Arc::default(), checkpoint, stopped: None })
    }

    /// The model's name.
    pub(crate) fn name(&self) -> &'static str {
        self.projection.name()
    }

    /// The sequence of the last event that the model has folded.
    pub(crate) fn checkpoint(&self) -> Seq {
        self.checkpoint
    }

    /// The model's table.
    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    /// Replaces this model's table with the table of the rebuilt model `new`, if both have the same name and `new` has
    /// reached the sequence `furthest`. Returns true if `new` must leave the queue: it was swapped in, or it failed.
    fn try_swap(&mut self, new: &Model, furthest: Seq, tables: &Tables, db: &Database) -> bool {
        if self.name() != new.name() {
            return false;
        }
        if let Some(why) = &new.stopped {
            error!(model = new.name(), why, "the rebuilt model stopped; the old model stays in use");
            return true;
        }
        if new.checkpoint < furthest {
            return false;
        }
        if let Err(e) = db.make_current(self.name(), &new.table) {
            let error = &e as &dyn std::error::Error;
            error!(model = new.name(), error, "the rebuilt model cannot be swapped in; the old model stays in use");
            return true;
        }
        (self.table, self.checkpoint, self.stopped) = (new.table.clone(), new.checkpoint, None);
        tables.replace(self.name(), new.table.clone());
        // Cancels a snapshot of the old table. Also requests a new snapshot, because the stored snapshot may have the
        // same errors as the old table.
        self.snapshot_copy.set_replaced();
        info!(model = self.name(), checkpoint = self.checkpoint.0, "rebuilt and swapped");
        true
    }

    /// Folds a batch. Stops the model if it cannot fold an event. Fails if the disk fails.
    fn fold_or_stop(&mut self, batch: &[Recorded]) -> Result<(), StoreError> {
        let Err(ModelError { seq, source, .. }) = self.fold(batch) else { return Ok(()) };
        if source.is_io() {
            return Err(source);
        }
        let cause = format!("{:#}", anyhow::Error::from(source));
        error!(model = self.name(), seq = seq.0, cause, "a model stopped: fix its projection and start again");
        self.stopped = Some(format!("at sequence {seq}: {cause}"));
        Ok(())
    }

    /// Folds those events of a batch that follow the model's checkpoint. On failure, none of the events is folded.
    pub(crate) fn fold(&mut self, batch: &[Recorded]) -> Result<(), ModelError> {
        let model = self.name();
        let mut rows = WriteBatch::with_snapshot_copy(&self.table, &self.snapshot_copy);
        let (mut at, mut leaf) = (self.checkpoint, None);
        for recorded in batch {
            // Skips events that are already folded, and all events after a gap in the sequence.
            if recorded.seq != at.next() {
                continue;
            }
            let applied = match recorded.event() {
                Some(event) => self.projection.apply(&mut rows, recorded, event),
                None => self.projection.quarantined(&mut rows, recorded),
            };
            applied.map_err(|source| ModelError { model, seq: recorded.seq, source })?;
            (at, leaf) = (recorded.seq, Some(recorded.leaf));
        }
        if at > self.checkpoint {
            rows.commit_with_leaf(at, leaf).map_err(|source| ModelError { model, seq: at, source })?;
            self.checkpoint = at;
        }
        Ok(())
    }
}
