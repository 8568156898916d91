//! Which time of a job is billed, and who is at fault. Each test makes one of the endings of docs/events.md happen,
//! with the real programs and a real Docker.

use std::time::Duration;

use gpubnb_events::subject;
use gpubnb_log::stream::{DISPATCH, machine_consumer};
use gpubnb_runtime::nats::jetstream;
use gpubnb_tests::{
    jobs::{counting_job, noop_job, wait_until_running},
    registry::{ImageKind, Registry},
    system::{MarketSettings, System},
    wait::wait_until,
};
use serde_json::{Value, json};

async fn market() -> System {
    let mut system = System::start(MarketSettings::default()).await.unwrap();
    system.start_worker("attic", &["--price", "1"]).await.unwrap();
    system
}

/// The names of a job's events, in the order of the log.
async fn names(system: &System, job: &str) -> Vec<String> {
    let events = system.consumer.get(&format!("/jobs/{job}/events")).await.unwrap();
    events["rows"].as_array().unwrap().iter().map(|e| e["event"].as_str().unwrap().to_owned()).collect()
}

async fn receipt(system: &System, job: &str) -> Value {
    system.consumer.get(&format!("/jobs/{job}/receipt")).await.unwrap()
}

/// The successes and the faults in a machine's record.
async fn record(system: &System, machine: &str) -> (Value, Value) {
    let view = system.machine_view(machine).await.unwrap();
    (view["successes"].clone(), view["faults"].clone())
}

#[tokio::test]
async fn the_time_of_an_upload_is_neither_run_time_nor_billed() {
    let mut system = market().await;
    let picture = json!({ "template": "render", "budget_usd": "0.50", "time_seconds": 10,
        "parameters": { "width": "160", "height": "90", "samples": "16" } });
    let job = system.consumer.submit(&picture).await.unwrap();
    wait_until_running(&system.consumer, &job).await;
    // No file can be uploaded until the web server is back.
    system.ui = None;
    let exited =
        || String::from_utf8(system.run_operator_tool(&["replay", "MARKET", "--id", &job]).unwrap().stdout).unwrap();
    wait_until("the word that the program has ended", async || exited().contains("Exited")).await;
    // The upload waits for longer than the job's time limit of 10 seconds. The limit is for the program, and not for
    // the upload.
    tokio::time::sleep(Duration::from_secs(11)).await;
    system.start_ui().await.unwrap();
    let settled = system.consumer.wait_until_settled(&job).await.unwrap();
    assert_eq!((&settled["state"], settled["attempts"].as_array().unwrap().len()), (&json!("Completed"), 1));
    let metering = &receipt(&system, &job).await["metering"];
    assert_eq!(metering["billed"], metering["worker"], "{metering:#}");
    assert!(metering["broker"].as_u64().unwrap() < 10_000, "the broker's time ends at the exit: {metering:#}");
    let (status, file) = system.consumer.bytes(&format!("/api/v1/jobs/{job}/artifacts/render.png")).await.unwrap();
    assert!(status.is_success() && file.starts_with(b"\x89PNG"));
}

#[tokio::test]
async fn a_worker_that_is_stopped_changes_neither_the_outcome_nor_the_bill() {
    let system = market().await;
    let mut short = counting_job(20, 50);
    short["time_seconds"] = json!(10);
    let job = system.consumer.submit(&short).await.unwrap();
    wait_until_running(&system.consumer, &job).await;
    // The worker sleeps for longer than the job's time limit of 10 seconds. The program ends after one second.
    system.workers[0].signal(rustix::process::Signal::STOP);
    tokio::time::sleep(Duration::from_secs(14)).await;
    system.workers[0].signal(rustix::process::Signal::CONT);
    let settled = system.consumer.wait_until_settled(&job).await.unwrap();
    assert_eq!((&settled["state"], settled["attempts"].as_array().unwrap().len()), (&json!("Completed"), 1));
    let metering = &receipt(&system, &job).await["metering"];
    let billed = metering["billed"].as_u64().unwrap();
    assert!((900..10_000).contains(&billed), "the program ran for a second: {metering:#}");
}

#[tokio::test]
async fn an_exit_code_of_a_killed_process_is_believed_at_once() {
    let system = market().await;
    for code in [137, 143, 255] {
        let mut job = counting_job(1, 1);
        job["parameters"]["exit-code"] = json!(code.to_string());
        let job = system.consumer.submit(&job).await.unwrap();
        let settled = system.consumer.wait_until_settled(&job).await.unwrap();
        assert_eq!(settled["reason"], json!({ "name": "NonZeroExit", "code": code }), "{settled:#}");
        assert_eq!((&settled["fault"], &settled["attempts"][0]["ended"]), (&json!("consumer"), &json!("Failed")));
    }
    assert_eq!(record(&system, "attic").await.0, json!(3), "the machine did its part");
}

