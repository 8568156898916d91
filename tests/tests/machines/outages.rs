//! Outages: the market is down while a job ends, and a machine sleeps until the market declares it lost.

use std::{
    fs,
    time::{Duration, Instant},
};

use data_encoding::BASE64URL_NOPAD;
use gpubnb_events::{Lease, Seq, manifest, spec::Artifact};
use gpubnb_tests::{
    jobs::{counting_job, wait_until_running},
    system::{MarketSettings, System},
    wait::wait_until,
};
use reqwest::StatusCode;
use serde_json::{Value, json};

/// Time after which the market declares a silent machine lost. It is long enough for a worker to start, even while
/// other tests run.
const LOST_AFTER: Duration = Duration::from_secs(5);

/// Starts a market that declares silent machines lost after [`LOST_AFTER`].
async fn start_market() -> System {
    let lost_after = LOST_AFTER.as_secs().to_string();
    let services = ["--suspect-after", "1", "--lost-after", &lost_after].map(str::to_owned).into();
    System::start(MarketSettings { services, ..MarketSettings::default() }).await.unwrap()
}

/// Stops the market while a job runs, waits until the job has ended, simulates a reboot of the machine, and starts the
/// market again. Returns the time between the end of the job and the return of the market.
async fn run_outage(system: &mut System) -> Duration {
    let began = Instant::now();
    system.ui = None;
    system.services.clear();
    system.nats = None;
    let leases = system.path().join("attic").join("leases");
    let has_report = || fs::read_dir(&leases).unwrap().flatten().any(|entry| entry.path().join("outbox.json").exists());
    wait_until("the report of the job that ended in the outage", async || has_report()).await;
    let ended = Instant::now();
    // A reboot kills the worker and unmounts all file systems.
    system.workers.remove(0).kill();
    for attempt in fs::read_dir(&leases).unwrap().flatten() {
        let unmounted = std::process::Command::new("umount").arg(attempt.path().join("disk")).status().unwrap();
        // Only a disk with an image file is a mounted file system. Otherwise the disk is a plain directory.
        assert_eq!(unmounted.success(), attempt.path().join("disk.img").exists());
    }
    // The outage must be longer than the time after which a silent machine is lost.
    wait_until("an outage longer than LOST_AFTER", async || began.elapsed() > LOST_AFTER).await;
    let down_after_end = ended.elapsed();
    system.start_nats().await.unwrap();
    system.start_services().await.unwrap();
    system.start_ui().await.unwrap();
    system.start_worker("attic", &["--price", "1"]).await.unwrap();
    down_after_end
}

/// Checks that the machine's key has signed the list of files in the job's event `Completed`.
async fn assert_files_signed(system: &System, job: &str) {
    let events = system.consumer.get(&format!("/jobs/{job}/events")).await.unwrap();
    let completed = events["rows"].as_array().unwrap().iter().find(|e| e["event"] == "Completed").unwrap();
    let outputs: Vec<Artifact> = serde_json::from_value(completed["body"]["outputs"].clone()).unwrap();
    let lease = Lease(Seq(completed["body"]["lease"].as_u64().unwrap()));
    let text = manifest::signed_text(job.parse().unwrap(), lease, &outputs);
    let machine = system.machine_id("attic").unwrap();
    let trail = system.machine_owner.get(&format!("/machines/{machine}/events")).await.unwrap();
    let listed = trail["rows"].as_array().unwrap().iter().find(|e| e["event"] == "MachineListed").unwrap();
    let key = nkeys::KeyPair::from_public_key(listed["body"]["public_key"].as_str().unwrap()).unwrap();
    let signature = BASE64URL_NOPAD.decode(completed["body"]["signature"].as_str().unwrap().as_bytes()).unwrap();
    key.verify(text.as_bytes(), &signature).unwrap();
    assert!(key.verify(b"another manifest", &signature).is_err());
}

#[tokio::test]
async fn a_job_that_ends_during_an_outage_of_the_market_is_billed_by_its_run_time() {
    let mut system = start_market().await;
    system.start_worker("attic", &["--price", "1"]).await.unwrap();
    let picture = json!({ "template": "render", "budget_usd": "0.50",
        "parameters": { "width": "320", "height": "180", "samples": "64" } });
    let job = system.consumer.submit(&picture).await.unwrap();
    wait_until_running(&system.consumer, &job).await;
    let down_after_end = run_outage(&mut system).await;
    let settled = system.consumer.wait_until_settled(&job).await.unwrap();
    // The market was down, and not the machine, so the machine is not lost.
    assert_eq!(settled["state"], "Completed", "{settled:#}");
    assert_eq!(settled["attempts"].as_array().unwrap().len(), 1, "{settled:#}");
    let receipt = system.consumer.get(&format!("/jobs/{job}/receipt")).await.unwrap();
    let millis = |clock: &str| receipt["metering"][clock].as_u64().unwrap();
    assert_eq!(millis("billed"), millis("worker"), "{receipt:#}");
    // The broker's time also contains the outage, because the broker got the report only afterwards.
    assert!(
        Duration::from_millis(millis("broker") - millis("billed")) >= down_after_end,
        "{down_after_end:?}: {receipt:#}"
    );
    // The machine kept the picture during the outage.
    let (status, file) = system.consumer.bytes(&format!("/api/v1/jobs/{job}/artifacts/render.png")).await.unwrap();
    assert!(status == StatusCode::OK && file.starts_with(b"\x89PNG"));
    assert_files_signed(&system, &job).await;
}

/// The containers of a job, by `docker ps` with these options.
fn list_containers(job: &str, options: &str) -> String {
    let label = format!("label=gpubnb.job={job}");
    let listed = std::process::Command::new("docker").args(["ps", options, "--filter", &label]).output().unwrap();
    assert!(listed.status.success(), "{listed:?}");
    String::from_utf8(listed.stdout).unwrap()
}

#[tokio::test]
async fn a_lost_machine_that_comes_back_removes_its_attempt_and_is_not_billed() {
    let mut system = start_market().await;
    system.start_worker("attic", &[]).await.unwrap();
    let job = system.consumer.submit(&counting_job(20, 50)).await.unwrap();
    wait_until_running(&system.consumer, &job).await;
    // Only the worker sleeps. The job's container runs to its end.
    let worker = &system.workers[0];
    worker.signal(rustix::process::Signal::STOP);
    let requeued = |job: &Value| job["attempts"][0]["ended"] == "Requeued";
    let lost = system.consumer.wait_for(&job, Duration::from_secs(30), requeued).await.unwrap();
    assert_eq!(lost["reason"]["name"], "ProviderLost");
    wait_until("the end of the container", async || list_containers(&job, "-q").is_empty()).await;
    worker.signal(rustix::process::Signal::CONT);
    system.start_worker("cellar", &[]).await.unwrap();
    let settled = system.consumer.wait_until_settled(&job).await.unwrap();
    assert_eq!(settled["attempts"].as_array().unwrap().len(), 2, "{settled:#}");
    let leases = system.path().join("attic").join("leases");
    wait_until("the removal of the attempts' directories", async || fs::read_dir(&leases).unwrap().count() == 0).await;
    wait_until("the removal of the attempts' containers", async || list_containers(&job, "-aq").is_empty()).await;
    // The attempt on the lost machine is not billed.
    let receipt = system.consumer.get(&format!("/jobs/{job}/receipt")).await.unwrap();
    assert_eq!(receipt["lease"], settled["attempts"][1]["lease"]);
}
