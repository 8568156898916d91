//! Verification: the log is folded anew and compared with the models that answer, row by row; the invariants are
//! checked at every event; and the log is compared with the tree heads that were signed of it. Nothing is changed but a
//! database of the verification's own.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _};
use gpubnb_events::{Clock as _, Recorded, Seq, SystemClock};
use gpubnb_log::{Follower, stream::CHECKPOINTS};
use gpubnb_model::{
    self, Projection,
    jobs::Jobs,
    ledger::Ledger,
    merkle::{self, Changed, LeavesNow, Merkle, StoredTree, roots},
};
use gpubnb_query::view::ops::{ModelCheck, Progress, Verification};
use gpubnb_store::{self, Database, StoreError, Table};

use super::{
    context::{NotStarted, WorkContext},
    invariants::Invariants,
};
use crate::{
    fold::{BATCH, Model},
    tree_head::{self, LATEST},
};

/// Most keys and sequences that are reported.
const MOST_REPORTED: usize = 100;
/// Most changed messages that are compared with each other, to find those that changed places.
const MOST_CHANGED: usize = 1_000;
/// Most rows that may differ while both sides still move. More of them are no coincidence.
const MOST_SUSPECTS: usize = 50_000;
/// Rows that are compared between two pauses.
const PAUSE: u64 = 10_000;
/// Attempts to bring both sides to the same sequence.
const TRIES: usize = 200;
/// The longest silence of the broker while there is more to read.
const SILENCE: Duration = Duration::from_secs(60);
/// Signed heads that are read at the same time.
const HEADS_AT_ONCE: usize = 32;
/// The cache of the verification's database, MiB.
const CACHE_MIB: u64 = 8;

/// The models in groups that are folded together. The log is read once for each group, and the database of a group is
/// removed before the next: a verification takes only as much memory and disk as its largest group.
fn groups() -> Vec<Vec<Box<dyn Projection>>> {
    let mut groups = vec![Vec::new()];
    for model in gpubnb_model::all() {
        if [Jobs.name(), Ledger.name()].contains(&model.name()) {
            groups.push(vec![model]);
        } else {
            groups[0].push(model);
        }
    }
    groups
}

/// Starts to verify every model and the log.
pub(super) fn start(context: &WorkContext) -> Result<(), NotStarted> {
    let mut state = context.state();
    if state.verification.as_ref().is_some_and(|v| v.ended_at.is_none()) {
        return Err(NotStarted::Running);
    }
    state.verification = Some(Verification {
        began_at: SystemClock.now(),
        progress: Progress { at: Seq::ZERO, until: context.last(), per_second: 0 },
        ended_at: None,
        failed: None,
        models: Vec::new(),
        violations: Vec::new(),
        heads: 0,
        quarantined: Vec::new(),
    });
    drop(state);
    let own = context.clone();
    context.background.spawn(async move {
        let verified = verify(&own).await;
        note(&own, |v| {
            v.ended_at = Some(SystemClock.now());
            match verified {
                Ok(models) => v.models = models,
                Err(e) => v.failed = Some(format!("{e:#}")),
            }
        });
    });
    Ok(())
}

/// Changes the verification that operators see.
fn note(context: &WorkContext, change: impl FnOnce(&mut Verification)) {
    if let Some(verification) = context.state().verification.as_mut() {
        change(verification);
    }
}

/// Verifies everything. Operators see each finding at once.
async fn verify(context: &WorkContext) -> anyhow::Result<Vec<ModelCheck>> {
    let groups = groups();
    let mut replay = Replay::new(context, groups.len());
    let checks = replay.checked(groups).await;
    // Findings are shown even where the verification could not be finished.
    replay.show_violations();
    checks
}

/// The replay of the log, for comparison with the models that answer.
struct Replay<'a> {
    context: &'a WorkContext,
    /// The number of this reading of the log, from zero. The events themselves are checked in the first.
    pass: usize,
    passes: usize,
    /// The models of the present group. Empty where the log lacks an event: then there is nothing to compare.
    models: Vec<Model>,
    invariants: Invariants,
    /// The present leaf of each message, to be compared with the leaf that was folded.
    now: LeavesNow,
    changed: Vec<Changed>,
    follower: Follower,
    read: Vec<Recorded>,
    at: Seq,
    began: Instant,
}

impl<'a> Replay<'a> {
    fn new(context: &'a WorkContext, passes: usize) -> Self {
        Self {
            context,
            pass: 0,
            passes,
            models: Vec::new(),
            invariants: Invariants::default(),
            now: LeavesNow::default(),
            changed: Vec::new(),
            follower: context.log.follow(Seq(1)).over_gaps(),
            read: Vec::new(),
            at: Seq::ZERO,
            began: Instant::now(),
        }
    }

