//! Time travel: shows the market, a job, a machine or an account as it was after a past event.
//!
//! A job, a machine or an account is folded from its own trail. The trail is found in the timeline (the model of
//! trails). The whole market is folded from the log. Such a fold keeps snapshots of the past market, and later folds
//! begin at the nearest snapshot. Operators can query the progress of a fold.

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use futures_util::{StreamExt as _, TryStreamExt as _};
use gpubnb_events::{Aggregate, Event, Recorded, Seq};
use gpubnb_log::{Log, ReadError};
use gpubnb_model::{
    self, Projection,
    balances::{self, Balances},
    figures::{FIGURES_KEY, MarketFigures},
    machines::{self, Machines},
    timeline,
};
use gpubnb_query::view::{
    MachineState, TrailEvent,
    ops::{PastMarket, PastRow, Progress},
};
use gpubnb_store::{self, Database, StoreError, Table, WriteBatch};
use tokio::{sync::Mutex as AsyncMutex, task::JoinError};

use super::background::Background;

/// The first number of events between two snapshots. The number is doubled when there are too many snapshots.
const FIRST_SPACING: u64 = 20_000;
/// The most snapshots that are kept.
const MAX_SNAPSHOTS: usize = 64;
/// The most finished answers that are kept.
const MAX_ANSWERS: usize = 16;
/// The cache of the database for time travel, MiB.
const CACHE_MIB: u64 = 8;
/// The most machines in an answer.
const MAX_MACHINES: usize = 50;
/// The most events that are read at the same time.
const CONCURRENT_READS: usize = 32;
/// The most events of a trail that is folded for a query.
const MAX_FOLDED: u32 = 20_000;
/// The most events of a trail in an answer.
const MAX_TRAIL: usize = 200;

