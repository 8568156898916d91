//! Saying the same thing again, at once or later, is saying it once. With the broker's own window at its minimum.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use futures_util::future::join_all;
use gpubnb_events::{CommandId, JobId};
use gpubnb_tests::system::{Options, System};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

fn options(replicas: usize) -> Options {
    let services = ["--duplicate-window-ms", "100"].map(str::to_owned).into();
    Options { replicas, services, ..Options::default() }
}

#[tokio::test]
async fn the_same_submission_many_times_at_once_and_after_the_end_is_one_job() {
    let mut system = System::start(options(2)).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let body = json!({ "job": JobId::generate(), "template": "noop" });
    let submit = || system.web.post("/jobs", &body);
    let answers = join_all((0..32).map(|_| submit())).await;
    let first = answers[0].as_ref().unwrap();
    for answer in &answers {
        assert_eq!(answer.as_ref().unwrap(), first);
    }
    let job = first["job"].as_str().unwrap();
    system.web.settled(job).await.unwrap();
    assert_eq!(&submit().await.unwrap(), first);
    let statement = system.web.get("/wallet").await.unwrap();
    let lines = statement["statement"]["rows"].as_array().unwrap().clone();
    assert_eq!(lines.iter().filter(|line| line["event"] == "JobSubmitted").count(), 1, "{lines:#?}");
    let other = json!({ "job": job, "template": "noop", "name": "another" });
    let (status, problem) = system.web.request(Method::POST, "/jobs", Some(&other)).await.unwrap();
    assert_eq!((status, &problem["title"]), (StatusCode::CONFLICT, &json!("IdReused")), "{problem}");
}

#[tokio::test]
async fn the_same_deposit_and_the_same_cancel_count_once() {
    let system = System::start(options(2)).await.unwrap();
    let deposit = json!({ "deposit": CommandId::generate(), "amount_usd": "5" });
    let browser = system.web.at_browser();
    let answers = join_all((0..16).map(|_| browser.post("/wallet/deposits", &deposit))).await;
    let first = answers[0].as_ref().unwrap();
    assert!(answers.iter().all(|answer| answer.as_ref().unwrap() == first));
    let path = format!("/wallet?min_seq={}", first["seq"]);
    assert_eq!(system.web.get(&path).await.unwrap()["balance"]["available"], 105_000_000);

    let job = system.web.submit(&json!({ "template": "noop", "budget_usd": "1" })).await.unwrap();
    let cancel = format!("/jobs/{job}/cancel");
    let nothing = json!({});
    let answers = join_all((0..8).map(|_| system.web.post(&cancel, &nothing))).await;
    let first: &Value = answers[0].as_ref().unwrap();
    assert!(answers.iter().all(|answer| answer.as_ref().unwrap() == first));
    assert_eq!(system.web.settled(&job).await.unwrap()["cost"], 0);
}

#[tokio::test]
async fn many_at_once_never_spend_more_than_there_is() {
    let system = System::start(options(2)).await.unwrap();
    // $100 are there; each job holds $9.
    let submit = |_| async {
        let body = json!({ "template": "noop", "budget_usd": "9" });
        system.web.request(Method::POST, "/jobs", Some(&body)).await.unwrap().0
    };
    let answers = join_all((0..24).map(submit)).await;
    let accepted = answers.iter().filter(|s| **s == StatusCode::CREATED).count();
    let poor = answers.iter().filter(|s| **s == StatusCode::PAYMENT_REQUIRED).count();
    let busy = answers.iter().filter(|s| **s == StatusCode::CONFLICT).count();
    assert_eq!(accepted + poor + busy, 24, "{answers:?}");
    assert!(accepted <= 11 && accepted > 0, "{answers:?}");
}
