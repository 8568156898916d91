//! A command that is sent several times counts once. The broker drops duplicates only within its duplicate window, so
//! these tests set the window to its minimum of 100 milliseconds.

use futures_util::future::join_all;
use gpubnb_events::{CommandId, JobId};
use gpubnb_tests::{
    api_client::ApiClient,
    jobs::{noop_job, unplaceable},
    market::Market,
    shared::{Plan, SharedMarket},
    system::MarketSettings,
    wait::wait_until,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

static MARKET: SharedMarket = SharedMarket::new(|| {
    let services = ["--duplicate-window-ms", "100"].map(str::to_owned).into();
    Plan::with_settings(MarketSettings { replicas: 2, services, ..MarketSettings::default() }).with_worker("attic", &[])
});

#[tokio::test]
async fn a_submission_that_is_repeated_at_once_and_after_the_end_is_one_job() {
    let market = MARKET.open().await.unwrap();
    let body = json!({ "job": JobId::generate(), "template": "noop" });
    let submit = || market.consumer.post("/jobs", &body);
    let answers = join_all((0..32).map(|_| submit())).await;
    let first = answers[0].as_ref().unwrap();
    for answer in &answers {
        assert_eq!(answer.as_ref().unwrap(), first);
    }
    let job = first["job"].as_str().unwrap();
    market.consumer.wait_until_settled(job).await.unwrap();
    assert_eq!(&submit().await.unwrap(), first);
    let statement = market.consumer.get("/wallet").await.unwrap();
    let lines = statement["statement"]["rows"].as_array().unwrap().clone();
    assert_eq!(lines.iter().filter(|line| line["event"] == "JobSubmitted").count(), 1, "{lines:#?}");
    let other = json!({ "job": job, "template": "noop", "name": "another" });
    let (status, problem) = market.consumer.request(Method::POST, "/jobs", Some(&other)).await.unwrap();
    assert_eq!((status, &problem["title"]), (StatusCode::CONFLICT, &json!("IdReused")), "{problem}");
    // Two different ids in one request are refused.
    let header = market.consumer.build_request(Method::POST, "/api/v1/jobs").json(&body);
    let refused = header.header("idempotency-key", JobId::generate().to_string()).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn a_repeated_deposit_counts_once() {
    let market = MARKET.open().await.unwrap();
    let deposit = json!({ "deposit": CommandId::generate(), "amount_usd": "5" });
    let browser = market.consumer.browser_session();
    let answers = join_all((0..16).map(|_| browser.post("/wallet/deposits", &deposit))).await;
    let first = answers[0].as_ref().unwrap();
    assert!(answers.iter().all(|answer| answer.as_ref().unwrap() == first));
    let path = format!("/wallet?min_seq={}", first["seq"]);
    assert_eq!(market.consumer.get(&path).await.unwrap()["balance"]["available"], 105_000_000);
}

#[tokio::test]
async fn a_repeated_cancel_counts_once() {
    let market = MARKET.open().await.unwrap();
    let job = market.consumer.submit(&unplaceable(noop_job(), "1")).await.unwrap();
    let cancel = format!("/jobs/{job}/cancel");
    let nothing = json!({});
    let answers = join_all((0..8).map(|_| market.consumer.post(&cancel, &nothing))).await;
    let first: &Value = answers[0].as_ref().unwrap();
    assert!(answers.iter().all(|answer| answer.as_ref().unwrap() == first));
    assert_eq!(market.consumer.wait_until_settled(&job).await.unwrap()["cost"], 0);
}

/// Submits a job that holds $9. Repeats the request while it conflicts with another command of the account.
async fn submit_nine_dollar_job(market: &Market) -> StatusCode {
    let mut body = unplaceable(noop_job(), "9");
    body["job"] = json!(JobId::generate());
    for _ in 0..100 {
        let (status, problem) = market.consumer.request(Method::POST, "/jobs", Some(&body)).await.unwrap();
        if status != StatusCode::CONFLICT {
            return status;
        }
        assert_eq!(problem["title"], "Conflict", "{problem}");
    }
    panic!("the account stayed busy");
}

#[tokio::test]
async fn concurrent_submissions_hold_no_more_than_the_balance() {
    let market = MARKET.open().await.unwrap();
    // Eleven holds of $9 fit into $100. No machine takes the jobs, so no hold is released.
    let answers = join_all((0..24).map(|_| submit_nine_dollar_job(&market))).await;
    let count = |wanted: StatusCode| answers.iter().filter(|status| **status == wanted).count();
    assert_eq!((count(StatusCode::CREATED), count(StatusCode::PAYMENT_REQUIRED)), (11, 13), "{answers:?}");
    let wallet = market.consumer.get("/wallet").await.unwrap();
    assert_eq!((&wallet["balance"]["held"], &wallet["balance"]["available"]), (&json!(99_000_000), &json!(1_000_000)));
}

#[tokio::test]
async fn of_two_accounts_that_submit_the_same_id_at_once_one_gets_the_job_and_the_other_its_money() {
    let market = MARKET.open().await.unwrap();
    let other = ApiClient::sign_up(&market.url(), "other").await.unwrap();
    other.deposit("100").await.unwrap();
    for _ in 0..8 {
        let body = json!({ "job": JobId::generate(), "template": "noop", "budget_usd": "3" });
        let mut theirs = body.clone();
        theirs["name"] = json!("the other account's job");
        let submissions = tokio::join!(
            market.consumer.request(Method::POST, "/jobs", Some(&body)),
            other.request(Method::POST, "/jobs", Some(&theirs)),
        );
        let statuses = [submissions.0.unwrap().0, submissions.1.unwrap().0];
        let winner = statuses.iter().position(|status| *status == StatusCode::CREATED).unwrap();
        assert_eq!(statuses[1 - winner], StatusCode::CONFLICT, "only one account gets the job");
        let winner = [&market.consumer, &other][winner];
        let job = body["job"].as_str().unwrap();
        let settled = winner.wait_until_settled(job).await;
        settled.unwrap_or_else(|e| panic!("{e}\n{}", market.process_log("attic")));
        let trail = winner.get(&format!("/jobs/{job}/events")).await.unwrap();
        let submitted = trail["rows"].as_array().unwrap().iter().filter(|row| row["event"] == "JobSubmitted");
        assert_eq!(submitted.count(), 1, "the trail has the other account's submission: {trail}");
    }
    for account in [&market.consumer, &other] {
        wait_until("no money is held without a job", async || {
            account.get("/wallet").await.unwrap()["balance"]["held"] == 0
        })
        .await;
    }
    let invariants = market.run_operator_tool(&["audit", "--json"]).unwrap();
    assert!(invariants.status.success(), "{invariants:?}");
}
