//! The submissions of the last day. They make it safe to send a submission twice: the second command gets the answer of
//! the first.
//!
//! This file has the state and its fold. The rules for a submission are in `submission.rs`.

use std::collections::BTreeMap;

use gpubnb_events::{
    AccountId, JobId, MicroUsd, Millis, Seq, Timestamp,
    event::JobSubmitted,
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
    /// The sequence of `JobSubmitted`.
    pub seq: Seq,
    /// See [`fingerprint`].
    pub(crate) fingerprint: u64,
    pub(crate) budget: MicroUsd,
}

/// The recent submissions, by job id. A submission is forgotten two days after its id was made: by then the id has been
/// refused for a day.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RecentSubmissions(BTreeMap<JobId, Submission>);

impl RecentSubmissions {
    /// The submission with this job id, if the market remembers it.
    pub fn get(&self, job: JobId) -> Option<&Submission> {
        self.0.get(&job)
    }

    /// Folds a submission, and forgets the ids that are older than two days.
    pub(crate) fn apply(&mut self, seq: Seq, at: Timestamp, e: &JobSubmitted) {
        let fingerprint = fingerprint(&e.spec, &e.placement, &e.limits);
        let budget = e.limits.budget;
        self.0.entry(e.job).or_insert(Submission { account: e.account, seq, fingerprint, budget });
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
    let content = serde_json::to_vec(&(spec, placement, limits.time, limits.max_attempts, limits.queue));
    // Eight bytes suffice: only submissions with the same id are compared.
    let digest = Sha256::digest(content.unwrap_or_default());
    digest.iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}
