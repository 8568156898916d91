//! Work through the whole log beside the service: rebuilding a model, and verifying all of them. One of each at a time,
//! each in its own tree or database, at the pace the machine allows; what answers meanwhile is not touched.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _};
use gpubnb_events::{Clock as _, Log, Recorded, Seq, SystemClock, stream::CHECKPOINTS};
use tokio::sync::watch;

use super::{background::Background, invariants::Invariants};
use crate::{
    database::Database,
    fold::{Adoption, BATCH, Model, Trees},
    heads::{self, LATEST},
    model::{
        self, Projection as _,
        merkle::{self, Changed, Kept, LeavesNow, Merkle, roots},
    },
    query::Applied,
    store::{self, StoreError},
    tree::Tree,
    view::ops::{ModelCheck, Progress, Rebuild, Verification},
};

/// A rebuilt model is handed over when it is so near.
const NEAR: u64 = 1_000;
/// Most keys and sequences that are told of.
const TOLD: usize = 100;
/// Most messages that are another now, of which places are looked for.
const MOST_CHANGED: usize = 1_000;
/// Rows that may differ while both sides move; more of them is a difference for sure.
const MOST_SUSPECTS: usize = 50_000;
/// Rows that are compared without a pause.
const PAUSE: u64 = 10_000;
/// How often both sides are brought to the same sequence before it is given up.
const TRIES: usize = 200;
/// Longest silence of the broker where there is more to read.
const SILENCE: Duration = Duration::from_secs(60);
/// Signed heads read at the same time.
const HEADS_AT_ONCE: usize = 32;
/// Cache of the database that a verification folds into, MiB.
const CACHE_MIB: u64 = 8;

/// What runs, and what ran last.
#[derive(Clone)]
pub(crate) struct Work {
    pub(crate) log: Log,
    pub(crate) db: Database,
    pub(crate) trees: Trees,
    pub(crate) adoption: Adoption,
    pub(crate) applied: watch::Receiver<Applied>,
    /// Whose signed heads are believed.
    pub(crate) keys: Vec<String>,
    /// Where a verification has its database.
    pub(crate) scratch: PathBuf,
    pub(crate) background: Background,
    pub(crate) state: Arc<Mutex<State>>,
}

/// What operators see of it.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) rebuilds: BTreeMap<&'static str, Rebuild>,
    pub(crate) verification: Option<Verification>,
}

/// Why something does not begin.
pub(crate) enum NotNow {
    /// There is no such model.
    Unknown,
    /// One runs already.
    Runs,
}

/// Counts what is done.
struct Meter {
    began: Instant,
    from: Seq,
}

impl Meter {
    fn start(from: Seq) -> Self {
        Self { began: Instant::now(), from }
    }

    fn progress(&self, at: Seq, until: Seq) -> Progress {
        Progress::since(self.began.elapsed(), self.from, at, until)
    }
}

impl Work {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on with the rebuilds that were cut off when the process ended.
    pub(crate) fn go_on(&self) -> Result<(), StoreError> {
        for projection in model::all() {
            if self.db.is_rebuilding(projection.name())? && self.rebuild(projection.name()).is_ok() {
                tracing::info!(model = projection.name(), "a rebuild that was cut off goes on");
            }
        }
        Ok(())
    }

    /// Begins to rebuild a model beside the one that answers.
    pub(crate) fn rebuild(&self, name: &str) -> Result<(), NotNow> {
        let projection = model::all().into_iter().find(|p| p.name() == name).ok_or(NotNow::Unknown)?;
        let name = projection.name();
        let mut state = self.state();
        if state.rebuilds.get(name).is_some_and(|r| r.swapped_at.is_none() && r.failed.is_none()) {
            return Err(NotNow::Runs);
        }
        let progress = Progress { at: Seq::ZERO, until: self.applied.borrow().seq, per_second: 0 };
        state.rebuilds.insert(name, Rebuild { progress, swapped_at: None, failed: None });
        drop(state);
        let work = self.clone();
        self.background.spawn(async move {
            let rebuilt = work.rebuilt(projection).await.and_then(|()| Ok(work.db.end_rebuild(name)?));
            if rebuilt.is_err()
                && let Err(e) = work.db.end_rebuild(name)
            {
                tracing::warn!(error = %e, model = name, "a rebuild that was given up is tried again at the next start");
            }
            if let Some(rebuild) = work.state().rebuilds.get_mut(name) {
                match rebuilt {
                    Ok(()) => {
                        rebuild.progress.at = rebuild.progress.until;
                        rebuild.swapped_at = Some(SystemClock.now());
                    }
                    Err(why) => rebuild.failed = Some(why.to_string()),
                }
            }
        });
        Ok(())
    }

