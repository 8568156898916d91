//! Scheduler, settlement and reconciler: for every job, the next thing that should happen to it.
//!
//! Woken by every change, and once a second besides, so that a lost or late message heals.

use std::time::Duration;

use gpubnb_events::{Actor, JobId, Millis, nats::connected, rpc::Failure};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::Leadership;
use crate::{
    domain::{Command, World, job::Phase, machine::Presence},
    execute::Executor,
};

const SWEEP: Duration = Duration::from_secs(1);
/// Jobs taken up in one pass, so that a long queue does not starve settlement.
const PASS: usize = 256;
/// After a start or an outage of the control plane, workers get this long to speak before limits are enforced.
const SETTLING: Millis = Millis(10_000);

/// Runs until shutdown.
pub(crate) async fn manage(executor: Executor, leadership: Leadership, shutdown: CancellationToken) {
    let mut changes = executor.view.changes();
    let mut sweep = tokio::time::interval(SWEEP);
    let mut steady_since = executor.clock.now();
    loop {
        let swept = tokio::select! {
            () = shutdown.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return } else { false },
            _ = sweep.tick() => true,
        };
        if !leadership.leads() || !connected(&executor.log.client()) {
            steady_since = executor.clock.now();
            continue;
        }
        settle(&executor).await;
        schedule(&executor).await;
        if swept && executor.clock.now().since(steady_since) > SETTLING {
            reconcile(&executor).await;
        }
    }
}

async fn settle(executor: &Executor) {
    let ended: Vec<JobId> = executor.view.read(|w| w.ended().take(PASS).collect());
    for job in ended {
        give(executor, Command::Settle(job)).await;
    }
}

async fn schedule(executor: &Executor) {
    let any_free = |w: &World| w.machines().any(|(_, m)| m.has_free_slot());
    let queued: Vec<JobId> =
        executor.view.read(|w| if any_free(w) { w.queued().take(PASS).collect() } else { Vec::new() });
    let now = executor.clock.now();
    for job in queued {
        // Looked at before the command is given: a job that must wait costs no round trip.
        let placeable = executor.view.read(|w| {
            let request = w.job(job).map(|j| (crate::domain::placement::Request::of(j), j));
            request.is_some_and(|(request, _)| crate::domain::placement::choose(w, &request, now).machine.is_some())
        });
        if placeable {
            give(executor, Command::Assign(job)).await;
        }
    }
}

async fn reconcile(executor: &Executor) {
    let now = executor.clock.now();
    let due: Vec<Command> = executor.view.read(|w| {
        w.jobs()
            .filter_map(|job| {
                let lost = |m| w.machine(m).is_some_and(|m| m.presence == Presence::Lost);
                let live = matches!(job.phase, Phase::Assigned | Phase::Accepted | Phase::Running);
                if live && job.attempt.as_ref().is_some_and(|a| lost(a.machine)) {
                    return Some(Command::Abandon(job.id));
                }
                job.expire(now, &executor.settings).map(|_| Command::Expire(job.id))
            })
            .take(PASS)
            .collect()
    });
    for command in due {
        give(executor, command).await;
    }
}

/// Gives a command in the platform's name. A no is fine: another replica was faster, or it is seen again
/// at the next sweep.
async fn give(executor: &Executor, command: Command) {
    match executor.execute(Actor::Platform, &command).await {
        Ok(_) | Err(Failure::Refused(_)) => {}
        Err(Failure::Unavailable(problem)) => warn!(problem, ?command, "will be tried again"),
    }
}
