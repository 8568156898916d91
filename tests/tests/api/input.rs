//! Bad input is refused with a named error, a readable reason and the wrong field, and adds no event to the log.

use gpubnb_events::subject;
use gpubnb_log::Log;
use gpubnb_runtime::nats::jetstream;
use gpubnb_tests::{
    shared::{Plan, SharedMarket},
    system::{MarketSettings, System},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

static MARKET: SharedMarket = SharedMarket::new(Plan::default);

#[tokio::test]
async fn each_bad_submission_is_refused_with_its_field_and_appends_no_event() {
    // The test has its own market, so that nobody else appends to the log.
    let system = System::start(MarketSettings::default()).await.unwrap();
    let client = system.nats_args("services").connect("append", subject::SERVICES_INBOX).await.unwrap();
    let log = Log::open(jetstream(client)).await.unwrap();
    let before = log.last_seq().await.unwrap();
    let noop = |field: &str, value: Value| {
        let mut body = json!({ "template": "noop", "budget_usd": "1" });
        body[field] = value;
        body
    };
    let train = json!({ "template": "train", "budget_usd": "1", "parameters": { "epochs": "0" } });
    let unknown = json!({ "template": "noop", "budget_usd": "1", "parameters": { "x": "0" } });
    let cases = [
        (json!({}), 422, Some("image")),
        (noop("template", json!("nope")), 422, Some("template")),
        (noop("name", json!("a\nb")), 422, Some("name")),
        (noop("budget_usd", json!("-1")), 422, Some("budget")),
        (noop("budget_usd", json!("1e9")), 422, Some("budget")),
        (noop("budget_usd", json!("500")), 402, Some("budget")),
        (noop("time_seconds", json!(0)), 422, Some("time")),
        (noop("memory_mib", json!(1)), 422, Some("memory")),
        (noop("job", json!("01900000-0000-7000-8000-000000000001")), 422, Some("job")),
        (noop("machine", json!("x")), 400, None),
        (noop("surprise", json!(1)), 400, None),
        (json!({ "image": "127.0.0.1:5000/tool:1", "budget_usd": "1" }), 422, Some("image")),
        (json!({ "template": "noop" }), 422, Some("budget")),
        (train, 422, Some("epochs")),
        (unknown, 422, Some("parameters")),
        (json!([1]), 400, None),
    ];
    for (body, status, field) in cases {
        let (answer, problem) = system.consumer.request(Method::POST, "/jobs", Some(&body)).await.unwrap();
        assert_eq!(answer.as_u16(), status, "{body} {problem}");
        assert_eq!(problem["field"].as_str(), field, "{body} {problem}");
        assert!(problem["detail"].as_str().is_some_and(|d| d.len() > 10), "{body} {problem}");
    }
    assert_eq!(log.last_seq().await.unwrap(), before);
}

#[tokio::test]
async fn unknown_ids_and_paths_are_client_errors() {
    let market = MARKET.open().await.unwrap();
    let id = "01900000-0000-7000-8000-00000000dead";
    for path in ["", "/events", "/logs", "/receipt", "/artifacts", "/artifacts/x"] {
        let (status, problem) = market.consumer.request(Method::GET, &format!("/jobs/{id}{path}"), None).await.unwrap();
        assert_eq!((status, &problem["title"]), (StatusCode::NOT_FOUND, &json!("NotFound")), "{path} {problem}");
    }
    let (status, _) =
        market.consumer.request(Method::POST, &format!("/jobs/{id}/cancel"), Some(&json!({}))).await.unwrap();
    assert_eq!(status, StatusCode::NOT_FOUND);
    for path in ["/jobs/x", "/machines/%00", "/nothing", "/jobs/..%2f..", "/machines/*"] {
        let (status, problem) = market.consumer.request(Method::GET, path, None).await.unwrap();
        assert!(status.is_client_error() && problem["title"].is_string(), "{path} {status} {problem}");
    }
    for page in ["/jobs/x", "/nothing", "/machines/x", &format!("/jobs/{id}")] {
        let (status, html) = market.consumer.bytes(page).await.unwrap();
        assert!(status.is_client_error(), "{page} {status}");
        assert!(String::from_utf8_lossy(&html).contains("Something's not right"), "{page}");
    }
}

#[tokio::test]
async fn requests_from_another_site_are_forbidden() {
    let market = MARKET.open().await.unwrap();
    let browser = market.consumer.browser_session();
    let body = json!({ "template": "noop", "budget_usd": "1" });
    let post = || browser.build_request(Method::POST, "/api/v1/jobs").json(&body);
    for request in [
        post().header("origin", "https://elsewhere.example"),
        post().header("sec-fetch-site", "cross-site"),
        post().header("origin", "null"),
    ] {
        assert_eq!(request.send().await.unwrap().status(), StatusCode::FORBIDDEN);
    }
    let own = post().header("origin", market.url()).header("sec-fetch-site", "same-origin");
    assert_eq!(own.send().await.unwrap().status(), StatusCode::CREATED);
    let page = reqwest::Client::new().get(market.url()).send().await.unwrap();
    let policy = page.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
}
