//! Pulls job messages from this machine's own consumer on the stream DISPATCH, and starts an attempt for each message.
//! A job message assigns a job to this machine, and carries the lease of the attempt.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream::{
    AckKind, Context, Message,
    consumer::{PullConsumer, pull},
    stream::{ConsumerError, ConsumerErrorKind},
};
use futures_util::StreamExt;
use gpubnb_events::{
    JobId, Lease,
    command::{Decline, Done, Listed, RestoreQueue},
    event::DeclineReason,
    subject,
};
use gpubnb_log::{dispatch::lease_of, stream::ACK_WAIT};
use gpubnb_runtime::rpc::RpcError;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument as _, info, warn};

use crate::{
    attempt::{self, AttemptContext, Tools},
    lease_table::TakeError,
    owner::ReclaimReason,
};

/// A pull request expires after this time.
const PULL_EXPIRES: Duration = Duration::from_secs(30);
/// The broker sends a heartbeat at this interval during a pull request, so that the worker notices a lost connection.
const PULL_HEARTBEAT: Duration = Duration::from_secs(5);
/// Pause before the next pull request after a failure.
const RETRY: Duration = Duration::from_millis(500);

/// Pulls until shutdown. After each reconnection the worker pulls with a new inbox. The broker may still send the
/// messages of the former pull request to the former inbox, where nobody listens. Such a message is delivered again
/// after its acknowledgement has timed out.
pub(crate) async fn pull(
    (mut listed, mut connects): (Listed, watch::Receiver<u64>),
    tools: Arc<Tools>,
    reclaimed: watch::Receiver<Option<ReclaimReason>>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
) {
    while !shutdown.is_cancelled() {
        let pulling = pull_messages(&listed, &tools, &reclaimed, &tasks, &shutdown);
        tokio::select! {
            () = shutdown.cancelled() => return,
            Ok(()) = connects.changed() => continue,
            result = pulling => if let Err(e) = result {
                let is_missing = is_missing(e.as_ref());
                warn!(error = format!("{:#}", anyhow::anyhow!(e)), "pulling failed: pulling again");
                if is_missing {
                    match tools.platform.call::<Listed>("queue", &RestoreQueue {}).await {
                        Ok(restored) => listed = restored,
                        Err(e) => warn!(error = %e, "the machine's queue of jobs could not be restored"),
                    }
                }
            },
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Returns true if the broker has no such consumer.
fn is_missing(e: &(dyn std::error::Error + 'static)) -> bool {
    let kind = e.downcast_ref::<ConsumerError>().map(ConsumerError::kind);
    matches!(kind, Some(ConsumerErrorKind::JetStream(e)) if e.code() == 404)
}

async fn open_consumer(js: &Context, listed: &Listed) -> Result<pull::Stream, async_nats::Error> {
    let consumer: PullConsumer = js.get_consumer_from_stream(&listed.consumer, &listed.stream).await?;
    Ok(consumer.stream().max_messages_per_batch(1).expires(PULL_EXPIRES).heartbeat(PULL_HEARTBEAT).messages().await?)
}

async fn pull_messages(
    listed: &Listed,
    tools: &Arc<Tools>,
    reclaimed: &watch::Receiver<Option<ReclaimReason>>,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> Result<(), async_nats::Error> {
    let mut messages = open_consumer(&tools.js, listed).await?;
    while let Some(message) = messages.next().await {
        let message = message?;
        if let Some((job, lease)) = job_and_lease(&message) {
            let is_reclaimed = reclaimed.borrow().is_some();
            take_job(message, (job, lease), is_reclaimed, tools, tasks, shutdown).await;
        } else {
            warn!(subject = %message.subject, "a job message without a job or a lease is dropped");
            message.ack_with(AckKind::Term).await?;
        }
    }
    Ok(())
}

/// The job and the lease of a message.
fn job_and_lease(message: &Message) -> Option<(JobId, Lease)> {
    let job = subject::job_of_dispatch(&message.subject)?;
    Some((job, lease_of(message.headers.as_ref())?))
}

async fn take_job(
    message: Message,
    (job, lease): (JobId, Lease),
    is_reclaimed: bool,
    tools: &Arc<Tools>,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) {
    match tools.leases.take(job, lease) {
        // The market assigned the job before it knew that the owner needs the machine.
        Ok(_) if is_reclaimed => {
            tools.leases.release(lease);
            decline(message, Decline { job, lease, reason: DeclineReason::Paused }, tools).await;
        }
        Ok(desired) => {
            info!(%job, lease = lease.0.0, "the job is taken");
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
        // The attempt runs already: this worker resumed the attempt after a restart, or the broker delivered the
        // message twice. Put the message back: the broker delivers it again until the attempt has ended.
        Err(TakeError::Duplicate) => {
            if let Err(e) = message.ack_with(AckKind::Nak(Some(ACK_WAIT))).await {
                warn!(error = %e, "a job message could not be put back");
            }
        }
        Err(TakeError::Full) => {
            decline(message, Decline { job, lease, reason: DeclineReason::NoFreeSlot }, tools).await;
        }
    }
}

/// Sends a job back to the market, which looks for another machine.
async fn decline(message: Message, decline: Decline, tools: &Tools) {
    match tools.platform.call::<Done>("decline", &decline).await {
        Ok(_) | Err(RpcError::Refused(_)) => acknowledge(&message).await,
        Err(RpcError::Unavailable(problem)) => warn!(%problem, "declining at the next delivery of the message"),
    }
}

/// Tells the broker at intervals that the message is still in progress, so that its acknowledgement does not time out.
/// Never returns.
async fn keep_in_progress(message: &Message) {
    loop {
        tokio::time::sleep(ACK_WAIT / 3).await;
        if let Err(e) = message.ack_with(AckKind::Progress).await {
            warn!(error = %e, "the progress of a job message could not be sent to the broker");
        }
    }
}

async fn acknowledge(message: &Message) {
    if let Err(e) = message.ack().await {
        warn!(error = %e, "a job message could not be acknowledged: the broker delivers it again");
    }
}
