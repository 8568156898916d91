//! Things that belong to another look as if they were not there.

use gpubnb_tests::{
    market::Market,
    shared::{Plan, Shared},
    web::Web,
};
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::access::tried;

static MARKET: Shared = Shared::new(|| Plan::default().worker("attic", &[]));

/// The consumer's job, settled, with a picture that it left.
async fn job_with_picture(market: &Market) -> String {
    let picture = json!({ "width": "160", "height": "90", "samples": "1" });
    let job = market.web.submit(&json!({ "template": "render", "parameters": picture })).await.unwrap();
    market.web.settled(&job).await.unwrap();
    job
}

/// Reads an address as the owner of a job, and as another person.
async fn own_and_foreign(own: &Web, foreign: &Web, address: &str) {
    let seen = tried(own, &Method::GET, address).await;
    assert_eq!(seen.status, StatusCode::OK, "{address}: {}", seen.text);
    let hidden = tried(foreign, &Method::GET, address).await;
    assert_eq!(hidden.status, StatusCode::NOT_FOUND, "{address}: {}", hidden.text);
}

#[tokio::test]
async fn a_job_and_all_that_it_said_and_left_is_for_its_owner_alone() {
    let market = MARKET.open().await.unwrap();
    let another = market.newcomer().await.unwrap();
    let job = job_with_picture(&market).await;
    let lease = market.web.get(&format!("/jobs/{job}")).await.unwrap()["attempts"][0]["lease"].to_string();
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
        own_and_foreign(&market.web, &another, &format!("/api/v1/jobs/{job}{part}")).await;
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
        own_and_foreign(&market.web.at_browser(), &another.at_browser(), &format!("/jobs/{job}{part}")).await;
    }
}

#[tokio::test]
async fn nobody_cancels_shares_or_ends_what_is_anothers() {
    let market = MARKET.open().await.unwrap();
    let another = market.newcomer().await.unwrap();
    let job = job_with_picture(&market).await;
    let refused = async |who: &Web, method: Method, path: String, body| {
        let (status, problem) = who.request(method, &path, Some(&body)).await.unwrap();
        assert!([StatusCode::NOT_FOUND, StatusCode::FORBIDDEN].contains(&status), "{path}: {status} {problem}");
        status
    };
    let hidden = StatusCode::NOT_FOUND;
    assert_eq!(refused(&another, Method::POST, format!("/jobs/{job}/cancel"), json!({})).await, hidden);
    let file = json!({ "path": "render.png" });
    assert_eq!(refused(&another, Method::POST, format!("/jobs/{job}/links"), file).await, hidden);
    let token = market.web.at_browser().get("/tokens").await.unwrap()[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(refused(&another.at_browser(), Method::DELETE, format!("/tokens/{token}"), json!({})).await, hidden);
    let machine = market.machine("attic").unwrap();
    // Everybody sees a machine: that somebody may not change the machine is no secret.
    let wish = refused(&another, Method::POST, format!("/machines/{machine}/wish"), json!("pause")).await;
    assert_eq!(wish, StatusCode::FORBIDDEN);
    let credential = format!("/machines/{machine}/credential");
    assert_eq!(refused(&another, Method::DELETE, credential, json!({})).await, hidden);
}

#[tokio::test]
async fn a_link_is_for_whoever_has_the_link_and_for_one_file() {
    let market = MARKET.open().await.unwrap();
    let job = job_with_picture(&market).await;
    let link = market.web.post(&format!("/jobs/{job}/links"), &json!({ "path": "render.png" })).await.unwrap();
    let path = link["path"].as_str().unwrap();
    let (status, picture) = market.web.stranger().bytes(path).await.unwrap();
    assert!(status.is_success() && picture.starts_with(b"\x89PNG"));
    let (status, _) = market.web.stranger().bytes(&path.replacen("artifact", "upload", 1)).await.unwrap();
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    let part = market.web.ask(Method::GET, path).header("range", "bytes=1-3").send().await.unwrap();
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.bytes().await.unwrap().as_ref(), b"PNG");
}