    async fn rebuilt(&self, projection: Box<dyn model::Projection>) -> anyhow::Result<()> {
        let name = projection.name();
        let current = self.trees.named(name)?;
        let tree = self.db.spare(&*projection, &current)?;
        let mut rebuilt = Model::new(projection, tree.clone())?;
        let from = rebuilt.checkpoint();
        if from > Seq::ZERO {
            tracing::info!(model = name, after = from.0, "a rebuild goes on");
        }
        let (mut follower, meter) = (self.log.follow(from.next()), Meter::start(from));
        // One event at the least is left for the fold that goes on: it is what makes it swap.
        while rebuilt.checkpoint().0 + NEAR < self.last().0 {
            let mut batch = follower.next_batch().await;
            let (read, last) = (batch.len(), self.last());
            batch.retain(|r| r.seq < last);
            // What was cut off is not read again here: the fold that goes on reads it.
            let cut = batch.len() < read;
            fold(&mut rebuilt, &batch)?;
            if cut {
                break;
            }
            let progress = meter.progress(rebuilt.checkpoint(), self.last());
            if let Some(rebuild) = self.state().rebuilds.get_mut(name) {
                rebuild.progress = progress;
            }
        }
        let mut applied = self.applied.clone();
        self.adoption.adopt(rebuilt);
        // The fold goes on with both until they are equally far; then the new one answers.
        loop {
            // In this order: what does not wait any more is swapped, or given up.
            let waits = self.adoption.waits(name);
            if self.trees.named(name)?.name() == tree.name() {
                return Ok(());
            }
            anyhow::ensure!(waits, "it stopped, or could not be swapped in: see the log");
            applied.changed().await?;
        }
    }

    fn last(&self) -> Seq {
        self.applied.borrow().seq
    }

    /// Begins to verify.
    pub(crate) fn verify(&self) -> Result<(), NotNow> {
        let mut state = self.state();
        if state.verification.as_ref().is_some_and(|v| v.ended_at.is_none()) {
            return Err(NotNow::Runs);
        }
        state.verification = Some(Verification {
            began_at: SystemClock.now(),
            progress: Progress { at: Seq::ZERO, until: self.last(), per_second: 0 },
            ended_at: None,
            failed: None,
            models: Vec::new(),
            violations: Vec::new(),
            heads: 0,
            quarantined: Vec::new(),
        });
        drop(state);
        let work = self.clone();
        self.background.spawn(async move {
            let verified = work.verified().await;
            work.note(|v| {
                v.ended_at = Some(SystemClock.now());
                match verified {
                    Ok(models) => v.models = models,
                    Err(why) => v.failed = Some(why.to_string()),
                }
            });
        });
        Ok(())
    }

    fn note(&self, change: impl FnOnce(&mut Verification)) {
        if let Some(verification) = self.state().verification.as_mut() {
            change(verification);
        }
    }

    async fn verified(&self) -> anyhow::Result<Vec<ModelCheck>> {
        let db = Database::scratch(&self.scratch, CACHE_MIB)?;
        let mut replay = Replay::new(self, &db)?;
        let end = self.log.last_seq().await?;
        if end < self.last() {
            replay.models.clear();
            replay.invariants.broken(end.next(), format!("the log ends here; it was folded up to {}", self.last()));
        }
        replay.until(self.last().min(end)).await?;
        // Whatever becomes of the comparison, what was found on the way is told.
        replay.tampered()?;
        let checks = replay.compared().await;
        replay.tampered()?;
        replay.heads().await?;
        checks
    }
}

fn fold(model: &mut Model, batch: &[Recorded]) -> anyhow::Result<()> {
    model.fold(batch).map_err(|(seq, e)| anyhow::anyhow!("{} at sequence {seq}: {e}", model.name()))
}

/// The log folded anew, for comparison.
struct Replay<'a> {
    work: &'a Work,
    models: Vec<Model>,
    invariants: Invariants,
    /// What each message is now, to be compared with what it was when it was folded.
    now: LeavesNow,
    changed: Vec<Changed>,
    follower: gpubnb_events::log::Follower,
    read: Vec<Recorded>,
    at: Seq,
    meter: Meter,
}

