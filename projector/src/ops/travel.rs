//! Time travel: the market, a job, a machine or an account as it was after any event of the log.
//!
//! One thing is folded from its own trail, which the timeline knows. The whole market is folded from the nearest
//! snapshot that an earlier journey left; the way there is told while it is made.

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use futures_util::{StreamExt as _, TryStreamExt as _};
use gpubnb_events::{Aggregate, Event, Log, Recorded, Seq};
use tokio::sync::Mutex as Turn;

use super::background::Background;
use crate::{
    database::Database,
    model::{
        Projection,
        balances::{self, Balances},
        figures::{FIGURES, MarketFigures},
        jobs::{self, Jobs},
        ledger::{self, Ledger},
        machines::{self, Machines},
        timeline,
    },
    query::trail_event,
    store::{self, Rows, StoreError},
    tree::Tree,
    view::{
        MachineState,
        ops::{LedgerSums, MarketThen, Progress, RowThen},
    },
};

/// Events between two snapshots, at first; it doubles when there are too many.
const SPACING: u64 = 20_000;
const MOST_SNAPSHOTS: usize = 64;
/// Markets that are kept as they were told.
const MOST_BEEN: usize = 16;
/// Cache of the database that it is folded in, MiB.
const CACHE_MIB: u64 = 8;
/// Machines of the market that are told of.
const MACHINES_TOLD: usize = 50;
/// Events read back at the same time.
const READ_AT_ONCE: usize = 32;
/// Longest trail that is folded.
const MOST_EVENTS: u32 = 20_000;
/// Events of a trail that are told of.
const TRAIL_TOLD: usize = 200;

/// Why there is no way there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TravelError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0}")]
    Log(String),
    #[error(
        "its trail has more than {MOST_EVENTS} events: use `gpubnb-projector show --from-log`, which reads the whole log"
    )]
    TooLong,
}

/// What was folded before, and where.
#[derive(Clone)]
pub(crate) struct Traveller {
    log: Log,
    db: Database,
    background: Background,
    snapshots: Arc<Mutex<Snapshots>>,
    /// One journey at a time; who waits finds what it left.
    turn: Arc<Turn<()>>,
    progress: Arc<Mutex<Option<Progress>>>,
    /// Where it was last.
    been: Arc<Mutex<VecDeque<MarketThen>>>,
}

struct Snapshots {
    spacing: u64,
    taken: BTreeMap<Seq, Tree>,
}

/// The models a market is made of, in one tree: their keys are told apart by a letter before them.
fn market_models() -> [Box<dyn Projection>; 3] {
    [Box::new(Machines), Box::new(MarketFigures), Box::new(Balances)]
}

impl Traveller {
    /// Opens a database for what is folded; it is empty, and gone at the end.
    pub(crate) fn open(log: Log, path: &Path, background: Background) -> Result<Self, StoreError> {
        let db = Database::scratch(path, CACHE_MIB)?;
        let snapshots = Snapshots { spacing: SPACING, taken: BTreeMap::new() };
        let (snapshots, progress) = (Arc::new(Mutex::new(snapshots)), Arc::default());
        Ok(Self { log, db, background, snapshots, turn: Arc::default(), progress, been: Arc::default() })
    }

