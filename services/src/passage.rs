//! How a job passed through its phases, as spans: each is recorded when the event is written that ends it, by the
//! times of the log. What the machine did while it had the job is in them: it is not asked, and need not be believed.

use gpubnb_domain::{
    World,
    job::{Job, Phase},
};
use gpubnb_events::{JobId, Timestamp};
use gpubnb_runtime::trace::{self, About};

/// Where a job was before an event.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Passage {
    phase: Phase,
    since: Timestamp,
    submitted_at: Timestamp,
    about: About,
}

impl Passage {
    /// Looks at a job.
    pub(crate) fn of(job: &Job) -> Self {
        let attempt = job.attempt.as_ref();
        let about = About { job: Some(job.id), machine: attempt.map(|a| a.machine), lease: attempt.map(|a| a.lease) };
        Self { phase: job.phase, since: job.since, submitted_at: job.submitted_at, about }
    }

    /// What is known of it.
    pub(crate) fn about(&self) -> About {
        self.about
    }

    /// Records the phase that ended, if one did.
    pub(crate) fn recorded(&self, id: JobId, world: &World, now: Timestamp) {
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
            Phase::Ended => "settlement",
            Phase::Settled => return,
        };
        trace::past(id, span, self.about, (self.since, after.1));
        if after.0 == Phase::Settled {
            trace::whole(id, (self.submitted_at, after.1));
        }
    }
}
