//! Outages: the market is away while a job ends, and a machine that sleeps while it is given up.

use std::{
    fs,
    time::{Duration, Instant},
};

use data_encoding::BASE64URL_NOPAD;
use gpubnb_events::{Lease, Seq, manifest, spec::Artifact};
use gpubnb_tests::{
    jobs::{counting, running},
    system::{Options, System},
    wait::until,
};
use reqwest::StatusCode;
use serde_json::{Value, json};

/// Time after which the market gives a silent machine up. Long enough for a worker to start beside other tests.
const LOST_AFTER: Duration = Duration::from_secs(5);

/// A market that gives silent machines up soon.
async fn impatient() -> System {
    let lost_after = LOST_AFTER.as_secs().to_string();
    let services = ["--suspect-after", "1", "--lost-after", &lost_after].map(str::to_owned).into();
    System::start(Options { services, ..Options::default() }).await.unwrap()
}

/// Takes the market away while a job runs, until the job has ended and the machine has been rebooted. Returns how long
/// the job had ended when the market was back.
async fn outage(system: &mut System) -> Duration {
    let began = Instant::now();
    system.ui = None;
    system.services.clear();
    system.nats = None;
    let leases = system.path().join("attic").join("leases");
    let kept = || fs::read_dir(&leases).unwrap().flatten().any(|entry| entry.path().join("outbox.json").exists());
    until("the report of the job that ended in the outage", async || kept()).await;
    let ended = Instant::now();
    // A reboot kills the worker and takes down all mounts.
    system.workers.remove(0).kill();
    for attempt in fs::read_dir(&leases).unwrap().flatten() {
        let taken_down = std::process::Command::new("umount").arg(attempt.path().join("output")).status().unwrap();
        assert_eq!(taken_down.success(), attempt.path().join("room.img").exists());
    }
    // By the clock of the market, the machine was away for long enough to be given up.
    until("an outage longer than the market's patience", async || began.elapsed() > LOST_AFTER).await;
    let dark = ended.elapsed();
    system.start_nats().await.unwrap();
    system.start_services().await.unwrap();
    system.start_ui().await.unwrap();
    system.start_worker("attic", &["--price", "1"]).await.unwrap();
    dark
}

/// The list of files in the job's last event is signed by the key that the machine was listed with.
async fn files_are_signed(system: &System, job: &str) {
    let events = system.web.get(&format!("/jobs/{job}/events")).await.unwrap();
    let completed = events["rows"].as_array().unwrap().iter().find(|e| e["event"] == "Completed").unwrap();
    let outputs: Vec<Artifact> = serde_json::from_value(completed["body"]["outputs"].clone()).unwrap();
    let lease = Lease(Seq(completed["body"]["lease"].as_u64().unwrap()));
    let text = manifest::signed_text(job.parse().unwrap(), lease, &outputs);
    let machine = system.machine("attic").unwrap();
    let trail = system.owner.get(&format!("/machines/{machine}/events")).await.unwrap();
    let listed = trail["rows"].as_array().unwrap().iter().find(|e| e["event"] == "MachineListed").unwrap();
    let key = nkeys::KeyPair::from_public_key(listed["body"]["public_key"].as_str().unwrap()).unwrap();
    let signature = BASE64URL_NOPAD.decode(completed["body"]["signature"].as_str().unwrap().as_bytes()).unwrap();
    key.verify(text.as_bytes(), &signature).unwrap();
    assert!(key.verify(b"another manifest", &signature).is_err());
}

#[tokio::test]
async fn a_job_that_ends_while_the_market_is_away_is_settled_by_its_own_run_time() {
    let mut system = impatient().await;
    system.start_worker("attic", &["--price", "1"]).await.unwrap();
    let picture = json!({ "template": "render", "budget_usd": "0.50",
        "parameters": { "width": "320", "height": "180", "samples": "64" } });
    let job = system.web.submit(&picture).await.unwrap();
    running(&system.web, &job).await;
    let dark = outage(&mut system).await;
    let settled = system.web.settled(&job).await.unwrap();
    // The market was away, not the machine: the machine is not given up.
    assert_eq!(settled["state"], "Completed", "{settled:#}");
    assert_eq!(settled["attempts"].as_array().unwrap().len(), 1, "{settled:#}");
    let receipt = system.web.get(&format!("/jobs/{job}/receipt")).await.unwrap();
    let millis = |clock: &str| receipt["metering"][clock].as_u64().unwrap();
    assert_eq!(millis("billed"), millis("worker"), "{receipt:#}");
    // By the clock of the broker the job seems to have run until the market was back.
    assert!(Duration::from_millis(millis("broker") - millis("billed")) >= dark, "{dark:?}: {receipt:#}");
    // The picture was kept on the machine meanwhile.
    let (status, file) = system.web.bytes(&format!("/api/v1/jobs/{job}/artifacts/render.png")).await.unwrap();
    assert!(status == StatusCode::OK && file.starts_with(b"\x89PNG"));
    files_are_signed(&system, &job).await;
}

/// The containers of a job, by `docker ps` with these options.
fn containers(job: &str, options: &str) -> String {
    let label = format!("label=gpubnb.job={job}");
    let listed = std::process::Command::new("docker").args(["ps", options, "--filter", &label]).output().unwrap();
    assert!(listed.status.success(), "{listed:?}");
    String::from_utf8(listed.stdout).unwrap()
}

#[tokio::test]
async fn a_machine_that_comes_back_too_late_is_refused_and_cleans_up() {
    let mut system = impatient().await;
    system.start_worker("attic", &[]).await.unwrap();
    let job = system.web.submit(&counting(20, 50)).await.unwrap();
    running(&system.web, &job).await;
    // Only this machine sleeps, and its job ends meanwhile.
    let worker = &system.workers[0];
    worker.signal(rustix::process::Signal::STOP);
    let requeued = |job: &Value| job["attempts"][0]["ended"] == "Requeued";
    let lost = system.web.wait_for(&job, Duration::from_secs(30), requeued).await.unwrap();
    assert_eq!(lost["reason"]["name"], "ProviderLost");
    until("the end of the container", async || containers(&job, "-q").is_empty()).await;
    worker.signal(rustix::process::Signal::CONT);
    system.start_worker("cellar", &[]).await.unwrap();
    let settled = system.web.settled(&job).await.unwrap();
    assert_eq!(settled["attempts"].as_array().unwrap().len(), 2, "{settled:#}");
    let leases = system.path().join("attic").join("leases");
    until("the removal of the attempts' directories", async || fs::read_dir(&leases).unwrap().count() == 0).await;
    until("the removal of the attempts' containers", async || containers(&job, "-aq").is_empty()).await;
    // The attempt that was given up is not billed.
    let receipt = system.web.get(&format!("/jobs/{job}/receipt")).await.unwrap();
    assert_eq!(receipt["lease"], settled["attempts"][1]["lease"]);
}
