//! The memory of recent submissions, which makes it safe to submit a job twice.
//!
//! Belongs here: the state and its fold. Must not come here: the rules for a submission (`submission.rs`).

use std::collections::BTreeMap;

use gpubnb_events::{
    AccountId, JobId, MicroUsd, Millis, Seq, Timestamp,
    event::JobSubmitted,
    spec::{JobSpec, Limits, Placement},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Job ids that were made longer ago than this are refused. Younger ones are remembered.
pub const MEMORY: Millis = Millis(24 * 3_600_000);

/// A submission that is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// The account that submitted the job.
    pub account: AccountId,
    /// The sequence of `JobSubmitted`.
    pub seq: Seq,
    pub(crate) fingerprint: u64,
    pub(crate) budget: MicroUsd,
}

/// The submissions of the last day.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Submissions(BTreeMap<JobId, Submission>);

impl Submissions {
    /// The submission with this job id, if it is remembered.
    pub fn get(&self, job: JobId) -> Option<&Submission> {
        self.0.get(&job)
    }

    /// Folds a submission, and forgets ids that are refused by now.
    pub(crate) fn apply(&mut self, seq: Seq, at: Timestamp, e: &JobSubmitted) {
        let fingerprint = fingerprint(&e.spec, &e.placement, &e.limits);
        let budget = e.limits.budget;
        self.0.entry(e.job).or_insert(Submission { account: e.account, seq, fingerprint, budget });
        // Ids sort by the time in them, so the oldest come first.
        while let Some(oldest) = self.0.first_entry() {
            if at.since(oldest.key().made_at()) <= Millis(2 * MEMORY.0) {
                break;
            }
            oldest.remove();
        }
    }
}

/// A hash that tells two different submissions with one id apart. The budget is compared separately: a submission without a
/// budget repeats one with any budget.
pub(crate) fn fingerprint(spec: &JobSpec, placement: &Placement, limits: &Limits) -> u64 {
    let all = serde_json::to_vec(&(spec, placement, limits.time, limits.max_attempts, limits.queue));
    // Eight bytes suffice: only submissions with the same id are compared.
    let digest = Sha256::digest(all.unwrap_or_default());
    digest.iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}
