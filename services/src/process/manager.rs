//! Scheduler, settlement and reconciler: they execute the next command that each job and each batch needs.
//!
//! They run after every change of the state, and once a second, so that no lost or late message leaves a job waiting.

use std::time::Duration;

use gpubnb_domain::{Command, World, due, queue::ResumePlaces};
use gpubnb_events::{AccountId, Actor, JobId, Timestamp};
use gpubnb_runtime::{nats::is_connected, rpc::RpcError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::Leadership;
use crate::{execute::Executor, secrets::JobSecrets};

const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// A longer pause between two turns means that this process was stopped.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Runs until shutdown.
pub(crate) async fn manage(
    executor: Executor,
    secrets: JobSecrets,
    leadership: Leadership,
    shutdown: CancellationToken,
) {
    let mut applied = executor.replica.watch_applied();
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
    // The time since which this replica leads and is connected. Earlier silence of a worker is no reason to end a job.
    let mut steady_since = executor.clock.now();
    let (mut scheduled, mut last_turn) = (ResumePlaces::new(), Instant::now());
    loop {
        let is_sweep = tokio::select! {
            () = shutdown.cancelled() => return,
            changed = applied.changed() => if changed.is_err() { return } else { false },
            _ = sweep.tick() => true,
        };
        // A long pause means that this process was stopped, and heard no worker meanwhile.
        let was_stopped = last_turn.elapsed() > MAX_PAUSE;
        last_turn = Instant::now();
        if was_stopped || !leadership.is_leader() || !is_connected(&executor.log.client()) {
            steady_since = executor.clock.now();
            continue;
        }
        settle(&executor, &secrets).await;
        tend_batches(&executor, &secrets).await;
        scheduled = schedule(&executor, &scheduled).await;
        if is_sweep {
            expire(&executor, steady_since).await;
        }
    }
}

async fn settle(executor: &Executor, secrets: &JobSecrets) {
    let releases: Vec<Command> = executor.replica.read(|w| due::due_hold_releases(w).collect());
    for release in releases {
        execute(executor, release).await;
    }
    let ended: Vec<(AccountId, JobId)> =
        executor.replica.read(|w| due::due_settlements(w).map(|job| (job.account, job.id)).collect());
    for (account, job) in ended {
        // The newest state tells whether this is the last task of its batch: others may have been settled just now.
        let environment = executor.replica.read(|w| w.job(job).and_then(|job| w.last_use_of_environment(job)));
        // Delete the secrets first: a settled job leaves memory, and no later sweep would find it.
        if let Some(environment) = environment
            && let Err(e) = secrets.delete(account, environment).await
        {
            warn!(error = %e, %job, "the job's secrets could not be deleted; the job is settled later");
            continue;
        }
        execute(executor, Command::Settle(job)).await;
    }
}

/// Assigns jobs from one pass over the queue. Returns where the next pass goes on.
async fn schedule(executor: &Executor, resume: &ResumePlaces) -> ResumePlaces {
    let now = executor.clock.now();
    let pass = executor.replica.read(|w| due::scheduling_pass(w, resume));
    for job in pass.jobs {
        if let Some(command) = executor.replica.read(|w| due::due_assignment(w, job, now)) {
            execute(executor, command).await;
        }
    }
    pass.resume
}

/// Opens tasks, closes batches, and cancels the tasks of closed batches. The secrets of a batch whose tasks are all
/// settled are deleted before the batch is closed; those of another one go with its last task.
async fn tend_batches(executor: &Executor, secrets: &JobSecrets) {
    let now = executor.clock.now();
    for command in executor.replica.read(|w| due::due_batches(w, now, &executor.settings)) {
        let without_use = |w: &World| {
            let batch = if let Command::EndBatch(id) = &command { w.batch(*id)? } else { return None };
            let is_unused = !batch.submitted.spec.env.is_empty() && batch.settled >= batch.opened;
            is_unused.then_some((batch.submitted.account, batch.submitted.batch))
        };
        if let Some((account, batch)) = executor.replica.read(without_use)
            && let Err(e) = secrets.delete(account, batch.as_job()).await
        {
            warn!(error = %e, %batch, "the batch's secrets could not be deleted; the batch is closed later");
            continue;
        }
        execute(executor, command).await;
    }
}

async fn expire(executor: &Executor, steady_since: Timestamp) {
    let now = executor.clock.now();
    for command in executor.replica.read(|w| due::due_expiries(w, now, steady_since, &executor.settings)) {
        execute(executor, command).await;
    }
}

/// Executes a command as the platform. A refusal needs no action: another replica was faster, or the next sweep repeats
/// the command.
async fn execute(executor: &Executor, command: Command) {
    match executor.execute(Actor::Platform, &command).await {
        Ok(_) | Err(RpcError::Refused(_)) => {}
        Err(RpcError::Unavailable(problem)) => warn!(problem, ?command, "the next sweep repeats the command"),
    }
}
