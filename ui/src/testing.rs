//! Machines and jobs for tests of pages, in the form of the projector's answers.

use gpubnb_events::{AccountId, JobId, MachineId};
use gpubnb_query::view::{JobView, MachineView};
use serde_json::json;

/// A machine that is online and has one GPU. `price` is in micro-dollars per hour.
pub(crate) fn machine(name: &str, gpu: &str, price: i64) -> MachineView {
    let view = json!({
        "machine": MachineId::generate(), "owner": AccountId::generate(), "public_keys": [],
        "offer": {
            "name": name, "region": "EU", "price": price, "slots": 1,
            "hardware": {
                "cpu_model": "EPYC", "cpu_cores": 8, "memory": 16_384, "disk": 102_400,
                "gpus": [{ "uuid": "GPU-1", "model": gpu, "memory": 24_576 }],
            },
        },
        "wanted": "Online", "presence": "Online", "listed_at": "2026-01-01T00:00:00Z", "running": [],
        "successes": 0, "faults": {}, "earned": 0, "metered": 0, "seq": 1, "heartbeat": null, "load": [],
    });
    serde_json::from_value(view).unwrap()
}

/// A running job that was submitted and started at the Unix epoch.
pub(crate) fn running_job() -> JobView {
    let view = json!({
        "job": JobId::generate(), "account": AccountId::generate(),
        "spec": {
            "name": "a job", "image": "image", "command": [],
            "resources": { "cpu_millis": 1_000, "memory": 1_024, "output": 1_024, "gpus": 0, "vram": 0 },
        },
        "placement": { "by": "machine", "machine": MachineId::generate() },
        "limits": { "time": 3_600, "budget": 1_000_000, "max_attempts": 3, "queue": 3_600 },
        "hold": 1_000_000, "state": "Running", "settled": false, "cancel_requested": false,
        "attempts": [], "submitted_at": "1970-01-01T00:00:00Z", "started_at": "1970-01-01T00:00:00Z", "seq": 1,
    });
    serde_json::from_value(view).unwrap()
}
