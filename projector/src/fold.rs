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

/// A projection with its table and its checkpoint.
pub struct Model {
    projection: Box<dyn Projection>,
    table: Table,
    snapshot_copy: Arc<SnapshotCopy>,
    checkpoint: Seq,
    stopped: Option<String>,
}

/// The copy of one model's table, shared by the fold and the snapshots.
pub(crate) struct ModelCopy {
    pub(crate) name: &'static str,
    pub(crate) version: u32,
    pub(crate) snapshot_copy: Arc<SnapshotCopy>,
}

/// A fold that ended before its work was done.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    /// The store failed.
    #[error("the read models cannot be written or read")]
    Store(#[from] StoreError),
    /// The thread of the fold ended early.
    #[error("the fold ended early")]
    Ended(#[from] tokio::task::JoinError),
}

/// A model could not fold an event.
#[derive(Debug, thiserror::Error)]
#[error("the model {model} cannot fold the event at sequence {seq}")]
pub(crate) struct ModelError {
    model: &'static str,
    seq: Seq,
    source: StoreError,
}

/// Every read model of a projector.
pub struct Models {
    all: Vec<Model>,
    tables: Tables,
    adoption: Adoption,
}

/// The tables that queries read. A table is swapped when its model was rebuilt.
#[derive(Clone)]
pub struct Tables(Arc<RwLock<BTreeMap<&'static str, Table>>>);

impl Tables {
    /// A projection's table.
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

/// Rebuilt models that wait to take the place of those that answer. The fold goes back to the checkpoint of the rebuilt
/// model, folds events into both, and swaps them when both are equally far.
#[derive(Clone)]
pub(crate) struct Adoption {
    db: Database,
    rebuilt: Arc<Mutex<Vec<Model>>>,
    /// The sequence from which the fold must read, because a rebuilt model waits there.
    read_from: watch::Sender<Seq>,
}

impl Adoption {
    /// Hands over a rebuilt model. Its checkpoint must be before the end of the log: only a batch makes the fold swap.
    pub(crate) fn adopt(&self, model: Model) {
        let mut rebuilt = self.rebuilt.lock().unwrap_or_else(PoisonError::into_inner);
        rebuilt.push(model);
        let furthest_behind = rebuilt.iter().map(|m| m.checkpoint).min().unwrap_or(Seq::ZERO);
        self.read_from.send_replace(furthest_behind.next());
    }

    /// True if a model of this name still waits.
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
                // Rows without a checkpoint are left from a snapshot whose loading was cut off.
                table.clear()?;
            }
            let model = Model::new(projection, table)?;
            info!(model = model.name(), checkpoint = model.checkpoint.0, "opened");
            Ok(model)
        });
        let models: Vec<Model> = models.collect::<Result<_, StoreError>>()?;
        let tables = models.iter().map(|m| (m.projection.name(), m.table.clone())).collect();
        let adoption = Adoption { db: db.clone(), rebuilt: Arc::default(), read_from: watch::Sender::new(Seq::ZERO) };
        Ok(Self { all: models, tables: Tables(Arc::new(RwLock::new(tables))), adoption })
    }

    /// The tables, for reading.
    pub fn tables(&self) -> Tables {
        self.tables.clone()
    }

    /// The hooks through which a snapshot copies each model's table while the fold goes on.
    pub(crate) fn snapshot_copies(&self) -> Vec<ModelCopy> {
        let of = |m: &Model| ModelCopy {
            name: m.name(),
            version: m.projection.version(),
            snapshot_copy: Arc::clone(&m.snapshot_copy),
        };
        self.all.iter().map(of).collect()
    }

    /// The place where rebuilt models are handed over.
    pub(crate) fn adoption(&self) -> Adoption {
        self.adoption.clone()
    }

    /// The sequence to read from: after the checkpoint that is furthest behind.
    pub fn next(&self) -> Seq {
        self.applied().next()
    }

    /// The last sequence that every running model has folded.
    pub fn applied(&self) -> Seq {
        self.running().map(|m| m.checkpoint).min().unwrap_or(Seq::ZERO)
    }

    /// The name of each model, its checkpoint, and why it stopped, if it did.
    pub fn states(&self) -> impl Iterator<Item = (&'static str, Seq, Option<&str>)> {
        self.all.iter().map(|m| (m.name(), m.checkpoint, m.stopped.as_deref()))
    }

    fn running(&self) -> impl Iterator<Item = &Model> {
        self.all.iter().filter(|m| m.stopped.is_none())
    }

    /// Folds a batch into every model, one after the other, so that sled has freed the memory of one transaction before
    /// the next. Two models at a time were no faster on a machine that also reads the log and answers.
    pub fn fold(&mut self, batch: &[Recorded]) {
        let mut rebuilt = self.adoption.rebuilt.lock().unwrap_or_else(PoisonError::into_inner);
        let running = self.all.iter_mut().chain(rebuilt.iter_mut()).filter(|m| m.stopped.is_none());
        running.for_each(|model| model.fold_or_stop(batch));
        // A rebuilt model may take the place of one that stopped long ago. It must be as far as all others before it
        // does: the fold reads on after the furthest, and would leave a gap.
        let furthest = self.all.iter().map(|m| m.checkpoint).max().unwrap_or(Seq::ZERO);
        let (models, tables, db) = (&mut self.all, &self.tables, &self.adoption.db);
        rebuilt.retain(|new| !models.iter_mut().any(|old| old.is_replaced(new, furthest, tables, db)));
    }
}

