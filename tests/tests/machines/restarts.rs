//! Docker or the whole machine is restarted while a job runs.

use std::time::Duration;

use gpubnb_tests::{
    engine::Engine,
    jobs::counting_job,
    system::{MarketSettings, System},
    wait::wait_until,
};
use serde_json::{Value, json};

/// Waits until the job has printed its first line.
async fn wait_for_first_line(system: &System, job: &str) {
    let has_printed = |job: &Value| job["state"] == "Running" && job["progress"] != Value::Null;
    system.consumer.wait_for(job, Duration::from_secs(30), has_printed).await.unwrap();
}

/// Starts a market with one machine, which runs its jobs on a Docker engine that belongs to the test.
async fn start_market(engine_options: &[&str]) -> (System, Engine) {
    let mut system = System::start(MarketSettings::default()).await.unwrap();
    let engine = Engine::start(&system.path().join("engine"), engine_options).await.unwrap();
    system.environment = vec![("DOCKER_HOST", engine.host())];
    system.start_worker("attic", &["--price", "0.1"]).await.unwrap();
    (system, engine)
}

#[tokio::test]
async fn a_job_survives_a_restart_of_docker_with_live_restore() {
    let (system, mut engine) = start_market(&["--live-restore"]).await;
    let job = system.consumer.submit(&counting_job(160, 50)).await.unwrap();
    wait_for_first_line(&system, &job).await;
    engine.stop();
    engine.start_daemon().await.unwrap();
    let settled = system.consumer.wait_until_settled(&job).await.unwrap();
    assert_eq!(settled["state"], "Completed", "{settled:#}\n{}", system.process_log("attic"));
    assert_eq!(settled["attempts"].as_array().unwrap().len(), 1);
    let logs = system.consumer.get(&format!("/jobs/{job}/logs")).await.unwrap();
    let numbers: Vec<_> =
        logs["rows"].as_array().unwrap().iter().map(|line| line["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..160).collect::<Vec<_>>(), "no gap, and no line twice");
    let (code, verdict) = system.consumer.verify_with_client(&job).unwrap();
    assert_eq!((code, &verdict["log"]), (Some(0), &json!({ "lines": 160, "differs": null })), "{verdict:#}");
    let next = system.consumer.submit(&counting_job(1, 50)).await.unwrap();
    assert_eq!(system.consumer.wait_until_settled(&next).await.unwrap()["state"], "Completed");
}

#[tokio::test]
async fn a_job_that_a_restart_of_docker_ends_is_requeued_and_runs_on_another_machine() {
    let (mut system, mut engine) = start_market(&[]).await;
    let job = system.consumer.submit(&counting_job(200, 50)).await.unwrap();
    wait_for_first_line(&system, &job).await;
    engine.stop();
    engine.start_daemon().await.unwrap();
    let ended = |job: &Value| job["attempts"][0]["ended"].is_string();
    let ended = system.consumer.wait_for(&job, Duration::from_secs(60), ended).await.unwrap();
    assert_eq!((&ended["attempts"][0]["ended"], &ended["reason"]["name"]), (&json!("Requeued"), &json!("Interrupted")));
    let view = system.machine_view("attic").await.unwrap();
    assert_eq!(view["trouble"]["reason"]["name"], "Interrupted", "{view:#}");
    // Another machine takes the job, and only that machine is paid.
    system.environment.clear();
    system.start_worker("cellar", &["--price", "0.05"]).await.unwrap();
    let settled = system.consumer.wait_until_settled(&job).await.unwrap();
    assert_eq!(settled["state"], "Completed", "{settled:#}");
    let receipt = system.consumer.get(&format!("/jobs/{job}/receipt")).await.unwrap();
    assert_eq!(receipt["lease"], settled["attempts"].as_array().unwrap().last().unwrap()["lease"]);
}

#[tokio::test]
async fn a_job_that_a_reboot_ends_is_requeued_and_its_remains_are_removed() {
    let mut system = System::start(MarketSettings::default()).await.unwrap();
    system.start_worker("attic", &["--price", "0.1"]).await.unwrap();
    let job = system.consumer.submit(&counting_job(60, 50)).await.unwrap();
    wait_for_first_line(&system, &job).await;
    // Simulates a power cut: worker and container end at once, mounts are gone, and the kernel has a new boot id.
    system.workers.remove(0).kill();
    let docker = |arguments: &[&str]| {
        let output = std::process::Command::new("docker").args(arguments).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let container = docker(&["ps", "-q", "--filter", &format!("label=gpubnb.job={job}")]);
    docker(&["kill", &container]);
    docker(&["wait", &container]);
    let leases = system.path().join("attic/leases");
    for attempt in std::fs::read_dir(&leases).unwrap().flatten() {
        drop(std::process::Command::new("umount").arg(attempt.path().join("disk")).output());
        let clock = attempt.path().join("clock.json");
        let mut reading: Value = serde_json::from_slice(&std::fs::read(&clock).unwrap()).unwrap();
        reading["boot_id"] = json!("another");
        std::fs::write(clock, reading.to_string()).unwrap();
    }
    system.start_worker("attic", &["--price", "0.1"]).await.unwrap();
    let interrupted = |job: &Value| job["attempts"][0]["ended"] == "Requeued";
    let ended = system.consumer.wait_for(&job, Duration::from_secs(30), interrupted).await.unwrap();
    assert_eq!(ended["reason"]["name"], "Interrupted", "{ended:#}");
    system.start_worker("cellar", &["--price", "0.05"]).await.unwrap();
    assert_eq!(system.consumer.wait_until_settled(&job).await.unwrap()["state"], "Completed");
    wait_until("the removal of the attempts' directories", async || std::fs::read_dir(&leases).unwrap().count() == 0)
        .await;
    assert_eq!(docker(&["ps", "-aq", "--filter", &format!("id={container}")]), "");
}
