//! Publishes a job's log lines, progress and metrics to the broker's stream OUTPUT.

use std::time::Duration;

use async_nats::HeaderMap;
use gpubnb_events::{
    Clock as _, SystemClock,
    message::header,
    output::{PROGRESS, Progress},
    subject::{self, OutputKind},
};
use serde::Serialize;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::context::AttemptContext;

/// Longest time to wait for the broker's acknowledgement of a message.
const ACK_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause between two tries.
const RETRY: Duration = Duration::from_millis(500);

/// The error for a message that is not in the stream.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error("the broker did not take the message")]
    Broker(#[from] async_nats::jetstream::context::PublishError),
    #[error("the broker did not acknowledge the message in time")]
    NoAck(#[from] tokio::time::error::Elapsed),
}

/// Publishes a value, and tries again until the broker has acknowledged it. The broker drops a second message with the
/// same id.
pub(super) async fn publish(
    context: &AttemptContext,
    kind: OutputKind,
    wire_name: &str,
    value: &impl Serialize,
    id: Option<String>,
) {
    let payload = match serde_json::to_vec(value) {
        Ok(payload) => payload,
        Err(e) => return warn!(wire_name, error = %e, "a message cannot be written as JSON: it is dropped"),
    };
    let subject = subject::output(context.tools.machine, context.job, kind);
    let mut headers = HeaderMap::new();
    headers.insert(header::TYPE, wire_name);
    if let Some(id) = id {
        headers.insert(header::ID, id);
    }
    let send = async || -> Result<(), PublishError> {
        let js = &context.tools.js;
        let ack = js.publish_with_headers(subject.clone(), headers.clone(), payload.clone().into()).await?;
        timeout(ACK_TIMEOUT, ack).await??;
        Ok(())
    };
    while let Err(e) = send().await {
        debug!(error = format!("{:#}", anyhow::Error::new(e)), "publishing output of a job failed: trying again");
        sleep(RETRY).await;
    }
}

/// Publishes the progress of an attempt while the job's code does not run. `fraction` is from 0 to 1. If the broker
/// does not acknowledge the message soon, the message is dropped, because the next message replaces it.
pub(super) async fn publish_progress(context: &AttemptContext, fraction: f32, message: String) {
    let progress = Progress { lease: context.lease, fraction, message, occurred_at: SystemClock.now() };
    let sent = timeout(ACK_TIMEOUT, publish(context, OutputKind::Progress, PROGRESS, &progress, None)).await;
    if sent.is_err() {
        debug!("a progress message is dropped: the broker does not answer");
    }
}
