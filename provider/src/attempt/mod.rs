//! An attempt at a job on this machine, from the job message to the delivered report.
//!
//! The way of an attempt, each step in a file of its name: accept the lease, `prepare` the container and record
//! `Started`, start the container, `run` until it has ended while `log` is forwarded, list the `artifacts`, and deliver
//! the `report`. The container is started only after `Started` is in the log of events.
//!
//! A worker that stops drops its attempts, and tears nothing down: the containers run on, and `resume` finds them at
//! the next start by their labels.

mod artifacts;
mod boot_id;
mod container;
mod context;
mod end;
#[cfg(test)]
mod gpu_loss;
mod image_cache;
mod images;
mod inputs;
mod log;
mod log_lines;
mod outage;
mod output_volume;
mod prepare;
mod problem;
mod publish;
mod report;
mod resume;
mod run;
mod stop;
#[cfg(test)]
mod testing;
mod upload;
mod watch;

use std::time::Duration;

use gpubnb_events::command::{Accept, Grant};
use tracing::{info, warn};

pub(crate) use self::{
    context::{AttemptContext, Tools},
    image_cache::CacheLimits,
    images::{ImageRules, Images},
    output_volume::OutputVolumes,
    resume::resume_all,
};
use self::{end::End, prepare::Origin, problem::Problem, report::PendingReport, watch::RunSignals};

/// Pause between a report and the first try to remove its container.
const REMOVE_AFTER: Duration = Duration::from_millis(50);
/// How often, and with what longest pause, a removal is tried. The next start of the worker tries again.
const REMOVE_TRIES: u32 = 100;
const REMOVE_PAUSE: Duration = Duration::from_secs(60);

/// Carries out an attempt until its report is delivered, or its lease is over.
pub(crate) async fn carry_out(context: AttemptContext) {
    let mut output_bytes = None;
    tokio::select! {
        () = context.abandoned() => {
            info!(job = %context.job, lease = context.lease.0.0, "abandoned: the lease is no longer live");
        }
        () = until_reported(&context, &mut output_bytes) => {}
    }
    context.tools.leases.release(context.lease);
    clean_up(context, output_bytes);
}

/// Goes on with the attempt from wherever a former run of the worker left it. Sets `output_bytes`, the size of the job's
/// output volume, as soon as it is known.
async fn until_reported(context: &AttemptContext, output_bytes: &mut Option<u64>) {
    let pending = if let Some(pending) = PendingReport::read(&context.directory()) {
        // The attempt had ended when the worker did. Some of its log may not have been forwarded.
        log::forward(context, &RunSignals::ended()).await;
        pending
    } else {
        let accept = Accept { job: context.job, lease: context.lease };
        let grant = match context.tools.platform.insist::<Grant>("accept", &accept).await {
            Ok(grant) => grant,
            Err(refusal) => {
                return info!(job = %context.job, lease = context.lease.0.0, %refusal, "not accepted");
            }
        };
        *output_bytes = Some(grant.spec.resources.output.bytes());
        execute(context, &grant).await
    };
    report::deliver(context, pending).await;
}

/// Prepares the container, starts it, and waits until it has ended and its log is forwarded.
async fn execute(context: &AttemptContext, grant: &Grant) -> PendingReport {
    let origin = match prepare_and_start(context, grant).await {
        Ok(origin) => origin,
        Err(end) => return report::conclude(context, grant, end).await,
    };
    let signals = RunSignals::running();
    let concluded = async {
        let end = run::until_end(context, grant, origin, &signals).await;
        report::conclude(context, grant, end).await
    };
    let (pending, ()) = tokio::join!(concluded, log::forward(context, &signals));
    pending
}

async fn prepare_and_start(context: &AttemptContext, grant: &Grant) -> Result<Origin, End> {
    let origin = prepare::prepare(context, grant).await?;
    let started = match origin {
        Origin::ThisRun => context.container.start().await,
        Origin::FormerRun => context.container.start_once().await,
    };
    started.map_err(End::Failed)?;
    Ok(origin)
}

/// Removes the container and the directory of an attempt in the background, and makes a volume ready for the next job.
/// Docker takes long to remove a container, and the consumer's bill should not wait for that.
fn clean_up(context: AttemptContext, output_bytes: Option<u64>) {
    tokio::spawn(async move {
        let mut pause = REMOVE_AFTER;
        for _ in 0..REMOVE_TRIES {
            tokio::time::sleep(pause).await;
            match remove(&context).await {
                Ok(()) => break,
                Err(e) => warn!(
                    lease = context.lease.0.0,
                    error = format!("{e:#}"),
                    "the container of an attempt could not be removed yet"
                ),
            }
            pause = (pause * 4).min(REMOVE_PAUSE);
        }
        if let Some(bytes) = output_bytes {
            context.tools.output_volumes.make_spare(bytes).await;
        }
    });
}

async fn remove(context: &AttemptContext) -> anyhow::Result<()> {
    context.container.remove().await?;
    Ok(output_volume::remove(&context.directory()).await?)
}
