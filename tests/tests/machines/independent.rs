//! The independent reader, `tests/independent/`, recomputes a history from its export and the documents alone.

use std::{path::Path, process::Command};

use gpubnb_events::JobId;
use gpubnb_tests::{
    api_client::ApiClient,
    jobs::{counting_job, noop_job, wait_until_running},
    registry::{ImageKind, Registry},
    system::{MarketSettings, System},
    wait::wait_until,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// Makes a history with endings of all kinds: completed, failed by each party, requeued, cancelled before and after the
/// start. Returns the number of tasks of batches that became jobs.
async fn make_history(system: &mut System, registry: &Registry) -> u64 {
    let arguments = ["--price", "1", "--slots", "2", "--private-registry", &registry.url()];
    system.start_worker("attic", &arguments).await.unwrap();
    let consumer = &system.consumer;
    let mut failing = counting_job(2, 10);
    failing["parameters"]["exit-code"] = json!("3");
    let mut endless = counting_job(600, 1_000);
    endless["time_seconds"] = json!(2);
    let bad = json!({ "image": registry.name("bare"), "command": ["nosuch"], "name": "bad", "budget_usd": "0.10" });
    let away = json!({ "image": registry.name("away"), "command": ["noop"], "name": "away", "budget_usd": "0.10",
        "max_attempts": 2, "queue_seconds": 20 });
    let dear = json!({ "template": "noop", "budget_usd": "0.01", "price_cap_usd": "0.000001", "queue_seconds": 1 });
    let mut jobs = Vec::new();
    for job in [noop_job(), counting_job(20, 50), failing, endless, bad, away, dear] {
        jobs.push(consumer.submit(&job).await.unwrap());
    }
    let cancelled = consumer.submit(&counting_job(600, 1_000)).await.unwrap();
    wait_until_running(consumer, &cancelled).await;
    consumer.post(&format!("/jobs/{cancelled}/cancel"), &json!({})).await.unwrap();
    let unstarted = json!({ "template": "noop", "budget_usd": "0.01", "region": "nowhere" });
    let unstarted = consumer.submit(&unstarted).await.unwrap();
    consumer.post(&format!("/jobs/{unstarted}/cancel"), &json!({})).await.unwrap();
    jobs.extend([cancelled, unstarted]);
    for job in jobs {
        consumer.wait_until_settled(&job).await.unwrap();
    }
    make_batches(consumer).await
}

/// Batches of all endings: finished, stopped after too many failures, and cancelled while their tasks wait. Returns the
/// number of tasks that were opened.
async fn make_batches(consumer: &ApiClient) -> u64 {
    let mut failing = counting_job(2, 10);
    failing["parameters"]["exit-code"] = json!("3");
    let unplaceable = json!({ "template": "noop", "budget_usd": "0.01", "region": "nowhere" });
    let batches = [
        json!({ "job": noop_job(), "array": "0-11" }),
        json!({ "job": failing, "array": "5-24", "max_running": 2, "max_failures": 1 }),
        json!({ "job": unplaceable, "array": "0-29" }),
    ];
    let mut ids = Vec::new();
    for batch in batches {
        let submitted = consumer.post("/batches", &batch).await.unwrap();
        ids.push(submitted["batch"].as_str().unwrap().to_owned());
    }
    let opened = async || consumer.get(&format!("/batches/{}", ids[2])).await.unwrap()["opened"] != 0;
    wait_until("tasks of the last batch wait", opened).await;
    consumer.post(&format!("/batches/{}/cancel", ids[2]), &json!({})).await.unwrap();
    let mut tasks = 0;
    for (id, reason) in ids.iter().zip(["finished", "too_many_failures", "cancelled"]) {
        let batch = async || consumer.get(&format!("/batches/{id}")).await.unwrap();
        wait_until("the batch is over", async || !batch().await["ended_at"].is_null()).await;
        let batch = batch().await;
        assert_eq!(batch["closed"], reason);
        tasks += batch["opened"].as_u64().unwrap();
    }
    tasks
}

/// Two accounts submit a job with the same id at once: the hold of the one that gets no job is released.
async fn race(system: &System) {
    let other = ApiClient::sign_up(&system.url(), "other").await.unwrap();
    other.deposit("10").await.unwrap();
    for _ in 0..6 {
        let body = json!({ "job": JobId::generate(), "template": "noop", "budget_usd": "0.10" });
        let post = |client: &ApiClient| {
            let client = client.clone();
            let body = body.clone();
            async move { client.request(Method::POST, "/jobs", Some(&body)).await.unwrap().0 }
        };
        let (first, second) = tokio::join!(post(&system.consumer), post(&other));
        let winner = if first == StatusCode::CREATED { &system.consumer } else { &other };
        assert_ne!(first, second);
        winner.wait_until_settled(body["job"].as_str().unwrap()).await.unwrap();
    }
    wait_until("no money is held", async || other.get("/wallet").await.unwrap()["balance"]["held"] == 0).await;
}

/// Runs a Python program of `tests/independent`. Returns its exit code, its stdout and its stderr.
fn python(program: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/independent/");
    let output = Command::new("python3").arg(format!("{directory}{program}")).args(arguments).output().unwrap();
    let [text, errors] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    (output.status.code(), text, errors)
}

/// Lets the independent reader check an archive, and returns its report. The reader must find no fault, and a head
/// that is signed with this key.
fn read(archive: &Path, key: &str) -> Value {
    let (code, text, errors) = python("reader.py", &[archive.to_str().unwrap(), "--key", key, "--json"]);
    assert_eq!(code, Some(0), "{text}{errors}");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn the_independent_reader_finds_what_is_wrong_in_made_up_logs() {
    let (code, text, errors) = python("selftest.py", &[]);
    assert_eq!(code, Some(0), "{text}{errors}");
}

#[tokio::test]
async fn an_independent_reader_finds_the_same_bills_and_balances() {
    let images = [("bare", ImageKind::NoEntrypoint, 10), ("away", ImageKind::Unavailable(503), 10)];
    let registry = Registry::start(&images).await.unwrap();
    let approved = ["bare", "away"].map(|image| ["--approve-image".to_owned(), registry.name(image)]);
    let services = approved.into_iter().flatten().collect();
    let mut system = System::start(MarketSettings { services, ..MarketSettings::default() }).await.unwrap();
    let tasks = make_history(&mut system, &registry).await;
    race(&system).await;
    let archive = system.path().join("archive");
    let exported = system.run_operator_tool(&["export", archive.to_str().unwrap()]).unwrap();
    assert!(exported.status.success(), "{exported:?}");
    let published: Value =
        reqwest::get(format!("{}/.well-known/gpubnb.json", system.url())).await.unwrap().json().await.unwrap();
    let report = read(&archive, published["head_keys"][0].as_str().unwrap());
    // `make_history` runs nine jobs and the tasks, and `race` runs six jobs.
    assert_eq!(report["bills"]["checked"], 9 + 6 + tasks, "{report:#}");
    for check in ["batches", "leaves", "heads", "ledger", "leases", "placements"] {
        assert!(report[check]["checked"].as_u64().unwrap() > 0, "{check}: {report:#}");
    }
}
