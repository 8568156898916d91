//! A command that is given again, at once or later, counts once. The broker drops duplicates by itself only within its
//! duplicate window, which is at its minimum here.

use futures_util::future::join_all;
use gpubnb_events::{CommandId, JobId};
use gpubnb_tests::{
    jobs::{noop, that_nobody_takes},
    market::Market,
    shared::{Plan, Shared},
    system::Options,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

static MARKET: Shared = Shared::new(|| {
    let services = ["--duplicate-window-ms", "100"].map(str::to_owned).into();
    Plan::with(Options { replicas: 2, services, ..Options::default() }).worker("attic", &[])
});

#[tokio::test]
async fn the_same_submission_many_times_at_once_and_after_the_end_is_one_job() {
    let market = MARKET.open().await.unwrap();
    let body = json!({ "job": JobId::generate(), "template": "noop" });
    let submit = || market.web.post("/jobs", &body);
    let answers = join_all((0..32).map(|_| submit())).await;
    let first = answers[0].as_ref().unwrap();
    for answer in &answers {
        assert_eq!(answer.as_ref().unwrap(), first);
    }
    let job = first["job"].as_str().unwrap();
    market.web.settled(job).await.unwrap();
    assert_eq!(&submit().await.unwrap(), first);
    let statement = market.web.get("/wallet").await.unwrap();
    let lines = statement["statement"]["rows"].as_array().unwrap().clone();
    assert_eq!(lines.iter().filter(|line| line["event"] == "JobSubmitted").count(), 1, "{lines:#?}");
    let other = json!({ "job": job, "template": "noop", "name": "another" });
    let (status, problem) = market.web.request(Method::POST, "/jobs", Some(&other)).await.unwrap();
    assert_eq!((status, &problem["title"]), (StatusCode::CONFLICT, &json!("IdReused")), "{problem}");
}

#[tokio::test]
async fn the_same_deposit_counts_once() {
    let market = MARKET.open().await.unwrap();
    let deposit = json!({ "deposit": CommandId::generate(), "amount_usd": "5" });
    let browser = market.web.at_browser();
    let answers = join_all((0..16).map(|_| browser.post("/wallet/deposits", &deposit))).await;
    let first = answers[0].as_ref().unwrap();
    assert!(answers.iter().all(|answer| answer.as_ref().unwrap() == first));
    let path = format!("/wallet?min_seq={}", first["seq"]);
    assert_eq!(market.web.get(&path).await.unwrap()["balance"]["available"], 105_000_000);
}

#[tokio::test]
async fn the_same_cancel_counts_once() {
    let market = MARKET.open().await.unwrap();
    let job = market.web.submit(&that_nobody_takes(noop(), "1")).await.unwrap();
    let cancel = format!("/jobs/{job}/cancel");
    let nothing = json!({});
    let answers = join_all((0..8).map(|_| market.web.post(&cancel, &nothing))).await;
    let first: &Value = answers[0].as_ref().unwrap();
    assert!(answers.iter().all(|answer| answer.as_ref().unwrap() == first));
    assert_eq!(market.web.settled(&job).await.unwrap()["cost"], 0);
}

/// Submits a job that holds $9, again for as long as its account is busy with another command.
async fn submitted(market: &Market) -> StatusCode {
    let mut body = that_nobody_takes(noop(), "9");
    body["job"] = json!(JobId::generate());
    for _ in 0..100 {
        let (status, problem) = market.web.request(Method::POST, "/jobs", Some(&body)).await.unwrap();
        if status != StatusCode::CONFLICT {
            return status;
        }
        assert_eq!(problem["title"], "Conflict", "{problem}");
    }
    panic!("the account stayed busy");
}

#[tokio::test]
async fn many_at_once_spend_exactly_what_there_is() {
    let market = MARKET.open().await.unwrap();
    // Eleven holds of $9 fit into $100, and nobody takes the jobs, so no hold is released.
    let answers = join_all((0..24).map(|_| submitted(&market))).await;
    let count = |wanted: StatusCode| answers.iter().filter(|status| **status == wanted).count();
    assert_eq!((count(StatusCode::CREATED), count(StatusCode::PAYMENT_REQUIRED)), (11, 13), "{answers:?}");
    let wallet = market.web.get("/wallet").await.unwrap();
    assert_eq!((&wallet["balance"]["held"], &wallet["balance"]["available"]), (&json!(99_000_000), &json!(1_000_000)));
}
