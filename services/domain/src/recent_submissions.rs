//! The submissions of jobs and batches of the last day. They make it safe to send a submission twice: the second
//! command gets the answer of the first.
//!
//! This file has the state and its fold. The rules for a submission are in `submission.rs`.

use std::{collections::BTreeMap, ops::RangeInclusive};

use gpubnb_events::{
    AccountId, BatchId, JobId, MicroUsd, Millis, Seq, Timestamp,
    event::{BatchSubmitted, JobSubmitted},
    spec::{JobSpec, Limits, Placement},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Time for which the market remembers a job id, in milliseconds from the time inside the id. A submission with an
/// older id is refused.
pub const RETENTION: Millis = Millis(24 * 3_600_000);

/// A submission that the market remembers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// The account that submitted the job.
    pub account: AccountId,
    /// The sequence of `JobSubmitted` or `BatchSubmitted`.
    pub seq: Seq,
    /// True for a batch. The ids of its tasks are taken, too.
    is_batch: bool,
    /// See [`fingerprint`].
    pub(crate) fingerprint: u64,
    pub(crate) budget: MicroUsd,
}

/// The recent submissions, by job id ([`BatchId::as_job`] for a batch). A submission is forgotten two days after its id
/// was made: by then the id has been refused for a day.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RecentSubmissions(BTreeMap<JobId, Submission>);

impl RecentSubmissions {
    /// The submission with this job id, if the market remembers it.
    pub fn get(&self, job: JobId) -> Option<&Submission> {
        self.0.get(&job)
    }

    /// True if a job with this id was submitted, or a batch that has a task with this id.
    pub(crate) fn is_taken(&self, job: JobId) -> bool {
        let batch = BatchId::of_task(job).and_then(|(batch, _)| self.get(batch.as_job()));
        self.get(job).is_some() || batch.is_some_and(|known| known.is_batch)
    }

    /// True if a job or batch with one of these ids was submitted.
    pub(crate) fn is_any_taken(&self, ids: RangeInclusive<JobId>) -> bool {
        self.0.range(ids).next().is_some()
    }

    /// Folds a submission that made a job.
    pub(crate) fn add(&mut self, seq: Seq, at: Timestamp, e: &JobSubmitted) {
        let fingerprint = fingerprint(&e.spec, &e.placement, &e.limits);
        let (account, budget, is_batch) = (e.account, e.limits.budget, false);
        self.insert(e.job, at, Submission { account, seq, is_batch, fingerprint, budget });
    }

    /// Folds a submission that made a batch.
    pub(crate) fn add_batch(&mut self, seq: Seq, at: Timestamp, e: &BatchSubmitted) {
        let (account, budget, is_batch) = (e.account, e.limits.budget, true);
        let fingerprint = batch_fingerprint(e);
        self.insert(e.batch.as_job(), at, Submission { account, seq, is_batch, fingerprint, budget });
    }

    /// Adds a submission, and forgets the ids that are older than two days.
    fn insert(&mut self, id: JobId, at: Timestamp, submission: Submission) {
        self.0.entry(id).or_insert(submission);
        // An id begins with the time at which it was made, so the oldest id is the first.
        while let Some(oldest) = self.0.first_entry() {
            if at.since(oldest.key().made_at()) <= Millis(2 * RETENTION.0) {
                break;
            }
            oldest.remove();
        }
    }
}

/// A hash of everything in a submission except the budget. It shows whether two submissions with the same id have the
/// same content. The budget is compared separately: a submission without a budget may repeat one with any budget.
pub(crate) fn fingerprint(spec: &JobSpec, placement: &Placement, limits: &Limits) -> u64 {
    hash(&(spec, placement, limits.time, limits.max_attempts, limits.queue))
}

/// The same hash for a batch.
pub(crate) fn batch_fingerprint(e: &BatchSubmitted) -> u64 {
    hash(&(fingerprint(&e.spec, &e.placement, &e.limits), &e.tasks, e.max_running, e.max_failures))
}

fn hash(content: &impl Serialize) -> u64 {
    let content = serde_json::to_vec(content);
    // Eight bytes suffice: only submissions with the same id are compared.
    let digest = Sha256::digest(content.unwrap_or_default());
    digest.iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}
