//! The state of the whole market: everything that decisions need. It is folded from the events of the stream MARKET.
//! Jobs leave the state when they are settled.
//!
//! This file has the data and its look-ups. `apply.rs` changes the state by events, and `decide.rs` decides commands.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use gpubnb_events::{AccountId, Aggregate, BatchId, JobId, MachineId, MicroUsd, Seq, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{
    Settings,
    account::Account,
    batch::Batch,
    job::{Job, Phase},
    machine::Machine,
    queue::Queue,
    recent_submissions::RecentSubmissions,
};

/// The version of the fields of [`World`] and of the fold in `apply.rs`. Raise it with every change of either, because
/// snapshots of another version are discarded.
pub(crate) const VERSION: u32 = 12;

/// The state of the whole market after one sequence of the log.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct World {
    /// The last sequence that was folded.
    pub(crate) applied: Seq,
    pub(crate) accounts: HashMap<AccountId, Account>,
    pub(crate) machines: BTreeMap<MachineId, Machine>,
    pub(crate) jobs: BTreeMap<JobId, Job>,
    /// The batches that are not closed, or have tasks that are not settled.
    pub(crate) batches: BTreeMap<BatchId, Batch>,
    pub(crate) queue: Queue,
    /// The jobs that ended and are not settled.
    pub(crate) ended: BTreeSet<JobId>,
    /// The sequence of the last stray of each aggregate. A stray is a message that is not a valid event. No fold reads
    /// it, but the broker's guard counts it.
    #[serde(with = "pairs")]
    pub(crate) strays: HashMap<Aggregate, Seq>,
    pub(crate) submissions: RecentSubmissions,
    /// The submissions that made no job and no batch, by their sequence, until their hold is released.
    pub(crate) lost_submissions: BTreeMap<Seq, LostSubmission>,
}

/// A submission that made no job or no batch, because another account submitted one with the same id first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LostSubmission {
    pub(crate) account: AccountId,
    /// The job, or [`BatchId::as_job`].
    pub(crate) job: JobId,
    pub(crate) hold: MicroUsd,
}

impl World {
    /// The version of a snapshot of this state. A snapshot of another version is discarded. The version changes with
    /// the fields, with the fold, and with `decline_pause`, the only setting that the fold depends on.
    pub fn version(settings: &Settings) -> String {
        format!("{VERSION}-{}", settings.decline_pause.0)
    }

    /// The last sequence that was folded.
    pub fn applied(&self) -> Seq {
        self.applied
    }

    /// The account, if it was opened.
    pub fn account(&self, id: AccountId) -> Option<&Account> {
        self.accounts.get(&id).filter(|a| a.last > Seq::ZERO)
    }

    /// The machine, if it was ever listed.
    pub fn machine(&self, id: MachineId) -> Option<&Machine> {
        self.machines.get(&id)
    }

    /// All machines.
    pub fn machines(&self) -> impl Iterator<Item = (&MachineId, &Machine)> {
        self.machines.iter()
    }

    /// The job, if it was submitted and is not settled yet.
    pub fn job(&self, id: JobId) -> Option<&Job> {
        self.jobs.get(&id)
    }

    /// All jobs that are not settled yet.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    /// The batch, if it is not closed or has tasks that are not settled.
    pub fn batch(&self, id: BatchId) -> Option<&Batch> {
        self.batches.get(&id)
    }

    /// All batches that are not closed, or have tasks that are not settled.
    pub fn batches(&self) -> impl Iterator<Item = (&BatchId, &Batch)> {
        self.batches.iter()
    }

    /// The batch whose task the job is.
    pub fn batch_of(&self, job: &Job) -> Option<&Batch> {
        self.batch(job.spec.task.as_ref()?.batch)
    }

    /// True for a waiting task whose batch is worked on: it waits longer than its own limit.
    pub(crate) fn may_wait(&self, job: &Job, now: Timestamp) -> bool {
        job.phase == Phase::Queued && self.batch_of(job).is_some_and(|batch| batch.may_wait(now))
    }

    /// The id under which the values of the job's environment are stored ([`Job::environment_id`]), if no other job
    /// needs them. `None` for a job without such values.
    pub fn last_use_of_environment(&self, job: &Job) -> Option<JobId> {
        let is_last = |batch: &Batch| batch.closed.is_some() && batch.settled.saturating_add(1) >= batch.opened;
        let is_needed = job.spec.env.is_empty() || self.batch_of(job).is_some_and(|batch| !is_last(batch));
        (!is_needed).then(|| job.environment_id())
    }

    /// True if this account has a job or a batch that still needs the values of the environment that are stored under
    /// this id ([`Job::environment_id`]).
    pub fn needs_environment(&self, account: AccountId, id: JobId) -> bool {
        let batch = self.batch(BatchId::beginning_like(id)).filter(|batch| batch.submitted.batch.as_job() == id);
        self.job(id).is_some_and(|job| job.account == account && job.phase != Phase::Settled)
            || batch.is_some_and(|batch| batch.submitted.account == account)
    }

    /// Jobs that wait for a machine, oldest first.
    pub fn queued(&self) -> impl Iterator<Item = JobId> {
        self.queue.places().into_iter().map(|(_, job)| job)
    }

    /// The job that has waited longest for a machine. Tasks of a batch that machines work on do not count: most of a
    /// batch waits for the rest of it.
    pub fn oldest_queued(&self) -> Option<&Job> {
        let jobs = self.queue.places().into_iter().filter_map(|(_, job)| self.jobs.get(&job));
        jobs.into_iter().find(|job| self.batch_of(job).is_none_or(|batch| batch.running == 0))
    }

    /// Jobs that ended and are not settled.
    pub fn ended(&self) -> impl Iterator<Item = JobId> + '_ {
        self.ended.iter().copied()
    }

    /// True if a job with this id, or a batch with these bytes as its id, was submitted in the last days.
    pub fn is_submitted(&self, job: JobId) -> bool {
        self.submissions.get(job).is_some()
    }

    /// True if the submission with the sequence `submission` made no job or no batch, because another account submitted
    /// one with the same id first.
    pub fn is_lost(&self, job: JobId, submission: Seq) -> bool {
        self.submissions.get(job).is_none_or(|first| first.seq < submission)
    }

    /// The sequence of the last stray of an aggregate; zero if there was none.
    pub(crate) fn last_stray(&self, aggregate: Aggregate) -> Seq {
        self.strays.get(&aggregate).copied().unwrap_or_default()
    }
}

/// Serialises a map as a list of pairs, because the keys of a JSON object must be strings.
mod pairs {
    use std::{collections::HashMap, hash::Hash};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S, K, V>(map: &HashMap<K, V>, to: S) -> Result<S::Ok, S::Error>
    where
        S: Serializer,
        K: Serialize,
        V: Serialize,
    {
        to.collect_seq(map)
    }

    pub(crate) fn deserialize<'de, D, K, V>(from: D) -> Result<HashMap<K, V>, D::Error>
    where
        D: Deserializer<'de>,
        K: Deserialize<'de> + Eq + Hash,
        V: Deserialize<'de>,
    {
        Ok(Vec::<(K, V)>::deserialize(from)?.into_iter().collect())
    }
}
