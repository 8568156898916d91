//! Processes are killed between two steps and started again. No event may be lost or doubled. A *lease* is the right of
//! a machine to run one attempt of a job.

use std::{collections::BTreeMap, time::Duration};

use gpubnb_store::Database;
use gpubnb_tests::{
    jobs::{counting_job, noop_job},
    system::{MarketSettings, System},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// Waits until the job has printed its first line.
async fn wait_for_first_line(system: &System, job: &str) {
    let first_line = |job: &Value| job["state"] == "Running" && job["progress"] != Value::Null;
    system.consumer.wait_for(job, Duration::from_secs(30), first_line).await.unwrap();
}

/// Checks that a job is completed, that each of its events occurs once, and that its log has each line once.
async fn assert_completed_once(system: &System, job: &str, lines: u64) {
    let settled = system.consumer.wait_until_settled(job).await.unwrap();
    assert_eq!(settled["state"], "Completed", "{settled:#}");
    let events = system.consumer.get(&format!("/jobs/{job}/events")).await.unwrap();
    let mut steps: BTreeMap<String, u32> = BTreeMap::new();
    for event in events["rows"].as_array().unwrap() {
        *steps.entry(event["event"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    // The jobs here leave no files. So the worker announces the exit only if the report takes longer than a second.
    assert!(steps.remove("Exited").is_none_or(|times| times == 1));
    let expected = ["JobSubmitted", "JobAssigned", "Accepted", "Started", "Completed", "Settled"];
    assert_eq!(steps, expected.map(|step| (step.to_owned(), 1)).into(), "{events:#}");
    let logs = system.consumer.get(&format!("/jobs/{job}/logs")).await.unwrap();
    let numbers: Vec<_> =
        logs["rows"].as_array().unwrap().iter().map(|line| line["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..lines).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_killed_worker_continues_its_job_after_a_restart() {
    let mut system = System::start(MarketSettings::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let job = system.consumer.submit(&counting_job(60, 50)).await.unwrap();
    wait_for_first_line(&system, &job).await;
    system.workers.remove(0).kill();
    system.start_worker("attic", &[]).await.unwrap();
    assert_completed_once(&system, &job, 60).await;
}

#[tokio::test]
async fn a_job_that_ends_while_its_worker_is_down_is_reported_afterwards() {
    let mut system = System::start(MarketSettings::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let job = system.consumer.submit(&counting_job(20, 50)).await.unwrap();
    wait_for_first_line(&system, &job).await;
    system.workers.remove(0).kill();
    let docker = bollard::Docker::connect_with_defaults().unwrap();
    let lease = system.consumer.get(&format!("/jobs/{job}")).await.unwrap()["attempts"][0]["lease"].to_string();
    let name =
        gpubnb_provider::container_name(system.machine_id("attic").unwrap().parse().unwrap(), lease.parse().unwrap());
    let mut exit = docker.wait_container(&name, None::<bollard::query_parameters::WaitContainerOptions>);
    futures_util::StreamExt::next(&mut exit).await.unwrap().unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    assert_completed_once(&system, &job, 20).await;
}

#[tokio::test]
async fn killed_services_continue_after_a_restart() {
    let mut system = System::start(MarketSettings::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let job = system.consumer.submit(&counting_job(60, 50)).await.unwrap();
    wait_for_first_line(&system, &job).await;
    system.services.remove(0).kill();
    let refused = system.consumer.request(Method::POST, "/jobs", Some(&counting_job(1, 0))).await.unwrap();
    assert_eq!(refused.0, StatusCode::SERVICE_UNAVAILABLE, "{}", refused.1);
    system.start_services().await.unwrap();
    assert_completed_once(&system, &job, 60).await;
}

#[tokio::test]
async fn a_killed_broker_loses_nothing_and_commands_fail_fast_during_the_outage() {
    let mut system = System::start(MarketSettings::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let job = system.consumer.submit(&counting_job(80, 50)).await.unwrap();
    wait_for_first_line(&system, &job).await;
    system.nats.take().unwrap().kill();
    let refused = system.consumer.request(Method::POST, "/jobs", Some(&counting_job(1, 0))).await.unwrap();
    assert_eq!(refused.0, StatusCode::SERVICE_UNAVAILABLE, "{}", refused.1);
    assert_eq!(refused.1["title"], "Unavailable");
    system.start_nats().await.unwrap();
    assert_completed_once(&system, &job, 80).await;
    let next = system.consumer.submit(&counting_job(3, 0)).await.unwrap();
    assert_completed_once(&system, &next, 3).await;
}

#[tokio::test]
async fn a_killed_projector_has_the_same_rows_as_a_new_projector() {
    let mut system = System::start(MarketSettings::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let first = system.consumer.submit(&counting_job(3, 0)).await.unwrap();
    system.consumer.wait_until_settled(&first).await.unwrap();
    system.projector.take().unwrap().kill();
    system.start_projector().await.unwrap();
    let second = system.consumer.submit(&noop_job()).await.unwrap();
    system.consumer.wait_until_settled(&second).await.unwrap();
    system.projector.take().unwrap().stop();
    let live = all_rows(&system.path().join("projector/models"));
    std::fs::rename(system.path().join("projector"), system.path().join("old")).unwrap();
    system.start_projector().await.unwrap();
    system.consumer.wait_until_settled(&second).await.unwrap();
    system.projector.take().unwrap().stop();
    let rebuilt = all_rows(&system.path().join("projector/models"));
    assert!(live.len() > 10, "too few rows to compare");
    assert_eq!(live, rebuilt);
}

/// Every row of every model, without the checkpoints, because later events may have changed those.
fn all_rows(path: &std::path::Path) -> BTreeMap<(&'static str, Vec<u8>), String> {
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
async fn the_job_of_a_lost_machine_runs_on_another_machine_and_only_that_attempt_is_billed() {
    let options = MarketSettings {
        services: ["--suspect-after", "2", "--lost-after", "4"].map(str::to_owned).into(),
        ..MarketSettings::default()
    };
    let mut system = System::start(options).await.unwrap();
    system.start_worker("first", &["--price", "0.1"]).await.unwrap();
    let job = system.consumer.submit(&counting_job(200, 50)).await.unwrap();
    wait_for_first_line(&system, &job).await;
    system.workers.remove(0).kill();
    let requeued = |job: &Value| job["attempts"][0]["ended"] == "Requeued";
    let lost = system.consumer.wait_for(&job, Duration::from_secs(30), requeued).await.unwrap();
    assert_eq!(lost["reason"]["name"], "ProviderLost");
    system.start_worker("second", &["--price", "0.2"]).await.unwrap();
    // The first machine comes back with the old container. Its lease has ended, so the machine must stop the container.
    system.start_worker("first", &["--price", "0.1"]).await.unwrap();
    let settled = system.consumer.wait_until_settled(&job).await.unwrap();
    assert_eq!(settled["state"], "Completed", "{settled:#}");
    assert_eq!(settled["attempts"][1]["machine"], json!(system.machine_id("second").unwrap()));
    let receipt = system.consumer.get(&format!("/jobs/{job}/receipt")).await.unwrap();
    assert_eq!(receipt["lease"], settled["attempts"][1]["lease"], "only the attempt that completed is billed");
}

#[tokio::test]
async fn jobs_are_settled_once_with_three_replicas_although_one_is_killed() {
    let mut system = System::start(MarketSettings { replicas: 3, ..MarketSettings::default() }).await.unwrap();
    system.start_worker("attic", &["--slots", "4"]).await.unwrap();
    let mut jobs = Vec::new();
    for _ in 0..6 {
        jobs.push(system.consumer.submit(&counting_job(5, 20)).await.unwrap());
    }
    // The output of this job is written by all replicas in turn.
    let talkative = system.consumer.submit(&counting_job(300, 10)).await.unwrap();
    // The killed replica may be the leader.
    system.services.remove(0).kill();
    for job in &jobs {
        assert_completed_once(&system, job, 5).await;
    }
    assert_completed_once(&system, &talkative, 300).await;
}
