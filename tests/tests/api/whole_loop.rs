//! The whole life of a job in a real market: a machine is listed, and a job is submitted, runs in Docker and is
//! settled.

use std::time::Duration;

use gpubnb_tests::{
    jobs::wait_until_running,
    shared::{Plan, SharedMarket},
    system::{MarketSettings, System},
};
use serde_json::{Value, json};

fn rows(page: &Value) -> &Vec<Value> {
    page["rows"].as_array().unwrap()
}

fn event_names(events: &Value) -> Vec<&str> {
    rows(events).iter().map(|e| e["event"].as_str().unwrap()).collect()
}

static MARKET: SharedMarket =
    SharedMarket::new(|| Plan::default().with_worker("attic", &["--price", "0.36", "--slots", "4"]));

#[tokio::test]
async fn a_job_is_quoted_run_settled_and_leaves_its_file() {
    let market = MARKET.open().await.unwrap();
    let parameters = json!({ "width": "160", "height": "90", "samples": "4" });
    let body = json!({ "template": "render", "parameters": parameters, "budget_usd": "0.50" });
    let quote = market.consumer.post("/quote", &body).await.unwrap();
    assert_eq!((&quote["machine_name"], &quote["hold"]), (&json!("attic"), &json!(500_000)));
    let job = market.consumer.submit(&body).await.unwrap();
    let settled = market.consumer.wait_until_settled(&job).await.unwrap();
    assert_eq!((&settled["state"], &settled["status"]), (&json!("Completed"), &json!("Settled")), "{settled:#}");
    assert_eq!(settled["progress"]["fraction"], 1.0);

    let receipt = market.consumer.get(&format!("/jobs/{job}/receipt")).await.unwrap();
    let sum: i64 = receipt["postings"].as_array().unwrap().iter().map(|p| p["amount"].as_i64().unwrap()).sum();
    assert_eq!(sum, 0, "{receipt:#}");
    let billed = receipt["metering"]["billed"].as_i64().unwrap();
    // The price is $0.36 an hour. Amounts are in millionths of a dollar, and the billed time is in milliseconds.
    assert_eq!(receipt["cost"], json!(360_000 * billed / 3_600_000));
    let wallet = market.consumer.get("/wallet").await.unwrap();
    assert_eq!(wallet["balance"]["held"], 0);
    assert_eq!(wallet["balance"]["available"], json!(100_000_000 - receipt["cost"].as_i64().unwrap()));

    let events = market.consumer.get(&format!("/jobs/{job}/events")).await.unwrap();
    assert_eq!(
        event_names(&events),
        ["JobSubmitted", "JobAssigned", "Accepted", "Started", "Exited", "Completed", "Settled"]
    );
    let files = market.consumer.get(&format!("/jobs/{job}/artifacts")).await.unwrap();
    assert_eq!(files[0]["path"], "render.png", "{files:#}");
    let (status, picture) = market.consumer.bytes(&format!("/jobs/{job}/artifacts/render.png")).await.unwrap();
    assert!(status.is_success() && picture.starts_with(b"\x89PNG"));
    assert_eq!(picture.len() as u64, files[0]["bytes"].as_u64().unwrap());
}

