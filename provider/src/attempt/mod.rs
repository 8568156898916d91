//! An attempt at a job on this machine, from the job message to the delivered report.
//!
//! The steps of an attempt, each in the file of its name:
//! 1. Accept the lease.
//! 2. `prepare`: create the container, and record the event `Started` in the market's log. If the job may reach the
//!    internet, `door` opens its way there first.
//! 3. Start the container, but only after `Started` is recorded.
//! 4. `run`: wait until the container has ended. At the same time `log` forwards the job's log, and
//!    `unfinished` shows the line that the job is still writing.
//! 5. `artifacts`: list and hash the files that the job left. If that takes long, or if there are files to upload, the
//!    event `Exited` is recorded first, so that the time for it is not run time.
//! 6. `report`: upload the files, and deliver the report.
//!
//! When the worker stops, the containers go on. At the next start of the worker, `resume` finds them by their labels.
//!
//! Belongs here: the steps of one attempt, and the tools that attempts share, such as the cache of images. Must not
//! come here: what goes on without attempts, such as heartbeats.

mod artifacts;
mod container;
mod context;
mod dataset_cache;
mod datasets;
mod door;
mod download;
mod end;
#[cfg(test)]
mod gpu_loss;
mod image_cache;
mod images;
mod inputs;
mod job_disk;
mod log;
mod log_lines;
mod outage;
mod pids_watch;
mod prepare;
mod problem;
mod publish;
mod report;
mod resume;
mod run;
mod run_clock;
mod stop;
#[cfg(test)]
mod testing;
mod unfinished;
mod upload;
mod watch;

use std::time::Duration;

use bollard::{container::LogOutput, errors::Error};
use futures_util::Stream;
use gpubnb_events::{
    command::{Accept, Grant},
    signed_log::LogChain,
};
use tracing::{debug, info, warn};

pub(crate) use self::{
    context::{AttemptContext, Tools},
    dataset_cache::DatasetCache,
    door::DoorRules,
    image_cache::CacheLimits,
    images::{ImageRules, Images},
    job_disk::JobDisks,
    resume::{has_attempts, resume_all},
};
use self::{end::AttemptEnd, prepare::ContainerOrigin, problem::Problem, report::PendingReport, watch::RunSignals};

/// Pause between a report and the first try to remove its container.
const REMOVE_AFTER: Duration = Duration::from_millis(50);
/// Most tries to remove a container. The next start of the worker tries again.
const REMOVE_TRIES: u32 = 100;
/// Longest pause between two tries. Each pause is four times as long as the last.
const REMOVE_PAUSE: Duration = Duration::from_secs(60);

/// Carries out an attempt until its report is delivered or its lease is over. Then removes its container.
pub(crate) async fn carry_out(context: AttemptContext) {
    let mut disk_bytes = None;
    tokio::select! {
        () = context.abandoned() => {
            info!(job = %context.job, lease = context.lease.0.0, "the attempt is abandoned: its lease is over");
        }
        () = execute_and_report(&context, &mut disk_bytes) => {}
    }
    context.tools.leases.release(context.lease);
    clean_up(context, disk_bytes);
}

/// Carries out an attempt, and continues where a former run of the worker stopped. Sets `disk_bytes`, the size of the
/// job's disk, as soon as the size is known.
async fn execute_and_report(context: &AttemptContext, disk_bytes: &mut Option<u64>) {
    let (pending, log) = if let Some(pending) = PendingReport::read(&context.directory()) {
        // The attempt ended during a former run of the worker. Part of its log may not have been forwarded.
        let log = log::forward(context, &RunSignals::ended()).await;
        (pending, log)
    } else {
        let accept = Accept { job: context.job, lease: context.lease };
        let grant = match context.tools.platform.call_until_answered::<Grant>("accept", &accept).await {
            Ok(grant) => grant,
            Err(refusal) => {
                return info!(job = %context.job, lease = context.lease.0.0, %refusal, "the attempt is refused");
            }
        };
        *disk_bytes = Some(grant.spec.resources.disk_size().bytes());
        Box::pin(execute(context, &grant)).await
    };
    report::deliver(context, pending, log).await;
}

/// Prepares and starts the container, and waits until it has ended and its log is forwarded. Returns the report, and
/// the log that was forwarded.
async fn execute(context: &AttemptContext, grant: &Grant) -> (PendingReport, Option<LogChain>) {
    let (origin, written) = match prepare_and_start(context, grant).await {
        Ok(started) => started,
        Err(end) => return (report::make_report(context, grant, end).await, None),
    };
    // A container may have written something before this run of the worker.
    let signals = RunSignals::running(origin == ContainerOrigin::FormerRun);
    let (usage_sender, usage) = tokio::sync::watch::channel(None);
    let reported = async {
        let end = run::wait_for_end(context, grant, origin, &signals).await;
        usage_sender.send_replace(end.has_run().then(|| end.usage()));
        report::make_report(context, grant, end).await
    };
    let finished = async { tokio::join!(reported, log::forward(context, &signals)) };
    let meanwhile = async {
        tokio::join!(
            report::announce_slow_exit(context, usage),
            unfinished::show(context, written, &signals),
            door::save_traffic(context)
        );
        std::future::pending().await
    };
    tokio::select! {
        finished = finished => finished,
        never = meanwhile => never,
    }
}

/// Prepares and starts the container. Also returns the stream of what the container writes. The worker attaches to the
/// container before the start, so that no byte is missed.
async fn prepare_and_start(
    context: &AttemptContext,
    grant: &Grant,
) -> Result<(ContainerOrigin, Option<impl Stream<Item = Result<LogOutput, Error>> + use<>>), AttemptEnd> {
    door::open(context, grant).map_err(AttemptEnd::Failed)?;
    let origin = prepare::prepare(context, grant).await?;
    let directory = context.directory();
    let save_clocks = async {
        if origin == ContainerOrigin::ThisRun {
            run_clock::save_before_start(&directory).await;
        }
    };
    // If Docker refuses, unfinished lines are not shown, and the log is read from the start on.
    let (attached, ()) = tokio::join!(context.container.attach(), save_clocks);
    if let Err(e) = &attached {
        debug!(lease = context.lease.0.0, error = %e, "unfinished lines are not shown");
    }
    let written = attached.ok();
    let is_started_now = match origin {
        ContainerOrigin::ThisRun => context.container.start().await.map(|()| true),
        ContainerOrigin::FormerRun => context.container.start_unless_started().await,
    };
    if is_started_now.map_err(AttemptEnd::Failed)? {
        run_clock::save_start(&directory);
        return Ok((ContainerOrigin::ThisRun, written));
    }
    Ok((origin, written))
}

/// Removes the container and the directory of an attempt in the background, because Docker needs long to remove a
/// container. Then makes a spare disk for the next job.
fn clean_up(context: AttemptContext, disk_bytes: Option<u64>) {
    tokio::spawn(async move {
        let mut pause = REMOVE_AFTER;
        for _ in 0..REMOVE_TRIES {
            tokio::time::sleep(pause).await;
            match remove(&context).await {
                Ok(()) => break,
                Err(e) => warn!(
                    lease = context.lease.0.0,
                    error = format!("{e:#}"),
                    "the container of an attempt could not be removed: trying again"
                ),
            }
            pause = (pause * 4).min(REMOVE_PAUSE);
        }
        if let Some(bytes) = disk_bytes {
            context.tools.job_disks.make_spare(bytes).await;
        }
    });
}

async fn remove(context: &AttemptContext) -> anyhow::Result<()> {
    context.container.remove().await?;
    door::remove(context).await?;
    Ok(job_disk::remove(&context.directory()).await?)
}
