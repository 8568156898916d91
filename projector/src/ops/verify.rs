//! A verification checks the log and the read models, and changes neither. It folds the log again into a separate
//! database (a replay) and makes four checks:
//!
//! - Each row of the replayed models equals the row of the live models, from which queries are answered.
//! - The invariants (`invariants.rs`) are true after every event.
//! - Each message still has the leaf (its hash in the Merkle tree) that it had when it was first folded.
//! - The roots of the log's Merkle tree equal the signed tree heads.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _};
use gpubnb_events::{Clock as _, Recorded, Seq, SystemClock};
use gpubnb_log::{Follower, stream::CHECKPOINTS};
use gpubnb_model::{
    self, Projection,
    jobs::Jobs,
    ledger::Ledger,
    merkle::{self, ChangedLeaf, LeafComparison, Merkle, StoredTree, roots},
};
use gpubnb_query::view::ops::{ModelCheck, Progress, Verification};
use gpubnb_store::{self, Database, StoreError, Table};

use super::{
    context::{StartError, WorkContext},
    invariants::Invariants,
};
use crate::{
    fold::{BATCH, Model},
    tree_head::{self, LATEST},
};

/// The most keys, and the most sequences, that are reported.
const MAX_REPORTED: usize = 100;
/// The most changed messages that are compared with each other, to find messages that were exchanged.
const MAX_CHANGED: usize = 1_000;
/// The most rows that may differ in the first comparison. Some rows differ because the live model is ahead, but not so
/// many.
const MAX_SUSPECTS: usize = 50_000;
/// The number of rows that are compared before other tasks may run.
const ROWS_PER_YIELD: u64 = 10_000;
/// The number of attempts to compare the models at the same sequence.
const TRIES: usize = 200;
/// The longest time that the broker may take to send the next events.
const MAX_SILENCE: Duration = Duration::from_secs(60);
/// The most signed heads that are read at the same time.
const CONCURRENT_HEADS: usize = 32;
/// The cache size of the verification's database, MiB.
const CACHE_MIB: u64 = 8;

/// Divides the models into groups. The log is read once for each group, and the database of a group is deleted before
/// the next group. So a verification needs memory and disk for its largest group only. The jobs and the ledger are the
/// largest models, so each of them is a group.
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

/// Starts a verification of all models and the log, in the background.
pub(super) fn start(context: &WorkContext) -> Result<(), StartError> {
    let mut state = context.state();
    if state.verification.as_ref().is_some_and(|v| v.ended_at.is_none()) {
        return Err(StartError::AlreadyRunning);
    }
    state.verification = Some(Verification {
        began_at: SystemClock.now(),
        progress: Progress { at: Seq::ZERO, until: context.last_applied(), per_second: 0 },
        ended_at: None,
        failed: None,
        models: Vec::new(),
        violations: Vec::new(),
        heads: 0,
        quarantined: Vec::new(),
    });
    drop(state);
    let task_context = context.clone();
    context.background.spawn(async move {
        let verified = verify(&task_context).await;
        update_state(&task_context, |v| {
            v.ended_at = Some(SystemClock.now());
            match verified {
                Ok(models) => v.models = models,
                Err(e) => v.failed = Some(format!("{e:#}")),
            }
        });
    });
    Ok(())
}

/// Updates the state of the verification that operators see.
fn update_state(context: &WorkContext, change: impl FnOnce(&mut Verification)) {
    if let Some(verification) = context.state().verification.as_mut() {
        change(verification);
    }
}

/// Runs the verification. Returns the result for each model. Operators see violations as soon as they are found.
async fn verify(context: &WorkContext) -> anyhow::Result<Vec<ModelCheck>> {
    let groups = groups();
    let mut replay = Replay::new(context, groups.len());
    let checks = replay.check_groups(groups).await;
    // Violations are shown even if the verification has failed.
    replay.show_violations();
    checks
}

