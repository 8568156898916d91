//! Verifying: the log folded anew and compared with the models that answer, row by row; every event looked at; and the log
//! compared with the tree heads that were signed of it. Nothing here changes anything but a database of its own.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _};
use gpubnb_events::{Recorded, Seq};
use gpubnb_log::{Follower, stream::CHECKPOINTS};
use gpubnb_model::{
    self, Projection,
    jobs::Jobs,
    ledger::Ledger,
    merkle::{self, Changed, LeavesNow, Merkle, StoredTree, roots},
};
use gpubnb_query::view::ops::{ModelCheck, Progress};
use gpubnb_store::{self, Database, StoreError, Table};

use super::{
    invariants::Invariants,
    work::{Work, fold},
};
use crate::{
    fold::{BATCH, Model},
    tree_head::{self, LATEST},
};

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
/// Cache of the database that is folded into, MiB.
const CACHE_MIB: u64 = 8;

/// The models, those together that are folded together. Each group reads the log once, and its database is gone before the
/// next: a verification takes no more memory and disk than the largest needs.
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

/// Verifies everything. What is found on the way is told at once, in the verification's state.
pub(super) async fn verified(work: &Work) -> anyhow::Result<Vec<ModelCheck>> {
    let groups = groups();
    let mut replay = Replay::new(work, groups.len());
    let checks = replay.checked(groups).await;
    // Whatever became of it.
    replay.tell();
    checks
}

/// The log folded anew, for comparison.
struct Replay<'a> {
    work: &'a Work,
    /// Which of how many times the log is read. The events themselves are looked at in the first.
    pass: usize,
    passes: usize,
    /// None where the log has not all that was folded: there is nothing to compare then.
    models: Vec<Model>,
    invariants: Invariants,
    /// What each message is now, to be compared with what it was when it was folded.
    now: LeavesNow,
    changed: Vec<Changed>,
    follower: Follower,
    read: Vec<Recorded>,
    at: Seq,
    began: Instant,
}

impl<'a> Replay<'a> {
    fn new(work: &'a Work, passes: usize) -> Self {
        Self {
            work,
            pass: 0,
            passes,
            models: Vec::new(),
            invariants: Invariants::default(),
            now: LeavesNow::default(),
            changed: Vec::new(),
            follower: work.log.follow(Seq(1)).over_gaps(),
            read: Vec::new(),
            at: Seq::ZERO,
            began: Instant::now(),
        }
    }

    /// Begins with further models from the first event.
    fn begin(&mut self, pass: usize, models: Vec<Box<dyn Projection>>) -> Result<(), StoreError> {
        // The former database is gone before there is another.
        self.models.clear();
        let db = Database::scratch(&self.work.scratch.join(pass.to_string()), CACHE_MIB)?;
        let models = models.into_iter().map(|projection| {
            let table = db.model(projection.model_version())?;
            Model::new(projection, table)
        });
        self.models = models.collect::<Result<_, StoreError>>()?;
        self.invariants.forget();
        self.follower = self.work.log.follow(Seq(1)).over_gaps();
        self.read.clear();
        (self.pass, self.at) = (pass, Seq::ZERO);
        Ok(())
    }

    /// Every group of models, and with the first the log itself.
    async fn checked(&mut self, groups: Vec<Vec<Box<dyn Projection>>>) -> anyhow::Result<Vec<ModelCheck>> {
        let (work, mut checks, mut looked_at) = (self.work, Vec::new(), Seq::ZERO);
        for (pass, models) in groups.into_iter().enumerate() {
            self.begin(pass, models)?;
            let end = work.log.last_seq().await?;
            if end < work.last() {
                self.models.clear();
                self.invariants.broken(end.next(), format!("the log ends here; it was folded up to {}", work.last()));
            }
            self.until(work.last().min(end)).await?;
            // Whatever becomes of the comparison, what was found on the way is told.
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
        // What came meanwhile was folded and compared, but not looked at event by event.
        work.note(|v| (v.progress.at, v.progress.until) = (looked_at, looked_at));
        Ok(checks)
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
            if self.pass == 0 {
                batch.iter().try_for_each(|recorded| self.look_at(recorded))?;
            }
            self.at = last;
            let progress = self.progress(until.max(self.work.last()));
            self.work.note(|v| v.progress = progress);
            self.tell();
            // It can be cut off here: where the broker keeps up, nothing is waited for.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Tells what was found so far.
    fn tell(&self) {
        let violations = self.invariants.found().to_vec();
        self.work.note(|v| v.violations = violations);
    }

    /// How far it is, as if the log were read once.
    fn progress(&self, until: Seq) -> Progress {
        let (pass, passes) = (u64::try_from(self.pass).unwrap_or(0), u64::try_from(self.passes).unwrap_or(1));
        let done = (pass * until.0 + self.at.0) / passes.max(1);
        Progress::since(self.began.elapsed(), Seq::ZERO, Seq(done), until)
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
        let Some(ours) = self.models.iter().find(|m| m.name() == Merkle.name()).map(|m| m.table().clone()) else {
            return Ok(());
        };
        let bucket = self.work.log.jetstream().get_key_value(CHECKPOINTS).await;
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
        self.work.note(|v| v.heads = agree);
        Ok(())
    }

    /// Looks whether a message is what it was when it was folded, by itself, for no model is folded over a gap; and whether
    /// its event may be there.
    fn look_at(&mut self, recorded: &Recorded) -> anyhow::Result<()> {
        let changed = self.now.push(recorded.seq, recorded.leaf, || self.work.tables.named(Merkle.name()))?;
        self.remember(changed);
        match recorded.event() {
            Some(event) => self.invariants.apply(recorded.seq, event),
            None => self.work.note(|v| {
                if v.quarantined.len() < TOLD {
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

    /// Says which messages were changed since they were folded, or moved.
    fn tampered(&mut self) -> anyhow::Result<()> {
        let changed = self.now.changed(&self.work.tables.named(Merkle.name())?)?;
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
        let live = self.work.tables.named(name)?;
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
            // Each batch moves the checkpoint: nothing was written between the two looks.
            if gpubnb_store::checkpoint(&live)? == at {
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

/// Goes through both tables beside each other: how many rows there are, and the keys of those that differ.
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
