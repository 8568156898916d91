//! The JSON bodies with which many tests submit jobs.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

use std::time::Duration;

use serde_json::{Value, json};

use crate::api_client::ApiClient;

/// A job that does nothing and ends at once.
#[must_use]
pub fn noop_job() -> Value {
    json!({ "template": "noop" })
}

/// A job that prints numbered lines, with a pause after each line.
#[must_use]
pub fn counting_job(lines: u32, pause_ms: u32) -> Value {
    let parameters = json!({ "lines": lines.to_string(), "interval-ms": pause_ms.to_string() });
    json!({ "template": "count", "parameters": parameters, "budget_usd": "0.50" })
}

/// Restricts a job to the machine with this id.
#[must_use]
pub fn pin_to_machine(mut job: Value, machine: &str) -> Value {
    job["machine"] = json!(machine);
    job
}

/// Lets a job wait in the queue for ever, because no machine has the GPU that the job asks for. The job holds
/// `budget_usd` dollars of its consumer.
#[must_use]
pub fn unplaceable(mut job: Value, budget_usd: &str) -> Value {
    job["gpu_model"] = json!("H999");
    job["budget_usd"] = json!(budget_usd);
    job
}

/// Waits until a job is in the state `Running`. Returns the job as the API shows it.
pub async fn wait_until_running(client: &ApiClient, job: &str) -> Value {
    client.wait_for(job, Duration::from_secs(30), |job| job["state"] == "Running").await.unwrap()
}
