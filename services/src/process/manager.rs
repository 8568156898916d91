//! Scheduler, settlement and reconciler: for every job, the next thing that should happen to it.
//!
//! Woken by every change, and once a second besides, so that a lost or late message heals.

use std::time::Duration;

use gpubnb_events::{Actor, JobId, Millis, Seq, nats::connected, rpc::Failure};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::Leadership;
use crate::{
    domain::{Command, job::Phase, machine::Presence, placement},
    execute::Executor,
    secrets::JobEnv,
};

const SWEEP: Duration = Duration::from_secs(1);
/// Jobs taken up in one pass, so that a long queue does not starve settlement.
const PASS: usize = 256;
/// After a start or an outage of the control plane, workers get this long to speak before limits are enforced.
const SETTLING: Millis = Millis(10_000);

/// Runs until shutdown.
pub(crate) async fn manage(executor: Executor, secrets: JobEnv, leadership: Leadership, shutdown: CancellationToken) {
    let mut changes = executor.view.changes();
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
        if swept && executor.clock.now().since(steady_since) > SETTLING {
            reconcile(&executor).await;
        }
    }
}

async fn settle(executor: &Executor, secrets: &JobEnv) {
    let ended: Vec<(JobId, bool)> = executor.view.read(|w| {
        let had_secrets = |job| w.job(job).is_some_and(|job| !job.spec.env.is_empty());
        w.ended().take(PASS).map(|job| (job, had_secrets(job))).collect()
    });
    for (job, had_secrets) in ended {
        // Before the job leaves memory: whatever fails here is tried again at the next sweep.
        if had_secrets && let Err(e) = secrets.forget(job).await {
            warn!(error = %e, %job, "its secrets are deleted later, and it is settled then");
            continue;
        }
        give(executor, Command::Settle(job)).await;
    }
}

/// Looks at the jobs that were submitted after `after`, a pass at a time, so that jobs nobody can take do not
/// keep later ones from being looked at. Returns where the next pass begins.
async fn schedule(executor: &Executor, after: Seq) -> Seq {
    let now = executor.clock.now();
    let waiting: Vec<(Seq, JobId)> = executor.view.read(|w| {
        let any_free = w.machines().any(|(_, m)| m.has_free_slot());
        let queued = w.queued_after(after).take(if any_free { PASS } else { 0 });
        queued.map(|job| (job.submission, job.id)).collect()
    });
    for (_, job) in &waiting {
        // Looked at before the command is given: a job that must wait costs no round trip.
        let placeable = executor.view.read(|w| {
            let chosen = w.job(*job).map(|job| placement::choose(w, &placement::Request::of(job), now));
            chosen.is_some_and(|choice| choice.machine.is_some())
        });
        if placeable {
            give(executor, Command::Assign(*job)).await;
        }
    }
    match waiting.last() {
        Some((seq, _)) if waiting.len() == PASS => *seq,
        _ => Seq::ZERO,
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
