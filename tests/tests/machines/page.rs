//! The page of the worker in its owner's browser: who may open it, and what its buttons do.

use std::{os::unix::process::CommandExt as _, process::Command, time::Duration};

use gpubnb_tests::{
    jobs::{counting_job, noop_job, pin_to_machine, wait_until_running},
    market::Market,
    shared::{Plan, SharedMarket},
    wait::wait_until,
};
use reqwest::{Client, Response, StatusCode};

static MARKET: SharedMarket = SharedMarket::new(Plan::default);

/// The user `nobody`.
const NOBODY: u32 = 65_534;

/// A new link to the page.
fn link(market: &Market, worker: &str) -> String {
    let (ok, text) = market.run_worker_command(worker, &["open", "--print"]).unwrap();
    assert!(ok, "{text}");
    text.lines().find(|line| line.starts_with("http://127.0.0.1:")).unwrap().to_owned()
}

/// Waits until the worker gives out a link, and opens the page. Returns its address and its text.
async fn open(market: &Market, worker: &str) -> (String, String) {
    wait_until("the worker answers", async || market.run_worker_command(worker, &["status"]).unwrap().0).await;
    let response = Client::new().get(link(market, worker)).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let policy = response.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
    (response.url().to_string(), response.text().await.unwrap())
}

/// Presses a button of the page: `kind` is the pause's kind; `None` is the button that ends a pause.
async fn press(page: &str, kind: Option<&[(&str, &str)]>) -> Response {
    let verb = if kind.is_some() { "pause" } else { "resume" };
    let request = Client::new().post(format!("{page}{verb}")).form(kind.unwrap_or_default());
    request.send().await.unwrap()
}

#[tokio::test]
async fn the_owner_takes_a_machine_back_on_its_page_and_its_job_runs_elsewhere() {
    let market = MARKET.open().await.unwrap();
    let _worker = market.start_scoped_worker("owned", &[]).await.unwrap();
    let machine = market.machine_id("owned").unwrap();
    let job = market.consumer.submit(&pin_to_machine(noop_job(), &machine)).await.unwrap();
    let settled = market.consumer.wait_until_settled(&job).await.unwrap();
    assert_eq!(settled["state"], "Completed");
    let (page, html) = open(&market, "owned").await;
    assert!(html.contains("This machine takes jobs; no job runs now."), "{html}");
    assert!(html.contains("Earned on each of the last 31 days") && html.contains("from 1 jobs"), "{html}");

    let running = market.consumer.submit(&pin_to_machine(counting_job(600, 50), &machine)).await.unwrap();
    wait_until_running(&market.consumer, &running).await;
    let back = press(&page, Some(&[("kind", "take_back")])).await.text().await.unwrap();
    assert!(back.contains("owner took it back"), "{back}");
    let requeued = |view: &serde_json::Value| view["state"] == "Queued" && view["reason"]["name"] == "Preempted";
    market.consumer.wait_for(&running, Duration::from_secs(60), requeued).await.unwrap();
    market.wait_for_machine("owned", |m| m["away"] == true).await.unwrap();

    let resumed = press(&page, None).await.text().await.unwrap();
    assert!(resumed.contains("Take it back now") && !resumed.contains("Take jobs again"), "{resumed}");
    wait_until_running(&market.consumer, &running).await;
    market.consumer.post(&format!("/jobs/{running}/cancel"), &serde_json::json!({})).await.unwrap();
}

#[tokio::test]
async fn the_page_opens_once_for_one_user_and_for_no_other_page() {
    let market = MARKET.open().await.unwrap();
    let _worker = market.start_scoped_worker("private", &[]).await.unwrap();
    let (page, _) = open(&market, "private").await;
    let get = async |url: &str| Client::new().get(url).send().await.unwrap().status();
    assert_eq!(get(&page).await, StatusCode::OK);

    // A new link ends the page of the former one, and works once.
    let second = link(&market, "private");
    assert_eq!(get(&page).await, StatusCode::FORBIDDEN);
    let opened = Client::new().get(&second).send().await.unwrap();
    assert_eq!(opened.status(), StatusCode::OK);
    let page = opened.url().to_string();
    assert_eq!(get(&second).await, StatusCode::FORBIDDEN);

    // A page from elsewhere that reaches the port under another name, or sends a form.
    let foreign = Client::new().get(&page).header("host", "evil.example").send().await.unwrap();
    assert_eq!(foreign.status(), StatusCode::FORBIDDEN);
    let origin = url::Url::parse(&page).unwrap().origin().ascii_serialization();
    let form = Client::new().post(format!("{page}pause")).form(&[("kind", "take_back")]);
    let forged = form.header("origin", "http://127.0.0.1:1").send().await.unwrap();
    assert_eq!(forged.status(), StatusCode::FORBIDDEN);
    assert_eq!(get(&format!("{origin}/")).await, StatusCode::FORBIDDEN);
    assert_eq!(get(&format!("{origin}/guessed/now")).await, StatusCode::FORBIDDEN);

    // Another user of this computer gets no answer, even with the address.
    if rustix::process::getuid().is_root() {
        let curl = |uid: u32| Command::new("curl").args(["--silent", "--show-error", &page]).uid(uid).output().unwrap();
        assert!(curl(0).status.success(), "the owner is answered");
        let refused = curl(NOBODY);
        assert!(!refused.status.success() && refused.stdout.is_empty(), "{refused:?}");
    }

    let bad = press(&page, Some(&[("kind", "until"), ("until", "25:00")])).await;
    assert!(bad.text().await.unwrap().contains("Write the time like 18:00."));
    let paused = press(&page, Some(&[("kind", "until"), ("until", "23:59")])).await.text().await.unwrap();
    assert!(paused.contains("its owner paused it until 23:59"), "{paused}");
    assert!(market.run_worker_command("private", &["resume"]).unwrap().0);
    market.wait_for_machine("private", |m| m["away"] == false).await.unwrap();
}
