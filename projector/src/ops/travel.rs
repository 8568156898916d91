//! Time travel: the market, a job, a machine or an account as it was after any event of the log.
//!
//! A job, a machine or an account is folded from its own trail, which the timeline knows. The whole market is folded
//! from the nearest snapshot that an earlier journey left; meanwhile the progress can be asked for.

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
    figures::{FIGURES, MarketFigures},
    machines::{self, Machines},
    timeline,
};
use gpubnb_query::view::{
    MachineState, TrailEvent,
    ops::{MarketThen, Progress, RowThen},
};
use gpubnb_store::{self, Database, StoreError, Table, WriteBatch};
use tokio::{sync::Mutex as AsyncMutex, task::JoinError};

use super::background::Background;

/// Events between two snapshots at first. The number doubles when there are too many snapshots.
const SPACING: u64 = 20_000;
const MOST_SNAPSHOTS: usize = 64;
/// Most finished answers that are kept.
const MOST_BEEN: usize = 16;
/// The cache of the database for time travel, MiB.
const CACHE_MIB: u64 = 8;
/// Most machines in the answer.
const MACHINES_SHOWN: usize = 50;
/// Events read back at the same time.
const READ_AT_ONCE: usize = 32;
/// The longest trail that is folded while somebody waits.
const MOST_EVENTS: u32 = 20_000;
/// Most events of a trail in the answer.
const TRAIL_SHOWN: usize = 200;

/// The reason why a journey failed.
#[derive(Debug, thiserror::Error)]
pub enum TravelError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log could not be read.
    #[error(transparent)]
    Log(#[from] ReadError),
    /// The process is about to end.
    #[error("the projector is stopping")]
    Stopping,
    /// The task of the journey ended early.
    #[error("the journey ended early")]
    Ended(#[from] JoinError),
    /// The trail is too long to be folded while somebody waits.
    #[error(
        "its trail has more than {MOST_EVENTS} events: use `gpubnb-projector show --from-log`, which folds the log"
    )]
    TooLong,
}

/// Folds the past. Clones share the database and the snapshots.
#[derive(Clone)]
pub struct Traveller {
    log: Log,
    db: Database,
    background: Background,
    snapshots: Arc<Mutex<MarketSnapshots>>,
    /// One journey is made at a time; the next one finds the snapshots of those before.
    turn: Arc<AsyncMutex<()>>,
    progress: Arc<Mutex<Option<Progress>>>,
    /// The last answers.
    been: Arc<Mutex<VecDeque<MarketThen>>>,
}

struct MarketSnapshots {
    spacing: u64,
    taken: BTreeMap<Seq, Table>,
}

/// The models that make up a market. They share one table, in which the first letter of a key tells them apart.
fn market_models() -> [Box<dyn Projection>; 3] {
    [Box::new(Machines), Box::new(MarketFigures), Box::new(Balances)]
}

impl Traveller {
    /// Opens an empty database for time travel, which is removed at the end.
    pub fn open(log: Log, path: &Path, background: Background) -> Result<Self, StoreError> {
        let db = Database::scratch(path, CACHE_MIB)?;
        let snapshots = MarketSnapshots { spacing: SPACING, taken: BTreeMap::new() };
        let (snapshots, progress) = (Arc::new(Mutex::new(snapshots)), Arc::default());
        Ok(Self { log, db, background, snapshots, turn: Arc::default(), progress, been: Arc::default() })
    }

    /// The progress of the journey that is being made, if there is one.
    pub fn progress(&self) -> Option<Progress> {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn snapshots(&self) -> MutexGuard<'_, MarketSnapshots> {
        self.snapshots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The market after an event.
    pub async fn market(&self, seq: Seq) -> Result<MarketThen, TravelError> {
        let _turn = self.turn.lock().await;
        // An operator who asks again while the journey is made finds its answer here.
        if let Some(been) = self.been().iter().find(|then| then.seq == seq) {
            return Ok(been.clone());
        }
        let own = self.clone();
        let journey = self.background.spawn(async move { own.journey(seq).await });
        journey.await?.ok_or(TravelError::Stopping)?
    }

    async fn journey(&self, seq: Seq) -> Result<MarketThen, TravelError> {
        let table = self.fresh()?;
        let then = self.look(seq, &table).await;
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.db.drop_table(&table)?;
        let then = then?;
        let mut been = self.been();
        been.push_back(then.clone());
        if been.len() > MOST_BEEN {
            been.pop_front();
        }
        Ok(then)
    }

    fn been(&self) -> MutexGuard<'_, VecDeque<MarketThen>> {
        self.been.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn look(&self, seq: Seq, table: &Table) -> Result<MarketThen, TravelError> {
        self.go(seq, table).await?;
        let event = match seq {
            // At sequence zero, before the first event, there is no event to show.
            Seq::ZERO => None,
            seq => self.log.get(seq).await?,
        };
        Ok(market_in(table, seq, event.as_ref().and_then(TrailEvent::of))?)
    }

    /// Folds the market into a table, up to an event.
    async fn go(&self, seq: Seq, table: &Table) -> Result<(), TravelError> {
        let before = self.snapshots().taken.range(..=seq).next_back().map(|(seq, table)| (*seq, table.clone()));
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
            self.keep(at, table)?;
            // A shutdown cuts the journey off at this await; without it, a fast broker would leave none.
            tokio::task::yield_now().await;
            let (done, until) = (Seq(at.0 - from.0), Seq(seq.0 - from.0));
            let done = Progress::since(began.elapsed(), Seq::ZERO, done, until);
            *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
        }
        Ok(())
    }

