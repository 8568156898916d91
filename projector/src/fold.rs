//! Runs the read models: reads MARKET once, and folds each batch into every model from its own checkpoint.
//!
//! A model that fails on an event stops there, visibly; the others go on. It is retried from its
//! checkpoint at the next start, never skipped.

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

/// One model and its tree.
pub struct Model {
    projection: Box<dyn Projection>,
    table: Table,
    snapshot_copy: Arc<SnapshotCopy>,
    checkpoint: Seq,
    stopped: Option<String>,
}

/// A fold that did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    /// The store failed.
    #[error("the read models cannot be written or read")]
    Store(#[from] StoreError),
    /// The thread of the fold ended before its work was done.
    #[error("the fold ended early")]
    Ended(#[from] tokio::task::JoinError),
}

/// Every model of a projector.
pub struct Models {
    all: Vec<Model>,
    tables: Tables,
    adoption: Adoption,
}

/// The tables that answer, for reading. One is swapped when its model was rebuilt.
#[derive(Clone)]
pub struct Tables(Arc<RwLock<BTreeMap<&'static str, Table>>>);

impl Tables {
    /// A model's table. Every model's name is known when the program is written.
    pub fn of(&self, projection: &impl Projection) -> Result<Table, StoreError> {
        self.named(projection.name())
    }

    /// The table of the model with this name.
    pub fn named(&self, name: &str) -> Result<Table, StoreError> {
        let tables = self.0.read().unwrap_or_else(PoisonError::into_inner);
        tables.get(name).cloned().ok_or_else(|| StoreError::corrupt(name.as_bytes(), "no model has this name"))
    }

    fn swap(&self, name: &'static str, table: Table) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(name, table);
    }
}

/// Models that were rebuilt beside those that answer, and wait to take their place. The fold reads on where the
/// rebuilt one is, folds what comes into both, and swaps them when both are equally far.
#[derive(Clone)]
pub(crate) struct Adoption {
    db: Database,
    rebuilt: Arc<Mutex<Vec<Model>>>,
    read_on: watch::Sender<Seq>,
}

impl Adoption {
    /// Hands over a rebuilt model. It must be behind the end of the log, so that something comes to be read.
    pub(crate) fn adopt(&self, model: Model) {
        let mut rebuilt = self.rebuilt.lock().unwrap_or_else(PoisonError::into_inner);
        rebuilt.push(model);
        let furthest_behind = rebuilt.iter().map(|m| m.checkpoint).min().unwrap_or(Seq::ZERO);
        self.read_on.send_replace(furthest_behind.next());
    }

    /// Whether a model of this name still waits.
    pub(crate) fn waits(&self, name: &str) -> bool {
        self.rebuilt.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|m| m.name() == name)
    }
}

impl Models {
    /// Opens every model in a database.
    pub fn open(db: &Database) -> Result<Self, StoreError> {
        let models = gpubnb_model::all().into_iter().map(|projection| {
            let table = db.model(projection.model_version())?;
            if gpubnb_store::checkpoint(&table)? == Seq::ZERO {
                // What stands there without a checkpoint was cut off while a snapshot was taken up.
                table.clear()?;
            }
            let model = Model::new(projection, table)?;
            info!(model = model.name(), checkpoint = model.checkpoint.0, "opened");
            Ok(model)
        });
        let models: Vec<Model> = models.collect::<Result<_, StoreError>>()?;
        let tables = models.iter().map(|m| (m.projection.name(), m.table.clone())).collect();
        let adoption = Adoption { db: db.clone(), rebuilt: Arc::default(), read_on: watch::Sender::new(Seq::ZERO) };
        Ok(Self { all: models, tables: Tables(Arc::new(RwLock::new(tables))), adoption })
    }

    /// The tables, for reading.
    pub fn tables(&self) -> Tables {
        self.tables.clone()
    }

    /// What copies each model's rows.
    pub(crate) fn snapshot_copies(&self) -> Vec<(&'static str, u32, Arc<SnapshotCopy>)> {
        self.all.iter().map(|m| (m.name(), m.projection.version(), Arc::clone(&m.snapshot_copy))).collect()
    }

    /// Where rebuilt models go.
    pub(crate) fn adoption(&self) -> Adoption {
        self.adoption.clone()
    }

    /// Where to read on: after the checkpoint that is furthest behind.
    pub fn next(&self) -> Seq {
        self.applied().next()
    }

    /// What every running model has taken in.
    pub fn applied(&self) -> Seq {
        self.running().map(|m| m.checkpoint).min().unwrap_or(Seq::ZERO)
    }

    /// Each model: its name, how far it is, and why it stopped if it did.
    pub fn states(&self) -> impl Iterator<Item = (&'static str, Seq, Option<&str>)> {
        self.all.iter().map(|m| (m.name(), m.checkpoint, m.stopped.as_deref()))
    }

    fn running(&self) -> impl Iterator<Item = &Model> {
        self.all.iter().filter(|m| m.stopped.is_none())
    }

    /// Folds a batch into every model, one after the other: what a transaction leaves behind in sled's memory is gone
    /// before the next. Two at a time were no faster on a machine that reads and writes meanwhile.
    pub fn fold(&mut self, batch: &[Recorded]) {
        let mut rebuilt = self.adoption.rebuilt.lock().unwrap_or_else(PoisonError::into_inner);
        let running = self.all.iter_mut().chain(rebuilt.iter_mut()).filter(|m| m.stopped.is_none());
        running.for_each(|model| model.fold_or_stop(batch));
        // One that takes the place of a model that stopped must be as far as the others, or what is read next leaves a gap.
        let furthest = self.all.iter().map(|m| m.checkpoint).max().unwrap_or(Seq::ZERO);
        let (models, tables, db) = (&mut self.all, &self.tables, &self.adoption.db);
        rebuilt.retain(|new| !models.iter_mut().any(|old| old.gives_way(new, furthest, tables, db)));
    }
}

/// Folds everything up to `until`, or a little further, into a database. Reading and folding go on beside each other.
pub async fn catch_up(log: &Log, db: &Database, until: Seq) -> Result<Models, FoldError> {
    let models = Models::open(db)?;
    let reached = CancellationToken::new();
    if models.applied() >= until {
        return Ok(models);
    }
    let (events, waiting) = mpsc::channel(READ_AHEAD);
    let reading = tokio::spawn(read(log.clone(), models.next(), models.adoption(), events, reached.clone()));
    let folding = tokio::task::spawn_blocking(move || {
        fold(models, waiting, |_, batch| {
            if batch.last().is_some_and(|last| last.seq >= until) {
                reached.cancel();
            }
        })
    });
    let folded = folding.await;
    reading.abort();
    Ok(folded?)
}

/// Most parts read ahead of the fold.
pub(crate) const READ_AHEAD: usize = 4;
/// Most events in one part. Handed over one by one, the fold would be woken for each.
const PART: usize = 500;
/// From so many events on no more are added to what is folded in one transaction. A block that many of them change is
/// written once; but sled keeps all that a transaction replaces until it ends.
pub const BATCH: usize = 2_500;

/// Reads MARKET into a channel until told to stop; goes back where a rebuilt model waits to catch up.
pub(crate) async fn read(
    log: Log,
    from: Seq,
    adoption: Adoption,
    events: mpsc::Sender<Vec<Recorded>>,
    stop: CancellationToken,
) {
    let mut read_on = adoption.read_on.subscribe();
    let mut follower = log.follow(from);
    let reading = async {
        loop {
            let batch = tokio::select! {
                batch = follower.next_batch() => batch,
                Ok(()) = read_on.changed() => {
                    follower = log.follow(*read_on.borrow_and_update());
                    continue;
                }
            };
            let mut batch = batch.into_iter();
            loop {
                let part: Vec<_> = batch.by_ref().take(PART).collect();
                if part.is_empty() {
                    break;
                }
                if events.send(part).await.is_err() {
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
    mut waiting: mpsc::Receiver<Vec<Recorded>>,
    mut folded: impl FnMut(&Models, Vec<Recorded>),
) -> Models {
    while let Some(mut batch) = waiting.blocking_recv() {
        while batch.len() < BATCH
            && let Ok(part) = waiting.try_recv()
        {
            batch.extend(part);
        }
        models.fold(&batch);
        folded(&models, batch);
    }
    models
}

impl Model {
    /// A model in a table, as far as the table is.
    pub(crate) fn new(projection: Box<dyn Projection>, table: Table) -> Result<Self, StoreError> {
        let checkpoint = gpubnb_store::checkpoint(&table)?;
        Ok(Self { projection, table, snapshot_copy: Arc::default(), checkpoint, stopped: None })
    }

    /// Its name.
    pub(crate) fn name(&self) -> &'static str {
        self.projection.name()
    }

    /// How far it is.
    pub(crate) fn checkpoint(&self) -> Seq {
        self.checkpoint
    }

    /// Its table.
    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    /// Gives its place to one that was rebuilt, once that is as far. Whether it did, or never will.
    fn gives_way(&mut self, new: &Model, furthest: Seq, tables: &Tables, db: &Database) -> bool {
        if self.name() != new.name() {
            return false;
        }
        if let Some(why) = &new.stopped {
            error!(model = new.name(), why, "the rebuilt model stopped and is given up");
            return true;
        }
        if new.checkpoint < furthest {
            return false;
        }
        if let Err(e) = db.make_current(self.name(), &new.table) {
            error!(model = new.name(), error = %e, "the rebuilt model cannot take its place");
            return true;
        }
        (self.table, self.checkpoint, self.stopped) = (new.table.clone(), new.checkpoint, None);
        tables.swap(self.name(), new.table.clone());
        // Whatever is being copied is of the table that went, and what was kept may have been why it was rebuilt.
        self.snapshot_copy.set_replaced();
        info!(model = self.name(), checkpoint = self.checkpoint.0, "rebuilt and swapped");
        true
    }

    fn fold_or_stop(&mut self, batch: &[Recorded]) {
        if let Err((seq, e)) = self.fold(batch) {
            error!(model = self.projection.name(), seq = seq.0, error = %e, "a projection stopped: fix it and start again");
            self.stopped = Some(format!("at sequence {seq}: {e}"));
        }
    }

    /// Folds what of a batch comes after its checkpoint; on failure nothing of it, and the event it failed at.
    pub(crate) fn fold(&mut self, batch: &[Recorded]) -> Result<(), (Seq, StoreError)> {
        let mut rows = WriteBatch::copied(&self.table, &self.snapshot_copy);
        let (mut at, mut leaf) = (self.checkpoint, None);
        for recorded in batch {
            // What was read again is not folded again, and nothing is folded over a gap.
            if recorded.seq != at.next() {
                continue;
            }
            let taken = match recorded.event() {
                Some(event) => self.projection.apply(&mut rows, recorded, event),
                None => self.projection.quarantined(&mut rows, recorded),
            };
            taken.map_err(|e| (recorded.seq, e))?;
            (at, leaf) = (recorded.seq, Some(recorded.leaf));
        }
        if at > self.checkpoint {
            rows.commit_of(at, leaf).map_err(|e| (at, e))?;
            self.checkpoint = at;
        }
        Ok(())
    }
}
