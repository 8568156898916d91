//! Bodies of jobs that many tests submit, and waiting for a job to run.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

use std::time::Duration;

use serde_json::{Value, json};

use crate::web::Web;

/// A job that ends at once.
#[must_use]
pub fn noop() -> Value {
    json!({ "template": "noop" })
}

/// A job that prints so many numbered lines, with a pause after each.
#[must_use]
pub fn counting(lines: u32, pause_ms: u32) -> Value {
    let parameters = json!({ "lines": lines.to_string(), "interval-ms": pause_ms.to_string() });
    json!({ "template": "count", "parameters": parameters, "budget_usd": "0.50" })
}

/// A job for one machine, whichever others would take it.
#[must_use]
pub fn on_machine(mut job: Value, machine: &str) -> Value {
    job["machine"] = json!(machine);
    job
}

/// A job that waits in the queue, since there is no machine with such a GPU. It holds so many dollars.
#[must_use]
pub fn that_nobody_takes(mut job: Value, budget_usd: &str) -> Value {
    job["gpu_model"] = json!("H999");
    job["budget_usd"] = json!(budget_usd);
    job
}

/// Waits until a job runs, and returns it.
pub async fn running(web: &Web, job: &str) -> Value {
    web.wait_for(job, Duration::from_secs(30), |job| job["state"] == "Running").await.unwrap()
}