#[tokio::test]
async fn a_command_that_cannot_be_run_is_named_and_costs_nothing() {
    let registry = Registry::start(&[("bare", ImageKind::NoEntrypoint, 10)]).await.unwrap();
    let approved = vec!["--approve-image".to_owned(), registry.name("bare")];
    let mut system = System::start(MarketSettings { services: approved, ..MarketSettings::default() }).await.unwrap();
    system.start_worker("attic", &["--private-registry", &registry.url()]).await.unwrap();
    for (command, why) in [("nosuch", "No such file"), ("/noise", "ermission denied")] {
        let body = json!({ "image": registry.name("bare"), "command": [command], "name": command,
            "budget_usd": "0.10" });
        let job = system.consumer.submit(&body).await.unwrap();
        let settled = system.consumer.wait_until_settled(&job).await.unwrap();
        assert_eq!(settled["reason"]["name"], "BadCommand", "{settled:#}");
        assert!(settled["detail"].as_str().unwrap().contains(why), "{settled:#}");
        assert_eq!((&settled["cost"], settled["attempts"].as_array().unwrap().len()), (&json!(0), 1));
    }
    assert_eq!(record(&system, "attic").await, (json!(0), json!({})), "nothing is proven about the machine");
}

#[tokio::test]
async fn a_registry_that_is_away_is_nobodys_fault_and_the_job_waits_for_it() {
    let images = [("broken", ImageKind::Unavailable(500), 10), ("busy", ImageKind::Unavailable(429), 10)];
    let registry = Registry::start(&images).await.unwrap();
    let approved = ["broken", "busy"].map(|image| ["--approve-image".to_owned(), registry.name(image)]);
    let services = approved.into_iter().flatten().collect();
    let mut system = System::start(MarketSettings { services, ..MarketSettings::default() }).await.unwrap();
    system.start_worker("attic", &["--private-registry", &registry.url()]).await.unwrap();
    let mut jobs = Vec::new();
    for image in ["broken", "busy"] {
        let body = json!({ "image": registry.name(image), "command": ["noop"], "name": image,
            "budget_usd": "0.10", "max_attempts": 1 });
        jobs.push(system.consumer.submit(&body).await.unwrap());
    }
    for job in &jobs {
        let waits = |job: &Value| job["state"] == "Queued" && job["retry_at"].is_string();
        let job = system.consumer.wait_for(job, Duration::from_secs(60), waits).await.unwrap();
        assert_eq!((&job["reason"]["name"], &job["fault"]), (&json!("RegistryUnavailable"), &json!("nobody")));
        let page = system
            .consumer
            .browser_session()
            .bytes(&format!("/jobs/{}", job["job"].as_str().unwrap()))
            .await
            .unwrap()
            .1;
        assert!(String::from_utf8_lossy(&page).contains("Nobody is at fault"));
    }
    assert_eq!(record(&system, "attic").await, (json!(0), json!({})));
    registry.make_available();
    for job in &jobs {
        let settled = system.consumer.wait_until_settled(job).await.unwrap();
        assert_eq!(settled["state"], "Completed", "{settled:#}");
        assert!(names(&system, job).await.iter().filter(|name| *name == "Requeued").count() >= 1);
    }
}

#[tokio::test]
async fn a_one_machine_market_tries_again_on_that_machine_after_a_pause() {
    let system = market().await;
    let job = system.consumer.submit(&counting_job(100, 50)).await.unwrap();
    let has_begun = |job: &Value| job["state"] == "Running" && job["progress"] != Value::Null;
    system.consumer.wait_for(&job, Duration::from_secs(30), has_begun).await.unwrap();
    let container = std::process::Command::new("docker")
        .args(["ps", "-q", "--filter", &format!("label=gpubnb.job={job}")])
        .output()
        .unwrap();
    let container = String::from_utf8(container.stdout).unwrap();
    // The owner kills the container. The job did not end by itself, so the attempt is not the job's fault.
    std::process::Command::new("docker").args(["kill", container.trim()]).output().unwrap();
    let waits = |job: &Value| job["attempts"][0]["ended"] == "Requeued";
    let waiting = system.consumer.wait_for(&job, Duration::from_secs(30), waits).await.unwrap();
    assert_eq!((&waiting["reason"]["name"], &waiting["fault"]), (&json!("Interrupted"), &json!("provider")));
    let settled = system.consumer.wait_until_settled(&job).await.unwrap();
    assert_eq!((&settled["state"], settled["attempts"].as_array().unwrap().len()), (&json!("Completed"), 2));
    assert_eq!(receipt(&system, &job).await["lease"], settled["attempts"][1]["lease"]);
}

#[tokio::test]
async fn a_machine_whose_queue_was_deleted_gets_the_queue_back() {
    let system = market().await;
    let machine = system.machine_id("attic").unwrap().parse().unwrap();
    let client = system.nats_args("services").connect("append", subject::SERVICES_INBOX).await.unwrap();
    let stream = jetstream(client).get_stream_no_info(DISPATCH).await.unwrap();
    stream.delete_consumer(&machine_consumer(machine)).await.unwrap();
    let job = system.consumer.submit(&noop_job()).await.unwrap();
    let settled = system.consumer.wait_until_settled(&job).await.unwrap();
    assert_eq!(settled["state"], "Completed", "{settled:#}");
}