/// The reason why time travel failed.
#[derive(Debug, thiserror::Error)]
pub enum TravelError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log could not be read.
    #[error(transparent)]
    Log(#[from] ReadError),
    /// The projector is shutting down.
    #[error("the projector is stopping")]
    Stopping,
    /// The thread of the fold ended early.
    #[error("the fold of the past market ended early")]
    Ended(#[from] JoinError),
    /// The trail is too long to be folded for a query.
    #[error("its trail has more than {MAX_FOLDED} events: use `gpubnb-projector show --from-log`, which folds the log")]
    TooLong,
}

/// Computes the past states of the market and of single rows. Clones share the database and the snapshots.
#[derive(Clone)]
pub struct PastStates {
    log: Log,
    db: Database,
    background: Background,
    snapshots: Arc<Mutex<MarketSnapshots>>,
    /// Locked while the market is folded. Only one fold runs at a time, so that each fold can use earlier snapshots.
    fold_lock: Arc<AsyncMutex<()>>,
    progress: Arc<Mutex<Option<Progress>>>,
    /// The last answers, oldest first.
    answers: Arc<Mutex<VecDeque<PastMarket>>>,
}

/// The snapshots of past markets.
struct MarketSnapshots {
    /// The least number of events between two snapshots.
    spacing: u64,
    /// The table of each snapshot, by the last folded sequence.
    tables: BTreeMap<Seq, Table>,
}

/// The models that a past market consists of. They share one table, so no two of them use the same first letter in
/// their keys.
fn market_models() -> [Box<dyn Projection>; 3] {
    [Box::new(Machines), Box::new(MarketFigures), Box::new(Balances)]
}

impl PastStates {
    /// Opens an empty database at `path`. The database is deleted when the last clone is dropped.
    pub fn open(log: Log, path: &Path, background: Background) -> Result<Self, StoreError> {
        let db = Database::scratch(path, CACHE_MIB)?;
        let snapshots = MarketSnapshots { spacing: FIRST_SPACING, tables: BTreeMap::new() };
        let (snapshots, progress) = (Arc::new(Mutex::new(snapshots)), Arc::default());
        Ok(Self { log, db, background, snapshots, fold_lock: Arc::default(), progress, answers: Arc::default() })
    }

    /// The progress of the fold that is running. `None` if no fold is running.
    pub fn progress(&self) -> Option<Progress> {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn snapshots(&self) -> MutexGuard<'_, MarketSnapshots> {
        self.snapshots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The market as it was after the event `seq`.
    pub async fn market(&self, seq: Seq) -> Result<PastMarket, TravelError> {
        let _lock = self.fold_lock.lock().await;
        // The same query may have come while the fold was running. Its answer is here now.
        if let Some(answer) = self.answers().iter().find(|market| market.seq == seq) {
            return Ok(answer.clone());
        }
        let this = self.clone();
        let folding = self.background.spawn(async move { this.fold_and_keep(seq).await });
        folding.await?.ok_or(TravelError::Stopping)?
    }

    /// Folds the market up to the event `seq`, and keeps the answer for later queries.
    async fn fold_and_keep(&self, seq: Seq) -> Result<PastMarket, TravelError> {
        let table = self.new_table()?;
        let market = self.market_after(seq, &table).await;
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.db.drop_table(&table)?;
        let market = market?;
        let mut answers = self.answers();
        answers.push_back(market.clone());
        if answers.len() > MAX_ANSWERS {
            answers.pop_front();
        }
        Ok(market)
    }

    fn answers(&self) -> MutexGuard<'_, VecDeque<PastMarket>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Folds the market up to the event `seq` into `table`, and reads the answer from the table.
    async fn market_after(&self, seq: Seq, table: &Table) -> Result<PastMarket, TravelError> {
        self.fold_until(seq, table).await?;
        let event = match seq {
            // At sequence zero, before the first event, there is no event to show.
            Seq::ZERO => None,
            seq => self.log.get(seq).await?,
        };
        Ok(read_market(table, seq, event.as_ref().and_then(TrailEvent::from_recorded))?)
    }

    /// Folds the market into an empty table, up to the event `seq`.
    async fn fold_until(&self, seq: Seq, table: &Table) -> Result<(), TravelError> {
        let before = self.snapshots().tables.range(..=seq).next_back().map(|(seq, table)| (*seq, table.clone()));
        let mut at = Seq::ZERO;
        if let Some((snapshot, rows)) = before {
            table.copy_from(&rows)?;
            at = snapshot;
        }
        let (models, from, began) = (market_models(), at, Instant::now());
        let mut follower = self.log.follow(at.next());
        while at < seq {
            let mut batch = follower.next_batch().await;
            batch.retain(|r| r.seq <= seq);
            let Some(last) = batch.last().map(|r| r.seq) else { break };
            for model in &models {
                let mut rows = WriteBatch::new(table);
                for (recorded, event) in batch.iter().filter_map(|r| Some((r, r.event()?))) {
                    model.apply(&mut rows, recorded, event)?;
                }
                rows.commit(last)?;
            }
            at = last;
            self.keep_snapshot(at, table)?;
            // Lets a shutdown interrupt the fold. The other awaits may never yield if the broker is fast.
            tokio::task::yield_now().await;
            let (done, until) = (Seq(at.0 - from.0), Seq(seq.0 - from.0));
            let done = Progress::since(began.elapsed(), Seq::ZERO, done, until);
            *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
        }
        Ok(())
    }

    /// Creates an empty table with a unique name.
    fn new_table(&self) -> Result<Table, StoreError> {
        let name = gpubnb_events::CommandId::generate().to_string();
        self.db.table(name)
    }

    /// Keeps a snapshot of the table, unless there is another snapshot within `spacing` events. If there are too many
    /// snapshots, removes every second one.
    fn keep_snapshot(&self, at: Seq, table: &Table) -> Result<(), StoreError> {
        let mut snapshots = self.snapshots();
        let is_near = |other: Option<&Seq>| other.is_some_and(|other| other.0.abs_diff(at.0) < snapshots.spacing);
        if is_near(snapshots.tables.range(..=at).next_back().map(|(seq, _)| seq))
            || is_near(snapshots.tables.range(at..).next().map(|(seq, _)| seq))
            || at.0 < snapshots.spacing
        {
            return Ok(());
        }
        let copy = self.new_table()?;
        copy.copy_from(table)?;
        snapshots.tables.insert(at, copy);
        if snapshots.tables.len() > MAX_SNAPSHOTS {
            snapshots.spacing *= 2;
            let odd: Vec<Seq> = snapshots.tables.keys().copied().skip(1).step_by(2).collect();
            for seq in odd {
                if let Some(table) = snapshots.tables.remove(&seq) {
                    self.db.drop_table(&table)?;
                }
            }
        }
        Ok(())
    }

    /// The row of a job, a machine or an account as it was after the event `seq`. The row is folded from the trail.
    pub async fn row(&self, timeline: &Table, of: Aggregate, seq: Seq) -> Result<PastRow, TravelError> {
        let sequences = sequences(timeline, of, seq)?;
        let mut trail = self.read(sequences).await?;
        let mut shown: Vec<_> =
            trail.iter().rev().take(MAX_TRAIL).rev().filter_map(TrailEvent::from_recorded).collect();
        // The answer has no event bodies. An operator can query each event by its sequence.
        for event in &mut shown {
            event.body = serde_json::Value::Null;
        }
        let (projection, _) = gpubnb_model::model_of_aggregate(of);
        if let Aggregate::Machine(_) = of {
            // A machine's row also counts the reports of its jobs. These reports are only in the jobs' trails.
            let jobs = trail.iter().filter_map(|r| match r.event()? {
                Event::JobAssigned(e) => Some(e.job),
                _ => None,
            });
            let mut all: Vec<Seq> = trail.iter().map(|r| r.seq).collect();
            for job in jobs {
                all.extend(self::sequences(timeline, Aggregate::Job(job), seq)?);
                if all.len() > MAX_FOLDED as usize {
                    return Err(TravelError::TooLong);
                }
            }
            all.sort_unstable();
            all.dedup();
            trail = self.read(all).await?;
        }
        let table = self.new_table()?;
        let mut rows = WriteBatch::new(&table);
        for (recorded, event) in trail.iter().filter_map(|r| Some((r, r.event()?))) {
            projection.apply(&mut rows, recorded, event)?;
        }
        rows.commit(seq)?;
        let row = gpubnb_model::view_of_row(&table, of)?;
        self.db.drop_table(&table)?;
        Ok(PastRow { seq, row, trail: shown })
    }

    /// Reads events from the log by their sequences.
    async fn read(&self, sequences: Vec<Seq>) -> Result<Vec<Recorded>, TravelError> {
        let read = futures_util::stream::iter(sequences).map(|seq| self.log.get(seq)).buffered(CONCURRENT_READS);
        let read: Vec<Option<Recorded>> = read.try_collect().await?;
        Ok(read.into_iter().flatten().collect())
    }
}

/// The sequences of a trail up to the event `until`.
fn sequences(timeline: &Table, of: Aggregate, until: Seq) -> Result<Vec<Seq>, TravelError> {
    let mut found = timeline::sequences(timeline, of, 0, MAX_FOLDED + 1)?;
    found.retain(|seq| *seq <= until);
    if found.len() > MAX_FOLDED as usize {
        return Err(TravelError::TooLong);
    }
    Ok(found)
}

/// Reads the answer from the table of a past market. `event` is the event `seq`.
fn read_market(table: &Table, seq: Seq, event: Option<TrailEvent>) -> Result<PastMarket, StoreError> {
    let mut figures: gpubnb_query::view::Figures = gpubnb_store::get(table, FIGURES_KEY)?.unwrap_or_default();
    figures.cheapest = machines::cheapest(table)?;
    let ledger = balances::sums(table)?.into();
    let (mut shown, mut machine_count) = (Vec::new(), 0);
    for row in machines::rows_after(table, None) {
        let row = row?;
        if row.state() == MachineState::Delisted {
            continue;
        }
        machine_count += 1;
        if shown.len() < MAX_MACHINES {
            shown.push(row);
        }
    }
    Ok(PastMarket { seq, event, figures, ledger, machines: shown.into_iter().map(Into::into).collect(), machine_count })
}