/// Folds the log up to `until`, or a little further, into a database. Reading and folding run at the same time.
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

/// Parts that may be read ahead of the fold.
pub(crate) const READ_AHEAD: usize = 4;
/// Most events in one part. The follower's batches (up to 5,000 events, or a single one) are cut into parts for the
/// channel, and `fold` joins the parts that wait. Both steps are needed: a part bounds the memory that is read ahead,
/// and the join makes a large transaction of many small batches. With one hop, either the channel would hold four times
/// 5,000 events, or an event that comes alone would be a transaction of its own while others already wait.
const PART: usize = 500;
/// A transaction that has this many events gets no more. A block that many events change is written once per
/// transaction; but sled keeps every block that a transaction replaces in memory until the transaction ends.
pub const BATCH: usize = 2_500;

/// Reads MARKET into a channel until told to stop. Goes back in the log where a rebuilt model waits to catch up.
pub(crate) async fn read(
    log: Log,
    from: Seq,
    adoption: Adoption,
    events: mpsc::Sender<Vec<Recorded>>,
    stop: CancellationToken,
) {
    let mut read_from = adoption.read_from.subscribe();
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

/// Folds the parts that wait, many in one transaction, until the reader ends. `folded` gets each batch afterwards.
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
    /// A model whose checkpoint is that of its table.
    pub(crate) fn new(projection: Box<dyn Projection>, table: Table) -> Result<Self, StoreError> {
        let checkpoint = gpubnb_store::checkpoint(&table)?;
        Ok(Self { projection, table, snapshot_copy: Arc::default(), checkpoint, stopped: None })
    }

    /// The model's name.
    pub(crate) fn name(&self) -> &'static str {
        self.projection.name()
    }

    /// The last sequence that the model has folded.
    pub(crate) fn checkpoint(&self) -> Seq {
        self.checkpoint
    }

    /// The model's table.
    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    /// Gives the place of this model to a rebuilt one of the same name, once that one is far enough. True: the rebuilt
    /// model need not wait any longer, because it was swapped in or never can be.
    fn is_replaced(&mut self, new: &Model, furthest: Seq, tables: &Tables, db: &Database) -> bool {
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
            let error = &e as &dyn std::error::Error;
            error!(model = new.name(), error, "the rebuilt model cannot take its place");
            return true;
        }
        (self.table, self.checkpoint, self.stopped) = (new.table.clone(), new.checkpoint, None);
        tables.swap(self.name(), new.table.clone());
        // A copy in progress is of the table that was replaced; and a wrong snapshot may be the reason for the rebuild,
        // so that a new one must be made.
        self.snapshot_copy.set_replaced();
        info!(model = self.name(), checkpoint = self.checkpoint.0, "rebuilt and swapped");
        true
    }

    fn fold_or_stop(&mut self, batch: &[Recorded]) {
        if let Err(e) = self.fold(batch) {
            let seq = e.seq;
            let cause = format!("{:#}", anyhow::Error::from(e.source));
            error!(model = self.name(), seq = seq.0, cause, "a projection stopped: fix it and start again");
            self.stopped = Some(format!("at sequence {seq}: {cause}"));
        }
    }

    /// Folds the events of a batch that follow the model's checkpoint; all of them or, on failure, none.
    pub(crate) fn fold(&mut self, batch: &[Recorded]) -> Result<(), ModelError> {
        let model = self.name();
        let mut rows = WriteBatch::copied(&self.table, &self.snapshot_copy);
        let (mut at, mut leaf) = (self.checkpoint, None);
        for recorded in batch {
            // Skips events that are already folded, and those after a gap.
            if recorded.seq != at.next() {
                continue;
            }
            let taken = match recorded.event() {
                Some(event) => self.projection.apply(&mut rows, recorded, event),
                None => self.projection.quarantined(&mut rows, recorded),
            };
            taken.map_err(|source| ModelError { model, seq: recorded.seq, source })?;
            (at, leaf) = (recorded.seq, Some(recorded.leaf));
        }
        if at > self.checkpoint {
            rows.commit_of(at, leaf).map_err(|source| ModelError { model, seq: at, source })?;
            self.checkpoint = at;
        }
        Ok(())
    }
}
