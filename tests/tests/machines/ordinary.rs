//! Ordinary programs that work under a plain `docker run`. They also work as jobs, or the job's ending names the
//! limit that the consumer must raise, for example `pids`.

use std::{
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    time::Duration,
};

use gpubnb_events::CommandId;
use gpubnb_tests::{
    jobs::pin_to_machine,
    shared::{Plan, SharedMarket},
    system::MarketSettings,
    wait::wait_until,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

static MARKET: SharedMarket = SharedMarket::new(|| {
    let services = ["--approve-image", "gpubnb/hostile:1"].map(str::to_owned).into();
    Plan::with_settings(MarketSettings { services, ..MarketSettings::default() })
        .with_worker(MOUNTING, &["--slots", "4"])
        .with_worker(MEASURING, &["--slots", "4", "--disk-quota", "poll", "--max-pids", "600"])
});

/// The machine on which the disk of a job is a file system of its own.
const MOUNTING: &str = "attic";
/// The machine on which the disk of a job is a directory. Its owner allows at most 600 processes.
const MEASURING: &str = "cellar";

fn job(command: &[&str], asked: &Value) -> Value {
    let mut body = json!({ "image": "gpubnb/hostile:1", "command": command, "name": command[0], "time_seconds": 60,
        "memory_mib": 512, "output_mib": 4, "budget_usd": "0.50", "max_attempts": 1 });
    body.as_object_mut().unwrap().extend(asked.as_object().unwrap().clone());
    body
}

/// Runs a job on a machine until it is settled.
async fn run(machine: &str, command: &[&str], asked: Value) -> Value {
    let market = MARKET.open().await.unwrap();
    let body = pin_to_machine(job(command, &asked), &market.machine_id(machine).unwrap());
    let id = market.consumer.submit(&body).await.unwrap();
    market.consumer.wait_until_settled(&id).await.unwrap()
}

#[tokio::test]
async fn the_scratch_directory_holds_programs_and_caches_and_its_files_are_not_kept() {
    for machine in [MOUNTING, MEASURING] {
        let settled = run(machine, &["scratch"], json!({})).await;
        assert_eq!((&settled["state"], &settled["outputs"]), (&json!("Completed"), &json!([])), "{settled:#}");
    }
    // With a smaller disk the same program fails, and the job says what to ask for.
    let settled = run(MOUNTING, &["scratch"], json!({ "disk_mib": 100 })).await;
    assert_eq!(settled["reason"]["name"], "OutputTooLarge", "{settled:#}");
    assert!(settled["detail"].as_str().unwrap().contains("disk_mib"), "{settled:#}");
}

#[tokio::test]
async fn a_job_that_reaches_its_limit_of_processes_says_so_and_can_ask_for_more() {
    let settled = run(MOUNTING, &["threads", "600"], json!({})).await;
    assert_eq!(settled["reason"]["name"], "NonZeroExit", "{settled:#}");
    assert!(settled["detail"].as_str().unwrap().contains("(pids)"), "{settled:#}");
    let settled = run(MOUNTING, &["threads", "600"], json!({ "pids": 700 })).await;
    assert_eq!(settled["state"], "Completed", "{settled:#}");
    // A job that asks for 700 processes does not go to a machine whose owner allows 600.
    let market = MARKET.open().await.unwrap();
    let body = pin_to_machine(job(&["succeed"], &json!({ "pids": 700 })), &market.machine_id(MEASURING).unwrap());
    let id = market.consumer.submit(&body).await.unwrap();
    let is_explained = |view: &Value| view["waiting"]["rejected"].to_string().contains("TooSmall");
    market.consumer.wait_for(&id, Duration::from_secs(20), is_explained).await.unwrap();
    market.consumer.post(&format!("/jobs/{id}/cancel"), &json!({})).await.unwrap();
}

#[tokio::test]
async fn a_job_can_ask_for_more_open_files() {
    let settled = run(MOUNTING, &["open-files", "5000"], json!({})).await;
    assert_eq!(settled["reason"]["name"], "NonZeroExit", "{settled:#}");
    let settled = run(MOUNTING, &["open-files", "5000"], json!({ "open_files": 6_000 })).await;
    assert_eq!(settled["state"], "Completed", "{settled:#}");
}

#[tokio::test]
async fn a_job_that_needs_a_newer_cuda_is_not_placed_on_an_older_driver() {
    let market = MARKET.open().await.unwrap();
    let body = json!({ "template": "noop", "min_cuda": "12.4", "budget_usd": "0.10" });
    let id = market.consumer.submit(&body).await.unwrap();
    let is_explained = |view: &Value| view["waiting"]["rejected"].to_string().contains("Cuda");
    market.consumer.wait_for(&id, Duration::from_secs(20), is_explained).await.unwrap();
    market.consumer.post(&format!("/jobs/{id}/cancel"), &json!({})).await.unwrap();
    let wrong = json!({ "template": "noop", "min_cuda": "new", "budget_usd": "0.10" });
    let (status, problem) = market.consumer.request(Method::POST, "/jobs", Some(&wrong)).await.unwrap();
    assert_eq!((status, &problem["field"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("min_cuda")), "{problem}");
}

/// A user of the machine who has nothing to do with the worker.
const STRANGER: u32 = 54_321;

/// Runs a program as the stranger. Returns true if it succeeds.
pub(crate) fn succeeds_as_stranger(program: &str, arguments: &[&Path]) -> bool {
    let mut command = std::process::Command::new(program);
    command.args(arguments).uid(STRANGER).gid(STRANGER).output().unwrap().status.success()
}

#[tokio::test]
async fn no_other_user_of_the_machine_can_read_the_files_of_a_job() {
    let market = MARKET.open().await.unwrap();
    let input = CommandId::generate();
    let upload = market.consumer.build_request(Method::PUT, &format!("/api/v1/inputs/{input}")).body("a secret");
    assert_eq!(upload.send().await.unwrap().status(), StatusCode::CREATED);
    // Other users cannot enter the test's own directory. The directory above a real worker's directory is open, so
    // the test opens its own.
    std::fs::set_permissions(market.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    for machine in [MOUNTING, MEASURING] {
        let asked = json!({ "inputs": [{ "input": input, "path": "data/in.txt" }] });
        let body = pin_to_machine(job(&["checkpoint"], &asked), &market.machine_id(machine).unwrap());
        let id = market.consumer.submit(&body).await.unwrap();
        let is_saved = async || {
            // Right after the submission the read model may not have the job yet.
            let Ok(logs) = market.consumer.get(&format!("/jobs/{id}/logs")).await else { return false };
            logs["rows"].as_array().unwrap().iter().any(|line| line["text"] == "saved")
        };
        wait_until("the job's checkpoint", is_saved).await;
        let lease = market.consumer.get(&format!("/jobs/{id}")).await.unwrap()["attempts"][0]["lease"].to_string();
        let state = market.path().join(machine);
        let attempt = state.join("leases").join(lease);
        assert!(succeeds_as_stranger("test", &[Path::new("-d"), &attempt]), "the stranger can try");
        let files = ["input/data/in.txt", "disk/output/checkpoint.bin", "disk.img", "clock.json", "log.json"];
        let present: Vec<_> = files.map(|file| attempt.join(file)).into_iter().filter(|path| path.exists()).collect();
        assert!(present.len() >= 3, "{present:?}");
        let keys = ["machine.seed", "sealing.seed", "worker.log"].map(|file| state.join(file));
        for path in present.iter().chain(keys.iter().filter(|path| path.exists())) {
            assert!(!succeeds_as_stranger("cat", &[path]), "{}", path.display());
        }
        for directory in [&state, &attempt, &attempt.join("input"), &attempt.join("disk/output")] {
            assert!(!succeeds_as_stranger("ls", &[directory]), "{}", directory.display());
        }
        market.consumer.post(&format!("/jobs/{id}/cancel"), &json!({})).await.unwrap();
    }
}
