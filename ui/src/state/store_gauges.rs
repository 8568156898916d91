//! Measures how full the stores of files are, for alerts before files are refused.

use std::time::Duration;

use async_nats::jetstream::Context;
use gpubnb_log::stream::{ARTIFACTS, INPUTS, store_stream};
use gpubnb_runtime::metric;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// Time between two measurements.
const INTERVAL: Duration = Duration::from_secs(30);

/// Measures until shutdown.
pub(crate) async fn measure_stores(js: Context, shutdown: CancellationToken) {
    loop {
        for store in [INPUTS, ARTIFACTS] {
            match js.get_stream(store_stream(store)).await {
                Ok(stream) => {
                    let info = stream.cached_info();
                    // A store without a limit is never full. The lost precision does not matter.
                    #[allow(clippy::cast_precision_loss)]
                    let filled = info.state.bytes as f64 / info.config.max_bytes.max(1) as f64;
                    metrics::gauge!(metric::STORE_FILLED, "store" => store).set(if info.config.max_bytes > 0 {
                        filled
                    } else {
                        0.0
                    });
                }
                Err(e) => debug!(store, error = %e, "the size of a store cannot be read"),
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}