/// The replay of the log, for the comparison with the live models.
struct Replay<'a> {
    context: &'a WorkContext,
    /// The number of the group, from zero. In pass 0, the messages of the log are checked too.
    pass: usize,
    /// The number of groups.
    passes: usize,
    /// The replayed models of the group. Empty after a gap in the log: then no models can be compared.
    models: Vec<Model>,
    invariants: Invariants,
    /// The present leaves of the messages, which are compared with the leaves in the live Merkle model.
    leaves: LeafComparison,
    changed: Vec<ChangedLeaf>,
    follower: Follower,
    /// Events that were read and are not folded yet.
    pending: Vec<Recorded>,
    /// The last replayed sequence.
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
            leaves: LeafComparison::default(),
            changed: Vec::new(),
            follower: context.log.follow(Seq(1)).skip_gaps(),
            pending: Vec::new(),
            at: Seq::ZERO,
            began: Instant::now(),
        }
    }

    /// Prepares the replay of the next group of models, from the first event.
    fn begin_pass(&mut self, pass: usize, models: Vec<Box<dyn Projection>>) -> Result<(), StoreError> {
        // When the previous group's last model is dropped, the group's database is deleted.
        self.models.clear();
        let db = Database::scratch(&self.context.scratch.join(pass.to_string()), CACHE_MIB)?;
        let models = models.into_iter().map(|projection| {
            let table = db.current_table(projection.model_version())?;
            Model::new(projection, table)
        });
        self.models = models.collect::<Result<_, StoreError>>()?;
        self.invariants.clear_state();
        self.follower = self.context.log.follow(Seq(1)).skip_gaps();
        self.pending.clear();
        (self.pass, self.at) = (pass, Seq::ZERO);
        Ok(())
    }

    /// Checks every group of models. With the first group, also checks the log.
    async fn check_groups(&mut self, groups: Vec<Vec<Box<dyn Projection>>>) -> anyhow::Result<Vec<ModelCheck>> {
        let (context, mut checks, mut checked_until) = (self.context, Vec::new(), Seq::ZERO);
        for (pass, models) in groups.into_iter().enumerate() {
            self.begin_pass(pass, models)?;
            let end = context.log.last_seq().await?;
            if end < context.last_applied() {
                self.models.clear();
                self.invariants.add_violation(
                    end.next(),
                    format!("the log ends here; it was folded up to {}", context.last_applied()),
                );
            }
            self.replay_until(context.last_applied().min(end)).await?;
            // Changed messages are reported even if the comparison fails.
            self.report_changed()?;
            let compared = self.compare_models().await;
            self.report_changed()?;
            if pass == 0 {
                self.check_heads().await?;
                checked_until = self.at;
            }
            checks.extend(compared?);
            if self.models.is_empty() {
                break;
            }
        }
        let position = |check: &ModelCheck| gpubnb_model::all().iter().position(|model| model.name() == check.name);
        checks.sort_by_key(position);
        // The invariants were checked up to the end of pass 0 only. Later passes may have replayed newer events.
        update_state(context, |v| (v.progress.at, v.progress.until) = (checked_until, checked_until));
        Ok(checks)
    }

    /// Compares every model of the group. Stops at a gap in the log, because a gap empties `self.models`.
    async fn compare_models(&mut self) -> anyhow::Result<Vec<ModelCheck>> {
        let (mut checks, mut index) = (Vec::new(), 0);
        while index < self.models.len() {
            checks.push(self.compare_model(index).await?);
            index += 1;
        }
        Ok(checks)
    }

    /// Reads and folds the log exactly up to the event `until`.
    async fn replay_until(&mut self, until: Seq) -> anyhow::Result<()> {
        while self.at < until {
            if self.pending.is_empty() {
                let next = tokio::time::timeout(MAX_SILENCE, self.follower.next_batch()).await;
                self.pending = next.with_context(|| format!("the broker has nothing after event {}", self.at))?;
            }
            if self.pending.first().is_some_and(|r| r.seq > until) {
                self.report_missing(self.at, until.next());
                self.at = until;
                return Ok(());
            }
            let later = self.pending.iter().position(|r| r.seq > until).unwrap_or(self.pending.len());
            let rest = self.pending.split_off(later.min(BATCH));
            let batch = std::mem::replace(&mut self.pending, rest);
            let Some(last) = batch.last().map(|r| r.seq) else { continue };
            self.report_gaps(&batch);
            self.models.iter_mut().try_for_each(|model| model.fold(&batch))?;
            if self.pass == 0 {
                batch.iter().try_for_each(|recorded| self.check_message(recorded))?;
            }
            self.at = last;
            let progress = self.progress(until.max(self.context.last_applied()));
            update_state(self.context, |v| v.progress = progress);
            self.show_violations();
            // Lets a shutdown interrupt the verification. The other awaits may never yield if the broker is fast.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Shows the violations so far to operators.
    fn show_violations(&self) {
        let violations = self.invariants.violations().to_vec();
        update_state(self.context, |v| v.violations = violations);
    }

    /// The progress of all passes together, scaled to the length of the log. Example: in the middle of the second of
    /// two passes, the progress is three quarters of the log.
    fn progress(&self, until: Seq) -> Progress {
        let (pass, passes) = (u64::try_from(self.pass).unwrap_or(0), u64::try_from(self.passes).unwrap_or(1));
        let done = (pass * until.0 + self.at.0) / passes.max(1);
        Progress::since(self.began.elapsed(), Seq::ZERO, Seq(done), until)
    }

    /// Reports the events that are missing in a batch or before it. After a gap the models are not folded further, and
    /// only the log is checked.
    fn report_gaps(&mut self, batch: &[Recorded]) {
        let before = std::iter::once(self.at).chain(batch.iter().map(|r| r.seq));
        for (before, next) in before.zip(batch.iter().map(|r| r.seq)) {
            self.report_missing(before, next);
        }
    }

    /// Reports the events that are missing between two sequences that follow each other in the log.
    fn report_missing(&mut self, before: Seq, next: Seq) {
        for missing in (before.0 + 1..next.0).take(MAX_REPORTED).map(Seq) {
            self.models.clear();
            self.invariants.add_violation(missing, "MARKET has this event no more".to_owned());
        }
    }

    /// Compares the roots of the log's Merkle tree with all signed tree heads.
    async fn check_heads(&mut self) -> anyhow::Result<()> {
        let Some(ours) = self.models.iter().find(|m| m.name() == Merkle.name()).map(|m| m.table().clone()) else {
            return Ok(());
        };
        let bucket = self.context.log.jetstream().get_key_value(CHECKPOINTS).await;
        let bucket = bucket.context("the signed heads cannot be read: see `CHECKPOINTS` in docs/operating.md")?;
        let latest = tree_head::get(&bucket, LATEST).await?;
        let newest = latest.as_ref().map_or(0, |head| head.size);
        let heads = futures_util::stream::iter(roots(&ours, 0)).map(|root| async {
            let (size, root) = root?;
            anyhow::Ok((size, root, tree_head::get(&bucket, &tree_head::bucket_key(size)).await?))
        });
        let mut heads: Vec<_> = heads.buffered(CONCURRENT_HEADS).try_collect().await?;
        if let Some(latest) = latest.filter(|latest| latest.size <= self.at.0) {
            heads.push((newest, gpubnb_proof::merkle::root(&StoredTree(&ours), 0, newest)?, Some(latest)));
        } else if newest > self.at.0 {
            let what = format!("the head of {newest} events was signed, and the log ends before");
            self.invariants.add_violation(self.at.next(), what);
        }
        let (mut agree, mut before) = (0, 0);
        for (size, root, head) in heads {
            let what = match head {
                // The newest head is signed after all smaller heads. So a larger head is missing because it is not
                // signed yet.
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
            self.invariants.add_violation(Seq(before + 1), what);
            break;
        }
        update_state(self.context, |v| v.heads = agree);
        Ok(())
    }

    /// Checks one message: its leaf must equal the leaf in the live Merkle model, and its event must keep the
    /// invariants. The leaves are compared here and not in the replayed Merkle model, because that model is not folded
    /// after a gap.
    fn check_message(&mut self, recorded: &Recorded) -> anyhow::Result<()> {
        let changed = self.leaves.push(recorded.seq, recorded.leaf, || self.context.tables.by_name(Merkle.name()))?;
        self.add_changed(changed);
        match recorded.event() {
            Some(event) => self.invariants.apply(recorded.seq, event),
            None => update_state(self.context, |v| {
                if v.quarantined.len() < MAX_REPORTED {
                    v.quarantined.push(recorded.seq);
                }
            }),
        }
        Ok(())
    }

    /// Keeps changed messages for `report_changed`, up to `MAX_CHANGED`.
    fn add_changed(&mut self, changed: Vec<ChangedLeaf>) {
        let free = MAX_CHANGED.saturating_sub(self.changed.len());
        self.changed.extend(changed.into_iter().take(free));
    }

    /// Reports the messages that were changed or exchanged after they were first folded.
    fn report_changed(&mut self) -> anyhow::Result<()> {
        let changed = self.leaves.changed(&self.context.tables.by_name(Merkle.name())?)?;
        self.add_changed(changed);
        for (seq, other) in merkle::find_swaps(&std::mem::take(&mut self.changed)).take(MAX_REPORTED) {
            let what = match other {
                Some(other) => format!("it stands where event {other} was when it was folded"),
                None => "it is not what it was when it was folded".to_owned(),
            };
            self.invariants.add_violation(seq, what);
        }
        Ok(())
    }

    /// Compares a replayed model with the live model row by row. The live model changes during the comparison. So rows
    /// that differ are compared again when both models are at the same sequence.
    async fn compare_model(&mut self, index: usize) -> anyhow::Result<ModelCheck> {
        let name = self.models[index].name();
        let live = self.context.tables.by_name(name)?;
        let ours = self.models[index].table().clone();
        let (rows, mut suspects) = differing_keys(&ours, &live).await?;
        for _ in 0..TRIES {
            let at = gpubnb_store::checkpoint(&live)?;
            self.replay_until(at).await?;
            let mut differing = Vec::new();
            for key in &suspects {
                if ours.get(key)? != live.get(key)? {
                    differing.push(key.clone());
                }
            }
            // Each batch moves the checkpoint. If the checkpoint is the same, no row was written during the comparison.
            if gpubnb_store::checkpoint(&live)? == at {
                let differing = differing.iter().take(MAX_REPORTED).map(|key| key.escape_ascii().to_string()).collect();
                return Ok(ModelCheck { name: name.to_owned(), rows, differing });
            }
            if suspects.len() > differing.len() {
                suspects = differing;
            }
        }
        anyhow::bail!("{name} changes too fast to be compared: try again when the market is calmer")
    }
}

/// Compares all rows of two tables. Returns the number of rows, and the keys of the rows that differ.
async fn differing_keys(ours: &Table, live: &Table) -> anyhow::Result<(u64, Vec<Vec<u8>>)> {
    let (mut left, mut right) = (ours.all(), live.all());
    let (mut a, mut b) = (left.next().transpose()?, right.next().transpose()?);
    let (mut rows, mut suspects) = (0_u64, Vec::new());
    loop {
        if rows % ROWS_PER_YIELD == 0 {
            // Lets a shutdown interrupt the comparison.
            tokio::task::yield_now().await;
        }
        anyhow::ensure!(suspects.len() < MAX_SUSPECTS, "more than {MAX_SUSPECTS} rows differ: rebuild the model");
        let order = match (&a, &b) {
            (None, None) => break,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((a, _)), Some((b, _))) => a.cmp(b),
        };
        let is_same = order.is_eq() && a == b;
        if let Some((key, _)) = if order.is_gt() { &b } else { &a } {
            rows += 1;
            if !is_same {
                // The key is copied, because a shared key would keep its whole block in memory.
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
