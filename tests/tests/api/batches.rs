//! Batches through the API, without a machine: refusals, repetitions, and the accounts of others.

use futures_util::future::join_all;
use gpubnb_events::{BatchId, JobId};
use gpubnb_tests::{
    api_client::ApiClient,
    shared::{Plan, SharedMarket},
    system::MarketSettings,
    wait::wait_until,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

static MARKET: SharedMarket = SharedMarket::new(|| {
    let services = ["--duplicate-window-ms", "100"].map(str::to_owned).into();
    Plan::with_settings(MarketSettings { replicas: 2, services, ..MarketSettings::default() })
});

/// A batch that waits: there is no machine.
fn waiting(batch: BatchId, array: &str) -> Value {
    json!({ "batch": batch, "job": { "template": "noop", "budget_usd": "0.01" }, "array": array })
}

async fn held(client: &ApiClient) -> i64 {
    client.get("/wallet").await.unwrap()["balance"]["held"].as_i64().unwrap()
}

#[tokio::test]
async fn a_batch_that_is_submitted_many_times_is_one_batch_with_one_hold() {
    let market = MARKET.open().await.unwrap();
    let client = ApiClient::sign_up(&market.url(), "repeats").await.unwrap();
    client.deposit("5").await.unwrap();
    let id = BatchId::generate();
    let body = waiting(id, "0-99");
    let answers = join_all((0..16).map(|_| client.post("/batches", &body))).await;
    let first = answers[0].as_ref().unwrap();
    assert!(answers.iter().all(|answer| answer.as_ref().unwrap() == first), "{answers:?}");
    assert_eq!(held(&client).await, 1_000_000);
    let refused = async |body: Value| {
        let (status, problem) = client.request(Method::POST, "/batches", Some(&body)).await.unwrap();
        (status, problem["title"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(refused(waiting(id, "0-98")).await, (StatusCode::CONFLICT, "IdReused".to_owned()));
    // A job cannot take the id of a task, and the id of a job is no id of a batch.
    let task = json!({ "job": id.task(7), "template": "noop", "budget_usd": "0.01" });
    let (status, problem) = client.request(Method::POST, "/jobs", Some(&task)).await.unwrap();
    assert_eq!((status, &problem["title"]), (StatusCode::CONFLICT, &json!("IdReused")));
    let (status, _) = client
        .request(Method::POST, "/batches", Some(&json!({ "batch": JobId::generate(), "job": {}, "array": "1" })))
        .await
        .unwrap();
    assert_eq!(status, StatusCode::BAD_REQUEST);
    client.post(&format!("/batches/{id}/cancel"), &json!({})).await.unwrap();
    let batch = async || client.get(&format!("/batches/{id}")).await.unwrap();
    wait_until("the batch is over", async || !batch().await["ended_at"].is_null()).await;
    let batch = batch().await;
    assert_eq!((&batch["status"], &batch["counts"]["cancelled"]), (&json!("Cancelled"), &json!(100)));
    assert_eq!(held(&client).await, 0);
}

#[tokio::test]
async fn a_wrong_batch_is_refused_and_the_wallet_is_unchanged() {
    let market = MARKET.open().await.unwrap();
    let client = ApiClient::sign_up(&market.url(), "refusals").await.unwrap();
    client.deposit("1").await.unwrap();
    let numbers: Vec<String> = (0..1_000).map(|number| number.to_string()).collect();
    let job = json!({ "template": "noop", "budget_usd": "0.01" });
    let image = format!("ghcr.io/a/b@sha256:{}", "0".repeat(64));
    let custom = |command: &str| json!({ "image": image, "command": [command], "budget_usd": "0.01" });
    let cases = [
        ("sweep", json!({ "job": job, "sweep": { "a": numbers, "b": numbers } })),
        ("array", json!({ "job": job, "array": "0-999999" })),
        ("array", json!({ "job": job, "array": "nine" })),
        ("tasks", json!({ "job": job })),
        ("tasks", json!({ "job": job, "array": "1", "items": ["a"] })),
        ("tasks", json!({ "job": job, "items": ["a\nb"] })),
        ("tasks", json!({ "job": job, "tasks": [{ "a b": "1" }] })),
        ("max_running", json!({ "job": job, "array": "1-3", "max_running": 0 })),
        ("command", json!({ "job": custom("{}"), "array": "1-3" })),
        ("job", json!({ "job": { "job": JobId::generate(), "template": "noop" }, "array": "1-3" })),
        ("budget", json!({ "job": job, "array": "0-9999" })),
        ("image", json!({ "job": { "image": "no such image" }, "array": "1-3" })),
    ];
    for (field, body) in cases {
        for path in ["/batches", "/batches/quote"] {
            // A quote says what is set aside, also if that is more than there is.
            if (field, path) == ("budget", "/batches/quote") {
                continue;
            }
            let (status, problem) = client.request(Method::POST, path, Some(&body)).await.unwrap();
            assert!(status.is_client_error(), "{path} {field}: {status} {problem}");
            assert_eq!(problem["field"], field, "{path}: {problem}");
        }
    }
    assert_eq!(held(&client).await, 0);
    assert_eq!(client.get("/batches").await.unwrap()["rows"], json!([]));
}

#[tokio::test]
async fn nobody_sees_or_cancels_the_batch_of_another() {
    let market = MARKET.open().await.unwrap();
    let owner = ApiClient::sign_up(&market.url(), "owner").await.unwrap();
    owner.deposit("1").await.unwrap();
    let stranger = ApiClient::sign_up(&market.url(), "stranger").await.unwrap();
    let id = BatchId::generate();
    owner.post("/batches", &waiting(id, "0-9")).await.unwrap();
    for path in ["", "/tasks", "/events", "/results.csv", "/artifacts.tar"] {
        let (status, _) = stranger.bytes(&format!("/api/v1/batches/{id}{path}")).await.unwrap();
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
    }
    for path in ["cancel", "retry"] {
        let path = format!("/batches/{id}/{path}");
        let (status, _) = stranger.request(Method::POST, &path, Some(&json!({}))).await.unwrap();
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
    }
    let (status, _) = stranger.browser_session().bytes(&format!("/batches/{id}")).await.unwrap();
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(owner.get(&format!("/batches/{id}")).await.unwrap()["closed"], Value::Null);
    // The stranger cannot take the id, either.
    stranger.deposit("1").await.unwrap();
    let (status, problem) = stranger.request(Method::POST, "/batches", Some(&waiting(id, "0-9"))).await.unwrap();
    assert_eq!((status, &problem["title"]), (StatusCode::CONFLICT, &json!("IdReused")));
}
