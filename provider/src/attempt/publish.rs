//! Adds a job's log lines, progress and metrics to the market's stream OUTPUT. The worker sends the output to the
//! services, which write it to the stream if the lease is not over.

use std::time::Duration;

use gpubnb_events::{
    Clock as _, SystemClock,
    command::{AddOutput, Done},
    output::{Output, Progress},
};
use tokio::time::timeout;
use tracing::debug;

use super::context::AttemptContext;

/// Longest time to wait until a message about the progress is stored.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(3);

/// Adds output, and tries again until the market has stored it. Output that the market refuses is dropped: the lease is
/// over.
pub(super) async fn publish(context: &AttemptContext, output: Output) {
    let add = AddOutput { job: context.job, output };
    if let Err(refusal) = context.tools.platform.call_until_answered::<Done>("output", &add).await {
        debug!(%refusal, "output of a job is dropped");
    }
}

/// Publishes the progress of an attempt while the job's code does not run. `fraction` is from 0 to 1. If the market
/// does not answer soon, the message is dropped, because the next message replaces it.
pub(super) async fn publish_progress(context: &AttemptContext, fraction: f32, message: String) {
    let progress = Progress { lease: context.lease, fraction, message, occurred_at: SystemClock.now() };
    if timeout(PROGRESS_TIMEOUT, publish(context, Output::Progress(progress))).await.is_err() {
        debug!("a progress message is dropped: the market does not answer");
    }
}
