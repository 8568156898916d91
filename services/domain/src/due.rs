//! The commands that process managers should give next, computed from the state and the time alone.
//!
//! Belongs here: every choice of the managers. Must not come here: when they wake up, or how a command is sent
//! (`services/src/process`). The simulation runs these very functions.

use gpubnb_events::{JobId, Millis, Seq, Timestamp};

use crate::{
    Command, Settings, World,
    job::{Job, Phase},
    machine::Presence,
    placement::{self, Request},
};

/// Most jobs in one pass, so that a long queue does not keep jobs from being settled.
pub const PASS: usize = 256;
/// How long workers may report after a start or an outage of the services before limits are enforced.
pub const SETTLING: Millis = Millis(10_000);

/// Jobs that ended and are not settled.
pub fn due_settlements(world: &World) -> impl Iterator<Item = &Job> {
    world.ended().filter_map(|job| world.job(job)).take(PASS)
}

/// One pass over the jobs that wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchedulingPass {
    /// The jobs that are looked at, oldest submission first.
    pub jobs: Vec<JobId>,
    /// The submission after which the next pass begins, so that jobs which nobody can take do not keep later ones from
    /// being looked at; zero where this pass reached the last one.
    pub next: Seq,
}

/// The jobs that wait and were submitted after `after`; none where no machine has a free slot.
pub fn scheduling_pass(world: &World, after: Seq) -> SchedulingPass {
    let any_free = world.machines().any(|(_, m)| m.has_free_slot());
    let waiting = world.queued_after(after).take(if any_free { PASS } else { 0 });
    let (mut jobs, mut last) = (Vec::new(), Seq::ZERO);
    for job in waiting {
        jobs.push(job.id);
        last = job.submission;
    }
    let next = if jobs.len() == PASS { last } else { Seq::ZERO };
    SchedulingPass { jobs, next }
}

/// The assignment of a waiting job, where a machine can take it now. Asked before the command is given: a job that must
/// wait then costs no round trip.
pub fn due_assignment(world: &World, job: JobId, now: Timestamp) -> Option<Command> {
    let waiting = world.job(job).filter(|job| job.phase == Phase::Queued)?;
    placement::choose(world, &Request::of(waiting), now).machine.map(|_| Command::Assign(job))
}

/// The commands for jobs on lost machines, and for jobs that took too long. `steady_since` is the time since which this
/// replica has been leader and connected. Workers could not report before, so the silence before then means nothing.
pub fn due_expiries(world: &World, now: Timestamp, steady_since: Timestamp, settings: &Settings) -> Vec<Command> {
    if now.since(steady_since) <= SETTLING {
        return Vec::new();
    }
    world.jobs().filter_map(|job| due_expiry(world, job, now, steady_since, settings)).take(PASS).collect()
}

fn due_expiry(
    world: &World,
    job: &Job,
    now: Timestamp,
    steady_since: Timestamp,
    settings: &Settings,
) -> Option<Command> {
    let lost = |attempt| world.machine(attempt).is_some_and(|m| m.presence == Presence::Lost);
    if job.phase.is_live() && job.attempt.as_ref().is_some_and(|attempt| lost(attempt.machine)) {
        return Some(Command::Abandon(job.id));
    }
    job.expire(now, steady_since, settings).map(|_| Command::Expire(job.id))
}