    fn fresh(&self) -> Result<Table, StoreError> {
        let name = gpubnb_events::CommandId::generate().to_string();
        self.db.table(name)
    }

    /// Keeps a snapshot of the table, unless another snapshot is near.
    fn keep(&self, at: Seq, table: &Table) -> Result<(), StoreError> {
        let mut snapshots = self.snapshots();
        let near = |other: Option<&Seq>| other.is_some_and(|other| other.0.abs_diff(at.0) < snapshots.spacing);
        if near(snapshots.taken.range(..=at).next_back().map(|(seq, _)| seq))
            || near(snapshots.taken.range(at..).next().map(|(seq, _)| seq))
            || at.0 < snapshots.spacing
        {
            return Ok(());
        }
        let kept = self.fresh()?;
        kept.copy_from(table)?;
        snapshots.taken.insert(at, kept);
        if snapshots.taken.len() > MOST_SNAPSHOTS {
            snapshots.spacing *= 2;
            let odd: Vec<Seq> = snapshots.taken.keys().copied().skip(1).step_by(2).collect();
            for seq in odd {
                if let Some(table) = snapshots.taken.remove(&seq) {
                    self.db.drop_table(&table)?;
                }
            }
        }
        Ok(())
    }

    /// A job, a machine or an account after an event, folded from its trail.
    pub async fn row(&self, timeline: &Table, of: Aggregate, seq: Seq) -> Result<RowThen, TravelError> {
        let sequences = sequences(timeline, of, seq)?;
        let mut trail = self.read(sequences).await?;
        let mut shown: Vec<_> = trail.iter().rev().take(TRAIL_SHOWN).rev().filter_map(TrailEvent::of).collect();
        // The bodies are left out: each event can be asked for by its sequence.
        for event in &mut shown {
            event.body = serde_json::Value::Null;
        }
        let (projection, _) = gpubnb_model::of_aggregate(of);
        if let Aggregate::Machine(_) = of {
            // A machine's row also counts the reports of its jobs, which are in the jobs' trails only.
            let jobs = trail.iter().filter_map(|r| match r.event()? {
                Event::JobAssigned(e) => Some(e.job),
                _ => None,
            });
            let mut all: Vec<Seq> = trail.iter().map(|r| r.seq).collect();
            for job in jobs {
                all.extend(self::sequences(timeline, Aggregate::Job(job), seq)?);
                if all.len() > MOST_EVENTS as usize {
                    return Err(TravelError::TooLong);
                }
            }
            all.sort_unstable();
            all.dedup();
            trail = self.read(all).await?;
        }
        let table = self.fresh()?;
        let mut rows = WriteBatch::new(&table);
        for (recorded, event) in trail.iter().filter_map(|r| Some((r, r.event()?))) {
            projection.apply(&mut rows, recorded, event)?;
        }
        rows.commit(seq)?;
        let row = gpubnb_model::answer(&table, of)?;
        self.db.drop_table(&table)?;
        Ok(RowThen { seq, row, trail: shown })
    }

    async fn read(&self, sequences: Vec<Seq>) -> Result<Vec<Recorded>, TravelError> {
        let read = futures_util::stream::iter(sequences).map(|seq| self.log.get(seq)).buffered(READ_AT_ONCE);
        let read: Vec<Option<Recorded>> = read.try_collect().await?;
        Ok(read.into_iter().flatten().collect())
    }
}

fn sequences(timeline: &Table, of: Aggregate, until: Seq) -> Result<Vec<Seq>, TravelError> {
    let mut found = timeline::sequences(timeline, of, 0, MOST_EVENTS + 1)?;
    found.retain(|seq| *seq <= until);
    if found.len() > MOST_EVENTS as usize {
        return Err(TravelError::TooLong);
    }
    Ok(found)
}

fn market_in(table: &Table, seq: Seq, event: Option<TrailEvent>) -> Result<MarketThen, StoreError> {
    let mut figures: gpubnb_query::view::Figures = gpubnb_store::get(table, FIGURES)?.unwrap_or_default();
    figures.cheapest = machines::cheapest(table)?;
    let ledger = balances::sums(table)?.into();
    let (mut shown, mut machine_count) = (Vec::new(), 0);
    for row in machines::after(table, None) {
        let row = row?;
        if row.state() == MachineState::Delisted {
            continue;
        }
        machine_count += 1;
        if shown.len() < MACHINES_SHOWN {
            shown.push(row);
        }
    }
    Ok(MarketThen { seq, event, figures, ledger, machines: shown.into_iter().map(Into::into).collect(), machine_count })
}