    /// How far the journey is that is being made.
    pub(crate) fn progress(&self) -> Option<Progress> {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn snapshots(&self) -> MutexGuard<'_, Snapshots> {
        self.snapshots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The market after an event.
    pub(crate) async fn market(&self, seq: Seq) -> Result<MarketThen, TravelError> {
        let _turn = self.turn.lock().await;
        // Whoever looks again while the way is made finds it made.
        if let Some(been) = self.been().iter().find(|then| then.seq == seq) {
            return Ok(been.clone());
        }
        let own = self.clone();
        let journey = self.background.spawn(async move { own.journey(seq).await });
        match journey.await {
            Ok(Some(then)) => then,
            Ok(None) => Err(TravelError::Log("the projector stops".to_owned())),
            Err(e) => Err(TravelError::Log(e.to_string())),
        }
    }

    async fn journey(&self, seq: Seq) -> Result<MarketThen, TravelError> {
        let tree = self.fresh()?;
        let then = self.look(seq, &tree).await;
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.db.drop_tree(&tree)?;
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

    async fn look(&self, seq: Seq, tree: &Tree) -> Result<MarketThen, TravelError> {
        self.go(seq, tree).await?;
        let event = match seq {
            // Before the first event there is none.
            Seq::ZERO => None,
            seq => self.log.get(seq).await.map_err(|e| TravelError::Log(e.to_string()))?,
        };
        Ok(market_in(tree, seq, event.as_ref().and_then(trail_event))?)
    }

    /// Folds the market into a tree, up to an event.
    async fn go(&self, seq: Seq, tree: &Tree) -> Result<(), TravelError> {
        let before = self.snapshots().taken.range(..=seq).next_back().map(|(seq, tree)| (*seq, tree.clone()));
        let mut at = Seq::ZERO;
        if let Some((snapshot, rows)) = before {
            tree.copy_from(&rows)?;
            at = snapshot;
        }
        let (models, from, began) = (market_models(), at, Instant::now());
        let mut follower = self.log.follow(at.next());
        while at < seq {
            let mut batch = follower.next_batch().await;
            batch.retain(|r| r.seq <= seq);
            let Some(last) = batch.last().map(|r| r.seq) else { break };
            for model in &models {
                let mut rows = Rows::new(tree);
                for (recorded, event) in batch.iter().filter_map(|r| Some((r, r.event()?))) {
                    model.apply(&mut rows, recorded, event)?;
                }
                rows.commit(last)?;
            }
            at = last;
            self.keep(at, tree)?;
            // It can be cut off here.
            tokio::task::yield_now().await;
            let (done, until) = (Seq(at.0 - from.0), Seq(seq.0 - from.0));
            let done = Progress::since(began.elapsed(), Seq::ZERO, done, until);
            *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
        }
        Ok(())
    }

    fn fresh(&self) -> Result<Tree, StoreError> {
        let name = gpubnb_events::CommandId::generate().to_string();
        self.db.tree(name)
    }

    /// Keeps a copy, if the last one is far enough behind.
    fn keep(&self, at: Seq, tree: &Tree) -> Result<(), StoreError> {
        let mut snapshots = self.snapshots();
        let near = |other: Option<&Seq>| other.is_some_and(|other| other.0.abs_diff(at.0) < snapshots.spacing);
        if near(snapshots.taken.range(..=at).next_back().map(|(seq, _)| seq))
            || near(snapshots.taken.range(at..).next().map(|(seq, _)| seq))
            || at.0 < snapshots.spacing
        {
            return Ok(());
        }
        let kept = self.fresh()?;
        kept.copy_from(tree)?;
        snapshots.taken.insert(at, kept);
        if snapshots.taken.len() > MOST_SNAPSHOTS {
            snapshots.spacing *= 2;
            let odd: Vec<Seq> = snapshots.taken.keys().copied().skip(1).step_by(2).collect();
            for seq in odd {
                if let Some(tree) = snapshots.taken.remove(&seq) {
                    self.db.drop_tree(&tree)?;
                }
            }
        }
        Ok(())
    }

    /// One thing after an event, folded from its trail.
    pub(crate) async fn row(&self, timeline: &Tree, of: Aggregate, seq: Seq) -> Result<RowThen, TravelError> {
        let sequences = sequences(timeline, of, seq)?;
        let mut trail = self.read(sequences).await?;
        let mut told: Vec<_> = trail.iter().rev().take(TRAIL_TOLD).rev().filter_map(trail_event).collect();
        // Where each body stands, its sequence says.
        for event in &mut told {
            event.body = serde_json::Value::Null;
        }
        let (projection, key): (Box<dyn Projection>, _) = match of {
            Aggregate::Job(id) => (Box::new(Jobs), jobs::row_key(id)),
            Aggregate::Machine(id) => (Box::new(Machines), machines::row_key(id)),
            Aggregate::Account(id) => (Box::new(Ledger), ledger::balance_key(id)),
        };
        if let Aggregate::Machine(_) = of {
            // What a job did at a machine is in the job's trail.
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
        let tree = self.fresh()?;
        let mut rows = Rows::new(&tree);
        for (recorded, event) in trail.iter().filter_map(|r| Some((r, r.event()?))) {
            projection.apply(&mut rows, recorded, event)?;
        }
        rows.commit(seq)?;
        let row = store::get(&tree, &key)?;
        self.db.drop_tree(&tree)?;
        Ok(RowThen { seq, row, trail: told })
    }

    async fn read(&self, sequences: Vec<Seq>) -> Result<Vec<Recorded>, TravelError> {
        let read = futures_util::stream::iter(sequences).map(|seq| self.log.get(seq)).buffered(READ_AT_ONCE);
        let read: Vec<Option<Recorded>> = read.try_collect().await.map_err(|e| TravelError::Log(e.to_string()))?;
        Ok(read.into_iter().flatten().collect())
    }
}

fn sequences(timeline: &Tree, of: Aggregate, until: Seq) -> Result<Vec<Seq>, TravelError> {
    let mut found = timeline::sequences(timeline, of, 0, MOST_EVENTS + 1)?;
    found.retain(|seq| *seq <= until);
    if found.len() > MOST_EVENTS as usize {
        return Err(TravelError::TooLong);
    }
    Ok(found)
}

fn market_in(tree: &Tree, seq: Seq, event: Option<crate::view::TrailEvent>) -> Result<MarketThen, StoreError> {
    let mut figures: crate::view::Figures = store::get(tree, FIGURES)?.unwrap_or_default();
    figures.cheapest = machines::cheapest(tree)?;
    let ledger: LedgerSums = balances::sums(tree)?;
    let (mut told, mut machine_count) = (Vec::new(), 0);
    for row in machines::after(tree, None) {
        let row = row?;
        if row.state() == MachineState::Delisted {
            continue;
        }
        machine_count += 1;
        if told.len() < MACHINES_TOLD {
            told.push(row);
        }
    }
    Ok(MarketThen { seq, event, figures, ledger, machines: told, machine_count })
}
