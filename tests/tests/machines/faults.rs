//! No event is lost or doubled when a process is killed between two steps and started again.

use std::{collections::BTreeMap, time::Duration};

use gpubnb_store::Database;
use gpubnb_tests::{
    jobs::{counting, noop},
    system::{Options, System},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// Waits until the job has printed its first line.
async fn running(system: &System, job: &str) {
    let first_line = |job: &Value| job["state"] == "Running" && job["progress"] != Value::Null;
    system.web.wait_for(job, Duration::from_secs(30), first_line).await.unwrap();
}

/// The job ended well; its trail has each step once, and its log has each line once.
async fn went_well(system: &System, job: &str, lines: u64) {
    let settled = system.web.settled(job).await.unwrap();
    assert_eq!(settled["state"], "Completed", "{settled:#}");
    let events = system.web.get(&format!("/jobs/{job}/events")).await.unwrap();
    let mut steps: BTreeMap<String, u32> = BTreeMap::new();
    for event in events["rows"].as_array().unwrap() {
        *steps.entry(event["event"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    let once = ["JobSubmitted", "JobAssigned", "Accepted", "Started", "Completed", "Settled"];
    assert_eq!(steps, once.map(|step| (step.to_owned(), 1)).into(), "{events:#}");
    let logs = system.web.get(&format!("/jobs/{job}/logs")).await.unwrap();
    let numbers: Vec<_> =
        logs["rows"].as_array().unwrap().iter().map(|line| line["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..lines).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_killed_worker_takes_its_job_up_again() {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let job = system.web.submit(&counting(60, 50)).await.unwrap();
    running(&system, &job).await;
    system.workers.remove(0).kill();
    system.start_worker("attic", &[]).await.unwrap();
    went_well(&system, &job, 60).await;
}

#[tokio::test]
async fn a_job_that_ends_while_its_worker_is_down_is_reported_afterwards() {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let job = system.web.submit(&counting(20, 50)).await.unwrap();
    running(&system, &job).await;
    system.workers.remove(0).kill();
    let docker = bollard::Docker::connect_with_defaults().unwrap();
    let lease = system.web.get(&format!("/jobs/{job}")).await.unwrap()["attempts"][0]["lease"].to_string();
    let name =
        gpubnb_provider::container_name(system.machine("attic").unwrap().parse().unwrap(), lease.parse().unwrap());
    let mut exit = docker.wait_container(&name, None::<bollard::query_parameters::WaitContainerOptions>);
    futures_util::StreamExt::next(&mut exit).await.unwrap().unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    went_well(&system, &job, 20).await;
}

#[tokio::test]
async fn killed_services_go_on_where_they_were() {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let job = system.web.submit(&counting(60, 50)).await.unwrap();
    running(&system, &job).await;
    system.services.remove(0).kill();
    let refused = system.web.request(Method::POST, "/jobs", Some(&counting(1, 0))).await.unwrap();
    assert_eq!(refused.0, StatusCode::SERVICE_UNAVAILABLE, "{}", refused.1);
    system.start_services().await.unwrap();
    went_well(&system, &job, 60).await;
}

#[tokio::test]
async fn a_killed_broker_loses_nothing_and_commands_fail_fast_meanwhile() {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let job = system.web.submit(&counting(80, 50)).await.unwrap();
    running(&system, &job).await;
    system.nats.take().unwrap().kill();
    let began = tokio::time::Instant::now();
    let refused = system.web.request(Method::POST, "/jobs", Some(&counting(1, 0))).await.unwrap();
    assert_eq!(refused.0, StatusCode::SERVICE_UNAVAILABLE, "{}", refused.1);
    assert!(began.elapsed() < Duration::from_secs(10), "a 503 must come fast");
    assert_eq!(refused.1["title"], "Unavailable");
    system.start_nats().await.unwrap();
    went_well(&system, &job, 80).await;
    let again = system.web.submit(&counting(3, 0)).await.unwrap();
    went_well(&system, &again, 3).await;
}

#[tokio::test]
async fn a_killed_projector_has_the_same_rows_as_one_that_starts_from_nothing() {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let first = system.web.submit(&counting(3, 0)).await.unwrap();
    system.web.settled(&first).await.unwrap();
    system.projector.take().unwrap().kill();
    system.start_projector().await.unwrap();
    let second = system.web.submit(&noop()).await.unwrap();
    system.web.settled(&second).await.unwrap();
    system.projector.take().unwrap().stop();
    let live = rows(&system.path().join("projector/models"));
    std::fs::rename(system.path().join("projector"), system.path().join("old")).unwrap();
    system.start_projector().await.unwrap();
    system.web.settled(&second).await.unwrap();
    system.projector.take().unwrap().stop();
    let rebuilt = rows(&system.path().join("projector/models"));
    assert!(live.len() > 10, "there is something to compare");
    assert_eq!(live, rebuilt);
}

/// Every row of every model. Checkpoints are left out: later events may have moved them on.
fn rows(path: &std::path::Path) -> BTreeMap<(&'static str, Vec<u8>), String> {
    let db = Database::open(path, 16).unwrap();
    let mut rows = BTreeMap::new();
    for model in gpubnb_model::all() {
        for row in db.current_table(model.model_version()).unwrap().all() {
            let (key, value) = row.unwrap();
            rows.insert((model.name(), key.to_vec()), value.escape_ascii().to_string());
        }
    }
    rows
}

#[tokio::test]
async fn a_lost_machine_is_fenced_and_its_job_runs_elsewhere() {
    let options = Options {
        services: ["--suspect-after", "2", "--lost-after", "4"].map(str::to_owned).into(),
        ..Options::default()
    };
    let mut system = System::start(options).await.unwrap();
    system.start_worker("first", &["--price", "0.1"]).await.unwrap();
    let job = system.web.submit(&counting(200, 50)).await.unwrap();
    running(&system, &job).await;
    system.workers.remove(0).kill();
    let requeued = |job: &Value| job["attempts"][0]["ended"] == "Requeued";
    let lost = system.web.wait_for(&job, Duration::from_secs(30), requeued).await.unwrap();
    assert_eq!(lost["reason"]["name"], "ProviderLost");
    system.start_worker("second", &["--price", "0.2"]).await.unwrap();
    // The first machine comes back with a container whose lease is over, and is told to give the container up.
    system.start_worker("first", &["--price", "0.1"]).await.unwrap();
    let settled = system.web.settled(&job).await.unwrap();
    assert_eq!(settled["state"], "Completed", "{settled:#}");
    assert_eq!(settled["attempts"][1]["machine"], json!(system.machine("second").unwrap()));
    let receipt = system.web.get(&format!("/jobs/{job}/receipt")).await.unwrap();
    assert_eq!(receipt["lease"], settled["attempts"][1]["lease"], "only the attempt that completed is billed");
}

#[tokio::test]
async fn several_replicas_take_turns_and_settle_once() {
    let mut system = System::start(Options { replicas: 3, ..Options::default() }).await.unwrap();
    system.start_worker("attic", &["--slots", "4"]).await.unwrap();
    let mut jobs = Vec::new();
    for _ in 0..6 {
        jobs.push(system.web.submit(&counting(5, 20)).await.unwrap());
    }
    // One of the replicas leads, and it may be the one that is killed.
    system.services.remove(0).kill();
    for job in &jobs {
        went_well(&system, job, 5).await;
    }
}
