//! Pulls job messages from this machine's own consumer and starts an attempt for each.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream::{
    AckKind, Context, Message,
    consumer::{PullConsumer, pull},
};
use futures_util::StreamExt;
use gpubnb_events::{
    JobId, Lease,
    command::{Decline, Done, Listed},
    event::DeclineReason,
    subject,
};
use gpubnb_log::{dispatch::lease_of, stream::ACK_WAIT};
use gpubnb_runtime::rpc::Failure;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument as _, info, warn};

use crate::{
    attempt::{self, AttemptContext, Tools},
    lease_table::NotTaken,
};

/// A pull request expires after this time. The broker sends heartbeats meanwhile, so that a lost connection is noticed.
const EXPIRES: Duration = Duration::from_secs(30);
const HEARTBEAT: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(500);

/// Pulls until shutdown. After each reconnection the worker pulls from a new inbox. The broker may still send the
/// messages of the former pull request to the former inbox, where nobody listens; they would be lost until their ack
/// times out.
pub(crate) async fn pull(
    js: Context,
    mut connects: watch::Receiver<u64>,
    listed: Listed,
    tools: Arc<Tools>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
) {
    while !shutdown.is_cancelled() {
        let pulled = pull_open(&js, &listed, &tools, &tasks, &shutdown);
        tokio::select! {
            () = shutdown.cancelled() => return,
            Ok(()) = connects.changed() => continue,
            ended = pulled => if let Err(e) = ended {
                warn!(error = format!("{:#}", anyhow::anyhow!(e)), "pulling failed: pulling again");
            },
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn open(js: &Context, listed: &Listed) -> Result<pull::Stream, async_nats::Error> {
    let consumer: PullConsumer = js.get_consumer_from_stream(&listed.consumer, &listed.stream).await?;
    Ok(consumer.stream().max_messages_per_batch(1).expires(EXPIRES).heartbeat(HEARTBEAT).messages().await?)
}

async fn pull_open(
    js: &Context,
    listed: &Listed,
    tools: &Arc<Tools>,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> Result<(), async_nats::Error> {
    let mut messages = open(js, listed).await?;
    while let Some(message) = messages.next().await {
        let message = message?;
        if let Some((job, lease)) = read(&message) {
            take(message, job, lease, tools, tasks, shutdown).await;
        } else {
            warn!(subject = %message.subject, "a job message has no lease: it is dropped");
            message.ack_with(AckKind::Term).await?;
        }
    }
    Ok(())
}

/// The job and the lease of a message.
fn read(message: &Message) -> Option<(JobId, Lease)> {
    let job = subject::job_of_dispatch(&message.subject)?;
    Some((job, lease_of(message.headers.as_ref())?))
}

async fn take(
    message: Message,
    job: JobId,
    lease: Lease,
    tools: &Arc<Tools>,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) {
    match tools.leases.take(job, lease) {
        Ok(desired) => {
            info!(%job, lease = lease.0.0, "taken");
            let context = AttemptContext::new(Arc::clone(tools), job, lease, desired);
            let (span, stop) = (context.span(), shutdown.clone());
            let run = async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = keep_in_progress(&message) => {}
                    () = attempt::carry_out(context) => acknowledge(&message).await,
                }
            };
            tasks.spawn(run.instrument(span));
        }
        // The attempt runs already: this worker took it up again after a restart, or the broker delivered the message
        // twice. The message comes again until the attempt has ended.
        Err(NotTaken::Already) => {
            if let Err(e) = message.ack_with(AckKind::Nak(Some(ACK_WAIT))).await {
                warn!(error = %e, "a message could not be put back");
            }
        }
        Err(NotTaken::Full) => {
            let decline = Decline { job, lease, reason: DeclineReason::NoFreeSlot };
            match tools.platform.ask::<Done>("decline", &decline).await {
                Ok(_) | Err(Failure::Refused(_)) => acknowledge(&message).await,
                Err(Failure::Unavailable(problem)) => warn!(%problem, "a job is declined when its message comes again"),
            }
        }
    }
}

/// Tells the broker that the message is being worked on, for as long as this runs.
async fn keep_in_progress(message: &Message) {
    loop {
        tokio::time::sleep(ACK_WAIT / 3).await;
        if let Err(e) = message.ack_with(AckKind::Progress).await {
            warn!(error = %e, "the broker could not be told that a job is in progress");
        }
    }
}

async fn acknowledge(message: &Message) {
    if let Err(e) = message.ack().await {
        warn!(error = %e, "a message could not be acknowledged: it comes again, and its lease is refused then");
    }
}
