//! Publishes the job's log lines, progress and metrics to the stream OUTPUT.

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

/// How long the broker may take to acknowledge a message.
const ACK: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_millis(500);

/// A message that the broker did not take.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error("the broker did not take the message")]
    Broker(#[from] async_nats::jetstream::context::PublishError),
    #[error("the broker did not acknowledge the message in time")]
    NoAck(#[from] tokio::time::error::Elapsed),
}

/// Publishes a value, and tries again until the broker has it. A second message with the same id is dropped by the
/// broker.
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
        timeout(ACK, ack).await??;
        Ok(())
    };
    while let Err(e) = send().await {
        debug!(error = format!("{:#}", anyhow::Error::new(e)), "the job's output: publishing it again");
        sleep(RETRY).await;
    }
}

/// Publishes how far an attempt is while its code does not run. A message that the broker does not take soon is
/// dropped, since the next one is newer.
pub(super) async fn publish_progress(context: &AttemptContext, fraction: f32, message: String) {
    let progress = Progress { lease: context.lease, fraction, message, occurred_at: SystemClock.now() };
    let sent = timeout(ACK, publish(context, OutputKind::Progress, PROGRESS, &progress, None)).await;
    if sent.is_err() {
        debug!("a progress message is dropped: the broker is away");
    }
}
