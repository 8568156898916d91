//! The projector's gauges for monitoring: progress of the fold, sizes of the streams, number of stuck jobs.

use std::{error::Error, time::Duration};

use gpubnb_runtime::metric;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::ops::OperatorQueries;

/// The pause before the gauges are set again.
const PAUSE: Duration = Duration::from_secs(2);

/// Sets the gauges every two seconds, until shutdown.
// Sequences and sizes are exact in an f64 up to 2^53.
#[allow(clippy::cast_precision_loss)]
pub(crate) async fn run(ops: OperatorQueries, shutdown: CancellationToken) {
    while shutdown.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_some() {
        let platform = match ops.platform().await {
            Ok(platform) => platform,
            Err(e) => {
                debug!(error = &e as &dyn Error, "the gauges were not set");
                continue;
            }
        };
        metrics::gauge!(metric::LAST).set(platform.last.0 as f64);
        metrics::gauge!(metric::APPLIED).set(ops.queries.applied.borrow().seq.0 as f64);
        for stream in platform.streams {
            metrics::gauge!(metric::STREAM_MESSAGES, "stream" => stream.name.clone()).set(stream.messages as f64);
            if let Some(behind) = stream.behind {
                metrics::gauge!(metric::DISPATCH_BEHIND).set(behind as f64);
            }
            metrics::gauge!(metric::STREAM_BYTES, "stream" => stream.name).set(stream.bytes as f64);
        }
        for model in platform.models {
            let stopped = if model.stopped.is_some() { 1.0 } else { 0.0 };
            metrics::gauge!(metric::STOPPED, "model" => model.name.clone()).set(stopped);
            metrics::gauge!(metric::CHECKPOINT, "model" => model.name).set(model.checkpoint.0 as f64);
        }
        match ops.stuck() {
            Ok(stuck) => metrics::gauge!(metric::STUCK).set(stuck.len() as f64),
            Err(e) => debug!(error = &e as &dyn Error, "the gauge of stuck jobs was not set"),
        }
    }
}