    /// Begins to fold the next group of models, from the first event.
    fn begin(&mut self, pass: usize, models: Vec<Box<dyn Projection>>) -> Result<(), StoreError> {
        // The database of the group before is removed with its last handle.
        self.models.clear();
        let db = Database::scratch(&self.context.scratch.join(pass.to_string()), CACHE_MIB)?;
        let models = models.into_iter().map(|projection| {
            let table = db.model(projection.model_version())?;
            Model::new(projection, table)
        });
        self.models = models.collect::<Result<_, StoreError>>()?;
        self.invariants.forget();
        self.follower = self.context.log.follow(Seq(1)).over_gaps();
        self.read.clear();
        (self.pass, self.at) = (pass, Seq::ZERO);
        Ok(())
    }

    /// Checks every group of models, and with the first group the log itself.
    async fn checked(&mut self, groups: Vec<Vec<Box<dyn Projection>>>) -> anyhow::Result<Vec<ModelCheck>> {
        let (context, mut checks, mut looked_at) = (self.context, Vec::new(), Seq::ZERO);
        for (pass, models) in groups.into_iter().enumerate() {
            self.begin(pass, models)?;
            let end = context.log.last_seq().await?;
            if end < context.last() {
                self.models.clear();
                self.invariants
                    .broken(end.next(), format!("the log ends here; it was folded up to {}", context.last()));
            }
            self.until(context.last().min(end)).await?;
            // Findings about the log are noted even where the comparison fails.
            self.tampered()?;
            let compared = self.compared().await;
            self.tampered()?;
            if pass == 0 {
                self.heads().await?;
                looked_at = self.at;
            }
            checks.extend(compared?);
            if self.models.is_empty() {
                break;
            }
        }
        let place = |check: &ModelCheck| gpubnb_model::all().iter().position(|model| model.name() == check.name);
        checks.sort_by_key(place);
        // Events that came after the first reading were folded and compared, but not checked by the invariants.
        note(context, |v| (v.progress.at, v.progress.until) = (looked_at, looked_at));
        Ok(checks)
    }

    /// Compares every model of the group. A gap in the log that is found meanwhile leaves nothing to compare.
    async fn compared(&mut self) -> anyhow::Result<Vec<ModelCheck>> {
        let (mut checks, mut index) = (Vec::new(), 0);
        while index < self.models.len() {
            checks.push(self.compare(index).await?);
            index += 1;
        }
        Ok(checks)
    }

    /// Reads and folds the log exactly up to a sequence.
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
            self.models.iter_mut().try_for_each(|model| model.fold(&batch))?;
            if self.pass == 0 {
                batch.iter().try_for_each(|recorded| self.look_at(recorded))?;
            }
            self.at = last;
            let progress = self.progress(until.max(self.context.last()));
            note(self.context, |v| v.progress = progress);
            self.show_violations();
            // A shutdown cuts the verification off at this await; without it, a fast broker would leave none.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Shows operators the broken invariants so far.
    fn show_violations(&self) {
        let violations = self.invariants.found().to_vec();
        note(self.context, |v| v.violations = violations);
    }

    /// The progress over all readings of the log, scaled to one reading.
    fn progress(&self, until: Seq) -> Progress {
        let (pass, passes) = (u64::try_from(self.pass).unwrap_or(0), u64::try_from(self.passes).unwrap_or(1));
        let done = (pass * until.0 + self.at.0) / passes.max(1);
        Progress::since(self.began.elapsed(), Seq::ZERO, Seq(done), until)
    }

    /// Notes the events that are missing. No model is folded over a gap: from there on only the log itself is checked.
    fn look_for_gaps(&mut self, batch: &[Recorded]) {
        let before = std::iter::once(self.at).chain(batch.iter().map(|r| r.seq));
        for (before, next) in before.zip(batch.iter().map(|r| r.seq)) {
            self.missing(before, next);
        }
    }

    fn missing(&mut self, before: Seq, next: Seq) {
        for missing in (before.0 + 1..next.0).take(MOST_REPORTED).map(Seq) {
            self.models.clear();
            self.invariants.broken(missing, "MARKET has this event no more".to_owned());
        }
    }

