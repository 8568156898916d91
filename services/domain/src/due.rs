//! The commands that the process managers should give next. They depend only on the state and the time.
//!
//! A process manager is a part of the platform that gives commands without being asked. The scheduler assigns waiting
//! jobs, the settlement bills ended jobs, and the reconciler ends jobs that are lost or too slow.
//! `services/src/process` calls these functions and sends the commands. The simulation in `tests/` calls the same
//! functions.

use gpubnb_events::{BatchId, JobId, Millis, Timestamp};

use crate::{
    Command, Settings, World,
    batch::Batch,
    job::{Job, Phase},
    machine::Presence,
    placement::{self, Request},
    queue::ResumePlaces,
};

/// Most jobs that a manager looks at in one pass. The limit makes sure that a long queue does not delay the other
/// managers.
pub const MAX_PER_PASS: usize = 256;
/// Time that workers have to report after a start or an outage of the services, before limits are enforced.
/// Milliseconds.
pub const REPORT_GRACE: Millis = Millis(10_000);

/// Jobs that ended and are not settled. At most [`MAX_PER_PASS`].
pub fn due_settlements(world: &World) -> impl Iterator<Item = &Job> {
    world.ended().filter_map(|job| world.job(job)).take(MAX_PER_PASS)
}

/// The commands that release the holds of submissions that made no job. At most [`MAX_PER_PASS`].
pub fn due_hold_releases(world: &World) -> impl Iterator<Item = Command> {
    let lost = world.lost_submissions.iter().take(MAX_PER_PASS);
    lost.map(|(submission, lost)| Command::ReleaseHold(lost.account, *submission))
}

/// One pass of the scheduler over the waiting jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchedulingPass {
    /// The jobs to look at, in the order of fair shares (`queue.rs`).
    pub jobs: Vec<JobId>,
    /// The next pass goes on after these places. So jobs that no machine can take do not block later jobs.
    pub resume: ResumePlaces,
}

/// The next pass over the waiting jobs: those after the places at which the last pass stopped. The pass is empty if no
/// machine has a free slot.
pub fn scheduling_pass(world: &World, resume: &ResumePlaces) -> SchedulingPass {
    let has_free_slot = world.machines().any(|(_, m)| m.has_free_slot());
    if !has_free_slot {
        return SchedulingPass { jobs: Vec::new(), resume: ResumePlaces::new() };
    }
    let (jobs, resume) = world.fair_order(resume, MAX_PER_PASS);
    SchedulingPass { jobs, resume }
}

/// The next commands for batches: they open tasks, close batches, and cancel the tasks of closed batches. At most
/// [`MAX_PER_PASS`].
pub fn due_batches(world: &World, now: Timestamp, settings: &Settings) -> Vec<Command> {
    let of_batch = |(id, batch): (&BatchId, &Batch)| {
        let own = if batch.end(now).is_ok() {
            Some(Command::EndBatch(*id))
        } else {
            world.open_tasks(batch, now, settings).ok().map(|_| Command::OpenTasks(*id))
        };
        // A program that has ended cannot be cancelled: its task ends by itself.
        let may_cancel = |job: &&Job| job.cancel.is_none() && job.phase != Phase::Collecting && job.ending.is_none();
        let tasks = batch.closed.map(|_| world.jobs.range(batch.opened_tasks())).into_iter().flatten();
        own.into_iter().chain(tasks.map(|(_, job)| job).filter(may_cancel).map(|job| Command::Cancel(job.id)))
    };
    world.batches.iter().flat_map(of_batch).take(MAX_PER_PASS).collect()
}

/// The command that assigns a waiting job; `None` if no machine can take the job now. This check avoids sending
/// commands that would be refused.
pub fn due_assignment(world: &World, job: JobId, now: Timestamp) -> Option<Command> {
    let waiting = world.job(job).filter(|job| job.phase == Phase::Queued)?;
    if world.batch_of(waiting).is_some_and(Batch::is_full) {
        return None;
    }
    placement::choose(world, &Request::of(waiting), now).machine.map(|_| Command::Assign(job))
}

/// The commands for jobs on lost machines, and for jobs that exceeded a limit. `steady_since` is the time at which this
/// replica became leader, or was last connected again. Workers could not report before, so no job is ended in the first
/// [`REPORT_GRACE`] after it.
pub fn due_expiries(world: &World, now: Timestamp, steady_since: Timestamp, settings: &Settings) -> Vec<Command> {
    if now.since(steady_since) <= REPORT_GRACE {
        return Vec::new();
    }
    world.jobs().filter_map(|job| due_expiry(world, job, now, steady_since, settings)).take(MAX_PER_PASS).collect()
}

/// The command that ends this job or its attempt; `None` if the job may go on.
fn due_expiry(
    world: &World,
    job: &Job,
    now: Timestamp,
    steady_since: Timestamp,
    settings: &Settings,
) -> Option<Command> {
    let is_lost = |machine| world.machine(machine).is_some_and(|m| m.presence == Presence::Lost);
    if job.phase.is_live() && job.attempt.as_ref().is_some_and(|attempt| is_lost(attempt.machine)) {
        return Some(Command::Abandon(job.id));
    }
    if world.may_wait(job, now) {
        return None;
    }
    job.expire(now, steady_since, settings).map(|_| Command::Expire(job.id))
}