impl<'a> Replay<'a> {
    fn new(work: &'a Work, db: &Database) -> Result<Self, StoreError> {
        let models = model::all().into_iter().map(|projection| {
            let tree = db.model(&*projection)?;
            Model::new(projection, tree)
        });
        Ok(Self {
            work,
            models: models.collect::<Result<_, StoreError>>()?,
            invariants: Invariants::default(),
            now: LeavesNow::default(),
            changed: Vec::new(),
            follower: work.log.follow(Seq(1)).over_gaps(),
            read: Vec::new(),
            at: Seq::ZERO,
            meter: Meter::start(Seq::ZERO),
        })
    }

    /// Every model, compared. A gap that is found on the way leaves nothing to compare.
    async fn compared(&mut self) -> anyhow::Result<Vec<ModelCheck>> {
        let (mut checks, mut index) = (Vec::new(), 0);
        while index < self.models.len() {
            checks.push(self.compare(index).await?);
            index += 1;
        }
        Ok(checks)
    }

    /// Folds exactly up to a sequence.
    async fn until(&mut self, until: Seq) -> anyhow::Result<()> {
        while self.at < until {
            if self.read.is_empty() {
                let next = tokio::time::timeout(SILENCE, self.follower.next_batch()).await;
                self.read = next.with_context(|| format!("the broker has nothing after event {}", self.at))?;
            }
            if self.read.first().is_some_and(|r| r.seq > until) {
                self.missing(self.at, until.next());
                self.at = until;
                return Ok(());
            }
            let later = self.read.iter().position(|r| r.seq > until).unwrap_or(self.read.len());
            let rest = self.read.split_off(later.min(BATCH));
            let batch = std::mem::replace(&mut self.read, rest);
            let Some(last) = batch.last().map(|r| r.seq) else { continue };
            self.look_for_gaps(&batch);
            self.models.iter_mut().try_for_each(|model| fold(model, &batch))?;
            for recorded in &batch {
                self.look_at_leaf(recorded)?;
                match recorded.event() {
                    Some(event) => self.invariants.apply(recorded.seq, event),
                    None => self.work.note(|v| {
                        if v.quarantined.len() < TOLD {
                            v.quarantined.push(recorded.seq);
                        }
                    }),
                }
            }
            self.at = last;
            let progress = self.meter.progress(last, until.max(self.work.last()));
            let violations = self.invariants.found().to_vec();
            self.work.note(|v| (v.progress, v.violations) = (progress, violations));
        }
        Ok(())
    }

    /// No fold goes over a gap: from there on the models cannot be compared, and only the rest of the log is looked at.
    fn look_for_gaps(&mut self, batch: &[Recorded]) {
        let before = std::iter::once(self.at).chain(batch.iter().map(|r| r.seq));
        for (before, next) in before.zip(batch.iter().map(|r| r.seq)) {
            self.missing(before, next);
        }
    }

    fn missing(&mut self, before: Seq, next: Seq) {
        for missing in (before.0 + 1..next.0).take(TOLD).map(Seq) {
            self.models.clear();
            self.invariants.broken(missing, "MARKET has this event no more".to_owned());
        }
    }

    /// Compares the log's own tree with the heads that were signed of it, here and at other times.
    async fn heads(&mut self) -> anyhow::Result<()> {
        let violations = self.invariants.found().to_vec();
        self.work.note(|v| v.violations = violations);
        let Some(ours) = self.models.iter().find(|m| m.name() == Merkle.name()).map(|m| m.tree().clone()) else {
            return Ok(());
        };
        let bucket = self.work.log.jetstream().get_key_value(CHECKPOINTS).await;
        let bucket = bucket.context("the signed heads cannot be read: see `CHECKPOINTS` in docs/operating.md")?;
        let latest = heads::get(&bucket, LATEST).await?;
        let newest = latest.as_ref().map_or(0, |head| head.size);
        let heads = futures_util::stream::iter(roots(&ours, 0)).map(|root| async {
            let (size, root) = root?;
            anyhow::Ok((size, root, heads::get(&bucket, &heads::name(size)).await?))
        });
        let mut heads: Vec<_> = heads.buffered(HEADS_AT_ONCE).try_collect().await?;
        if let Some(latest) = latest.filter(|latest| latest.size <= self.at.0) {
            heads.push((newest, gpubnb_events::merkle::root(&Kept(&ours), 0, newest)?, Some(latest)));
        } else if newest > self.at.0 {
            let what = format!("the head of {newest} events was signed, and the log ends before");
            self.invariants.broken(self.at.next(), what);
        }
        let (mut agree, mut before) = (0, 0);
        for (size, root, head) in heads {
            let what = match head {
                // The newest head is signed after all those before it: further ones are still to come.
                None if size > newest => continue,
                None => format!("the head of {size} events, which was signed, is gone"),
                Some(head) if !self.work.keys.contains(&head.key) => {
                    format!("the head of {size} events is signed by {}, which is not believed (--head-key)", head.key)
                }
                Some(head) if head.is_signed() && head.size == size && head.root == gpubnb_events::hex(root) => {
                    (agree, before) = (agree + 1, size);
                    continue;
                }
                Some(_) => format!("from here to {size}, the log is not the one whose head was signed"),
            };
            self.invariants.broken(Seq(before + 1), what);
            break;
        }
        let violations = self.invariants.found().to_vec();
        self.work.note(|v| (v.heads, v.violations) = (agree, violations));
        Ok(())
    }