    /// Compares the Merkle tree of the log with all heads that were ever signed of it.
    async fn heads(&mut self) -> anyhow::Result<()> {
        let Some(ours) = self.models.iter().find(|m| m.name() == Merkle.name()).map(|m| m.table().clone()) else {
            return Ok(());
        };
        let bucket = self.context.log.jetstream().get_key_value(CHECKPOINTS).await;
        let bucket = bucket.context("the signed heads cannot be read: see `CHECKPOINTS` in docs/operating.md")?;
        let latest = tree_head::get(&bucket, LATEST).await?;
        let newest = latest.as_ref().map_or(0, |head| head.size);
        let heads = futures_util::stream::iter(roots(&ours, 0)).map(|root| async {
            let (size, root) = root?;
            anyhow::Ok((size, root, tree_head::get(&bucket, &tree_head::name(size)).await?))
        });
        let mut heads: Vec<_> = heads.buffered(HEADS_AT_ONCE).try_collect().await?;
        if let Some(latest) = latest.filter(|latest| latest.size <= self.at.0) {
            heads.push((newest, gpubnb_proof::merkle::root(&StoredTree(&ours), 0, newest)?, Some(latest)));
        } else if newest > self.at.0 {
            let what = format!("the head of {newest} events was signed, and the log ends before");
            self.invariants.broken(self.at.next(), what);
        }
        let (mut agree, mut before) = (0, 0);
        for (size, root, head) in heads {
            let what = match head {
                // The newest head is signed last: heads beyond it are still to come.
                None if size > newest => continue,
                None => format!("the head of {size} events, which was signed, is gone"),
                Some(head) if !self.context.keys.contains(&head.key) => {
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
        note(self.context, |v| v.heads = agree);
        Ok(())
    }

    /// Checks one message: whether its leaf is the one that was folded, and whether its event keeps the invariants. The
    /// leaves are compared here, and not by the replayed model, because no model is folded over a gap.
    fn look_at(&mut self, recorded: &Recorded) -> anyhow::Result<()> {
        let changed = self.now.push(recorded.seq, recorded.leaf, || self.context.tables.named(Merkle.name()))?;
        self.remember(changed);
        match recorded.event() {
            Some(event) => self.invariants.apply(recorded.seq, event),
            None => note(self.context, |v| {
                if v.quarantined.len() < MOST_REPORTED {
                    v.quarantined.push(recorded.seq);
                }
            }),
        }
        Ok(())
    }

    fn remember(&mut self, changed: Vec<Changed>) {
        let room = MOST_CHANGED.saturating_sub(self.changed.len());
        self.changed.extend(changed.into_iter().take(room));
    }

    /// Notes which messages were changed, or changed places, since they were folded.
    fn tampered(&mut self) -> anyhow::Result<()> {
        let changed = self.now.changed(&self.context.tables.named(Merkle.name())?)?;
        self.remember(changed);
        for (seq, other) in merkle::places(&std::mem::take(&mut self.changed)).take(MOST_REPORTED) {
            let what = match other {
                Some(other) => format!("it stands where event {other} was when it was folded"),
                None => "it is not what it was when it was folded".to_owned(),
            };
            self.invariants.broken(seq, what);
        }
        Ok(())
    }

    /// Compares a model row by row with the one that answers, which moves on meanwhile. Rows that differ are compared
    /// again when both are at the same sequence.
    async fn compare(&mut self, index: usize) -> anyhow::Result<ModelCheck> {
        let name = self.models[index].name();
        let live = self.context.tables.named(name)?;
        let ours = self.models[index].table().clone();
        let (rows, mut suspects) = differing(&ours, &live).await?;
        for _ in 0..TRIES {
            let at = gpubnb_store::checkpoint(&live)?;
            self.until(at).await?;
            let mut still = Vec::new();
            for key in &suspects {
                if ours.get(key)? != live.get(key)? {
                    still.push(key.clone());
                }
            }
            // Each batch moves the checkpoint. Where it has not moved, nothing was written while the rows were
            // compared.
            if gpubnb_store::checkpoint(&live)? == at {
                let differing = still.iter().take(MOST_REPORTED).map(|key| key.escape_ascii().to_string()).collect();
                return Ok(ModelCheck { name: name.to_owned(), rows, differing });
            }
            if suspects.len() > still.len() {
                suspects = still;
            }
        }
        anyhow::bail!("{name} changes too fast to be compared: try again when the market is calmer")
    }
}

/// Goes through both tables side by side. Returns the number of rows, and the keys of those that differ.
async fn differing(ours: &Table, live: &Table) -> anyhow::Result<(u64, Vec<Vec<u8>>)> {
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
                // Only the key is copied: the row would keep its whole block in memory.
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