#[tokio::test]
async fn every_log_line_arrives_once_in_order_and_the_exit_code_is_the_reason() {
    let market = MARKET.open().await.unwrap();
    let parameters = json!({ "lines": "1000", "interval-ms": "0", "exit-code": "3" });
    let job = market.consumer.submit(&json!({ "template": "count", "parameters": parameters })).await.unwrap();
    let ended = market.consumer.wait_until_settled(&job).await.unwrap();
    assert_eq!(ended["reason"], json!({ "name": "NonZeroExit", "code": 3 }), "{ended:#}");
    assert_eq!(ended["fault"], "consumer");
    let logs = market.consumer.get(&format!("/jobs/{job}/logs")).await.unwrap();
    let numbers: Vec<_> = rows(&logs).iter().map(|line| line["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..1_000).collect::<Vec<_>>());
    // Docker keeps the order of lines only within stdout and within stderr.
    for stream in ["stdout", "stderr"] {
        let texts = rows(&logs).iter().filter(|l| l["stream"] == stream).map(|l| l["text"].as_str().unwrap());
        let numbers: Vec<u32> = texts.map(|t| t.trim_start_matches("line ").parse().unwrap()).collect();
        assert!(numbers.is_sorted() && numbers.len() == 500, "{stream}");
    }
}

#[tokio::test]
async fn a_running_job_is_cancelled_and_billed_up_to_the_request() {
    let market = MARKET.open().await.unwrap();
    let parameters = json!({ "lines": "100000", "interval-ms": "50" });
    let job = market.consumer.submit(&json!({ "template": "count", "parameters": parameters })).await.unwrap();
    wait_until_running(&market.consumer, &job).await;
    market.consumer.post(&format!("/jobs/{job}/cancel"), &json!({})).await.unwrap();
    let ended = market.consumer.wait_until_settled(&job).await.unwrap();
    assert_eq!(ended["state"], "Cancelled", "{ended:#}");
    let events = market.consumer.get(&format!("/jobs/{job}/events")).await.unwrap();
    let at = |name: &str| rows(&events).iter().find(|e| e["event"] == name).unwrap()["seq"].clone();
    let receipt = market.consumer.get(&format!("/jobs/{job}/receipt")).await.unwrap();
    assert_eq!(receipt["metering"]["ended"], at("CancelRequested"), "{receipt:#}");
}

#[tokio::test]
async fn a_job_that_exceeds_a_limit_fails_with_the_name_of_the_limit() {
    let market = MARKET.open().await.unwrap();
    let count = json!({ "lines": "100000", "interval-ms": "50" });
    let cases = [
        (json!({ "template": "count", "parameters": count, "time_seconds": 2 }), "TimeLimit"),
        (json!({ "template": "count", "parameters": count, "budget_usd": "0.0002" }), "BudgetExhausted"),
        (json!({ "template": "matmul", "parameters": { "size": "2048" }, "memory_mib": 16 }), "OutOfMemory"),
    ];
    for (body, reason) in cases {
        let job = market.consumer.submit(&body).await.unwrap();
        let ended = market.consumer.wait_until_settled(&job).await.unwrap();
        assert_eq!(ended["reason"]["name"], reason, "{ended:#}");
        let receipt = market.consumer.get(&format!("/jobs/{job}/receipt")).await.unwrap();
        assert!(receipt["cost"].as_i64() <= ended["hold"].as_i64());
    }
}

#[tokio::test]
async fn a_job_waits_with_a_reason_until_a_machine_below_its_price_cap_comes() {
    let mut system = System::start(MarketSettings::default()).await.unwrap();
    system.start_worker("expensive", &["--price", "9"]).await.unwrap();
    let body = json!({ "template": "noop", "price_cap_usd": "1" });
    let job = system.consumer.submit(&body).await.unwrap();
    let why = |job: &Value| job["waiting"]["rejected"][0]["reason"] == "Price";
    system.consumer.wait_for(&job, Duration::from_secs(10), why).await.unwrap();
    system.start_worker("cheap", &["--price", "0.5"]).await.unwrap();
    let settled = system.consumer.wait_until_settled(&job).await.unwrap();
    assert_eq!(settled["attempts"][0]["machine"], json!(system.machine_id("cheap").unwrap()));
    assert_eq!(settled["attempts"][0]["placement"]["candidates"], 1);
}

#[tokio::test]
async fn simulated_gpus_are_marked_and_only_used_by_jobs_that_allow_them() {
    let mut system = System::start(MarketSettings::default()).await.unwrap();
    system.start_worker("pretender", &["--simulate-gpus", "2"]).await.unwrap();
    let machines = system.consumer.get("/machines").await.unwrap();
    assert_eq!(machines["rows"][0]["offer"]["hardware"]["simulated"], true);
    let strict = json!({ "template": "noop", "gpus": 1, "budget_usd": "0.10" });
    let waiting = system.consumer.submit(&strict).await.unwrap();
    let why = |job: &Value| job["waiting"]["rejected"][0]["reason"] == "Simulated";
    system.consumer.wait_for(&waiting, Duration::from_secs(10), why).await.unwrap();
    let lenient = json!({ "template": "noop", "gpus": 1, "allow_simulated": true });
    let job = system.consumer.submit(&lenient).await.unwrap();
    assert_eq!(system.consumer.wait_until_settled(&job).await.unwrap()["state"], "Completed");
}
