//! Scheduler, settlement and reconciler: they give the next command that each job needs.
//!
//! Every change of the state wakes them. They also look once a second, so that no lost or late message leaves a job
//! behind.

use std::time::Duration;

use gpubnb_domain::{Command, due};
use gpubnb_events::{Actor, JobId, Seq, Timestamp};
use gpubnb_runtime::{nats::connected, rpc::Failure};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::Leadership;
use crate::{execute::Executor, secrets::JobEnv};

const SWEEP: Duration = Duration::from_secs(1);

/// Runs until shutdown.
pub(crate) async fn manage(executor: Executor, secrets: JobEnv, leadership: Leadership, shutdown: CancellationToken) {
    let mut changes = executor.replica.changes();
    let mut sweep = tokio::time::interval(SWEEP);
    let mut steady_since = executor.clock.now();
    let mut scheduled = Seq::ZERO;
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
        settle(&executor, &secrets).await;
        scheduled = schedule(&executor, scheduled).await;
        if swept {
            expire(&executor, steady_since).await;
        }
    }
}

async fn settle(executor: &Executor, secrets: &JobEnv) {
    let ended: Vec<(JobId, bool)> =
        executor.replica.read(|w| due::due_settlements(w).map(|job| (job.id, !job.spec.env.is_empty())).collect());
    for (job, had_secrets) in ended {
        // Delete the secrets first: after its settlement the job has left memory, and nobody would try again.
        if had_secrets && let Err(e) = secrets.forget(job).await {
            warn!(error = %e, %job, "the job's secrets are deleted later, and the job is settled then");
            continue;
        }
        give(executor, Command::Settle(job)).await;
    }
}

/// Assigns the jobs of one pass over the queue that can be assigned. Returns where the next pass begins.
async fn schedule(executor: &Executor, after: Seq) -> Seq {
    let now = executor.clock.now();
    let pass = executor.replica.read(|w| due::scheduling_pass(w, after));
    for job in pass.jobs {
        if let Some(command) = executor.replica.read(|w| due::due_assignment(w, job, now)) {
            give(executor, command).await;
        }
    }
    pass.next
}

async fn expire(executor: &Executor, steady_since: Timestamp) {
    let now = executor.clock.now();
    for command in executor.replica.read(|w| due::due_expiries(w, now, steady_since, &executor.settings)) {
        give(executor, command).await;
    }
}

/// Gives a command in the platform's name. A refusal is fine: either another replica was faster, or the next sweep
/// gives the command again.
async fn give(executor: &Executor, command: Command) {
    match executor.execute(Actor::Platform, &command).await {
        Ok(_) | Err(Failure::Refused(_)) => {}
        Err(Failure::Unavailable(problem)) => warn!(problem, ?command, "will be tried again"),
    }
}
