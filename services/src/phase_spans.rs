//! The phases of a job as spans: waiting, dispatch, preparing, running, settlement.
//!
//! The span of a phase is recorded when the event that ends the phase is written, with the times of the log. The spans
//! therefore cover the time that a machine had the job, and no machine has to be asked or believed for them.

use gpubnb_domain::{
    World,
    job::{Job, Phase},
};
use gpubnb_events::{JobId, Timestamp};
use gpubnb_runtime::trace::{self, About};

/// The phase that a job was in before a command, and since when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PhaseSpan {
    phase: Phase,
    since: Timestamp,
    submitted_at: Timestamp,
    about: About,
}

impl PhaseSpan {
    /// The phase that a job is in now.
    pub(crate) fn of(job: &Job) -> Self {
        let attempt = job.attempt.as_ref();
        let about = About { job: Some(job.id), machine: attempt.map(|a| a.machine), lease: attempt.map(|a| a.lease) };
        Self { phase: job.phase, since: job.since, submitted_at: job.submitted_at, about }
    }

    /// The job, its machine and its lease.
    pub(crate) fn about(&self) -> About {
        self.about
    }

    /// Records the phase, if it is over in `world`.
    pub(crate) fn record_if_over(&self, id: JobId, world: &World, now: Timestamp) {
        // A job that left memory is settled.
        let after = world.job(id).map_or((Phase::Settled, now), |job| (job.phase, job.since));
        if after.0 == self.phase {
            return;
        }
        let span = match self.phase {
            Phase::Queued => "queue",
            Phase::Assigned => "dispatch",
            Phase::Accepted => "prepare",
            Phase::Running => "container",
            Phase::Collecting => "files",
            Phase::Ended => "settlement",
            Phase::Settled => return,
        };
        trace::past(id, span, self.about, (self.since, after.1));
        if after.0 == Phase::Settled {
            trace::whole(id, (self.submitted_at, after.1));
        }
    }
}
