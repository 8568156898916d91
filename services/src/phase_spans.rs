//! The phases of a job as spans of a trace: waiting, dispatch, preparing, running, uploading the files, settlement.
//!
//! The span of a phase is recorded when the event that ends the phase is written, with the times of the log. No
//! machine's clock is used.

use gpubnb_domain::{
    World,
    job::{Job, Phase},
};
use gpubnb_events::{JobId, Timestamp};
use gpubnb_runtime::trace::{self, SpanFields};

/// The phase of a job before a command, and the time at which the phase began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PhaseSpan {
    phase: Phase,
    since: Timestamp,
    submitted_at: Timestamp,
    fields: SpanFields,
}

impl PhaseSpan {
    /// The phase that a job is in now.
    pub(crate) fn of(job: &Job) -> Self {
        let attempt = job.attempt.as_ref();
        let fields =
            SpanFields { job: Some(job.id), machine: attempt.map(|a| a.machine), lease: attempt.map(|a| a.lease) };
        Self { phase: job.phase, since: job.since, submitted_at: job.submitted_at, fields }
    }

    /// The job, its machine and its lease.
    pub(crate) fn fields(&self) -> SpanFields {
        self.fields
    }

    /// Records the phase, if it is over in `world`.
    pub(crate) fn record_if_over(&self, id: JobId, world: &World, now: Timestamp) {
        // A job that left memory was settled just now. The time of `Settled` left memory, too, so `now` stands in.
        let (phase, began) = world.job(id).map_or((Phase::Settled, now), |job| (job.phase, job.since));
        if phase == self.phase {
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
        trace::record_past_span(id, span, self.fields, (self.since, began));
        if phase == Phase::Settled {
            trace::record_job_span(id, (self.submitted_at, began));
        }
    }
}