    /// Looks whether a message is what it was when it was folded; by itself, for no model is folded over a gap.
    fn look_at_leaf(&mut self, recorded: &Recorded) -> anyhow::Result<()> {
        let changed = self.now.push(recorded.seq, recorded.leaf, || self.work.trees.named(Merkle.name()))?;
        self.remember(changed);
        Ok(())
    }

    fn remember(&mut self, changed: Vec<Changed>) {
        let room = MOST_CHANGED.saturating_sub(self.changed.len());
        self.changed.extend(changed.into_iter().take(room));
    }

    /// Says which messages were changed since they were folded, or moved.
    fn tampered(&mut self) -> anyhow::Result<()> {
        let changed = self.now.changed(&self.work.trees.named(Merkle.name())?)?;
        self.remember(changed);
        for (seq, other) in merkle::places(&std::mem::take(&mut self.changed)).take(TOLD) {
            let what = match other {
                Some(other) => format!("it stands where event {other} was when it was folded"),
                None => "it is not what it was when it was folded".to_owned(),
            };
            self.invariants.broken(seq, what);
        }
        Ok(())
    }

    /// Compares a model row by row with the one that answers. That moves on meanwhile: rows that differ are looked at
    /// again when both are at the same sequence.
    async fn compare(&mut self, index: usize) -> anyhow::Result<ModelCheck> {
        let name = self.models[index].name();
        let live = self.work.trees.named(name)?;
        let ours = self.models[index].tree().clone();
        let (rows, mut suspects) = differing(&ours, &live).await?;
        for _ in 0..TRIES {
            let at = store::checkpoint(&live)?;
            self.until(at).await?;
            let mut still = Vec::new();
            for key in &suspects {
                if ours.get(key)? != live.get(key)? {
                    still.push(key.clone());
                }
            }
            // Each batch moves the checkpoint: nothing was written between the two looks.
            if store::checkpoint(&live)? == at {
                let differing = still.iter().take(TOLD).map(|key| key.escape_ascii().to_string()).collect();
                return Ok(ModelCheck { name: name.to_owned(), rows, differing });
            }
            if suspects.len() > still.len() {
                suspects = still;
            }
        }
        anyhow::bail!("{name} changes too fast to be compared: try again when the market is calmer")
    }
}

/// Goes through both trees beside each other: how many rows there are, and the keys of those that differ.
async fn differing(ours: &Tree, live: &Tree) -> anyhow::Result<(u64, Vec<Vec<u8>>)> {
    let (mut left, mut right) = (ours.all(), live.all());
    let (mut a, mut b) = (left.next().transpose()?, right.next().transpose()?);
    let (mut rows, mut suspects) = (0_u64, Vec::new());
    loop {
        if rows % PAUSE == 0 {
            // It can be cut off here.
            tokio::task::yield_now().await;
        }
        anyhow::ensure!(suspects.len() < MOST_SUSPECTS, "more than {MOST_SUSPECTS} rows differ: rebuild the model");
        let order = match (&a, &b) {
            (None, None) => break,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((a, _)), Some((b, _))) => a.cmp(b),
        };
        let same = order.is_eq() && a == b;
        if let Some((key, _)) = if order.is_gt() { &b } else { &a } {
            rows += 1;
            if !same {
                // The key alone: it holds its block.
                suspects.push(key.to_vec());
            }
        }
        if order.is_le() {
            a = left.next().transpose()?;
        }
        if order.is_ge() {
            b = right.next().transpose()?;
        }
    }
    Ok((rows, suspects))
}
