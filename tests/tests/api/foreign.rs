//! A person cannot see or change the things of another person. Such things look as if they did not exist.

use gpubnb_tests::{
    api_client::ApiClient,
    market::Market,
    shared::{Plan, SharedMarket},
    wait::wait_until,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::access::send;

static MARKET: SharedMarket = SharedMarket::new(|| Plan::default().with_worker("attic", &[]));

/// Runs a job of the consumer that leaves the file `render.png`.
async fn run_picture_job(market: &Market) -> String {
    let picture = json!({ "width": "160", "height": "90", "samples": "1" });
    let job = market.consumer.submit(&json!({ "template": "render", "parameters": picture })).await.unwrap();
    market.consumer.wait_until_settled(&job).await.unwrap();
    job
}

/// Checks that the owner can read an address, and that for another person it does not exist.
async fn assert_only_owner_reads(owner: &ApiClient, foreign: &ApiClient, address: &str) {
    let seen = send(owner, &Method::GET, address).await;
    assert_eq!(seen.status, StatusCode::OK, "{address}: {}", seen.text);
    let hidden = send(foreign, &Method::GET, address).await;
    assert_eq!(hidden.status, StatusCode::NOT_FOUND, "{address}: {}", hidden.text);
}

#[tokio::test]
async fn only_the_owner_reads_a_job_its_log_and_its_files() {
    let market = MARKET.open().await.unwrap();
    let another = market.new_consumer().await.unwrap();
    let job = run_picture_job(&market).await;
    let lease = market.consumer.get(&format!("/jobs/{job}")).await.unwrap()["attempts"][0]["lease"].to_string();
    for part in [
        "",
        "/events",
        "/events/stream",
        "/logs",
        "/logs/stream",
        "/manifest",
        "/receipt",
        "/artifacts",
        "/artifacts/render.png",
    ] {
        assert_only_owner_reads(&market.consumer, &another, &format!("/api/v1/jobs/{job}{part}")).await;
    }
    for part in [
        "",
        "/live",
        "/log.txt",
        &format!("/log/part?lease={lease}&from=0"),
        "/log/search?text=render",
        "/metrics.json",
        "/trail.jsonl",
        "/artifacts.tar",
        "/artifacts/render.png",
    ] {
        assert_only_owner_reads(
            &market.consumer.browser_session(),
            &another.browser_session(),
            &format!("/jobs/{job}{part}"),
        )
        .await;
    }
}

#[tokio::test]
async fn nobody_can_cancel_share_or_revoke_the_things_of_another() {
    let market = MARKET.open().await.unwrap();
    let another = market.new_consumer().await.unwrap();
    let job = run_picture_job(&market).await;
    let assert_refused = async |who: &ApiClient, method: Method, path: String, body| {
        let (status, problem) = who.request(method, &path, Some(&body)).await.unwrap();
        assert!([StatusCode::NOT_FOUND, StatusCode::FORBIDDEN].contains(&status), "{path}: {status} {problem}");
        status
    };
    let hidden = StatusCode::NOT_FOUND;
    assert_eq!(assert_refused(&another, Method::POST, format!("/jobs/{job}/cancel"), json!({})).await, hidden);
    let file = json!({ "path": "render.png" });
    assert_eq!(assert_refused(&another, Method::POST, format!("/jobs/{job}/links"), file).await, hidden);
    let token = market.consumer.browser_session().get("/tokens").await.unwrap()[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(
        assert_refused(&another.browser_session(), Method::DELETE, format!("/tokens/{token}"), json!({})).await,
        hidden
    );
    let machine = market.machine_id("attic").unwrap();
    // Everybody sees a machine, so the refusal need not hide it.
    let status = assert_refused(&another, Method::POST, format!("/machines/{machine}/wish"), json!("pause")).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let credential = format!("/machines/{machine}/credential");
    assert_eq!(assert_refused(&another, Method::DELETE, credential, json!({})).await, hidden);
}

#[tokio::test]
async fn a_shared_link_gives_anybody_one_file_and_nothing_else() {
    let market = MARKET.open().await.unwrap();
    let job = run_picture_job(&market).await;
    let link = market.consumer.post(&format!("/jobs/{job}/links"), &json!({ "path": "render.png" })).await.unwrap();
    let path = link["path"].as_str().unwrap();
    let (status, picture) = market.consumer.stranger().bytes(path).await.unwrap();
    assert!(status.is_success() && picture.starts_with(b"\x89PNG"));
    // The link is a signed permit, which begins with its purpose. With another purpose, the signature is not valid.
    let (status, _) = market.consumer.stranger().bytes(&path.replacen("artifact", "upload", 1)).await.unwrap();
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    let part = market.consumer.build_request(Method::GET, path).header("range", "bytes=1-3").send().await.unwrap();
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.bytes().await.unwrap().as_ref(), b"PNG");
    // The link ends with the account.
    let suspension = format!("/ops/accounts/{}/suspension", market.consumer.account);
    let suspend = async |reason: &Value| {
        market.operator().unwrap().post(&suspension, &json!({ "reason": reason })).await.unwrap();
    };
    let is_answered = async |expected| market.consumer.stranger().bytes(path).await.unwrap().0 == expected;
    suspend(&json!("spam")).await;
    wait_until("the end of the link", async || is_answered(StatusCode::UNAUTHORIZED).await).await;
    suspend(&Value::Null).await;
    wait_until("the link", async || is_answered(StatusCode::OK).await).await;
}
