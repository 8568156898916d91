//! A live page gets the changes that it missed while it was disconnected or hidden.

use gpubnb_tests::{
    api_client::ApiClient,
    browser::Browser,
    jobs::{noop_job, unplaceable},
    shared::{Plan, SharedMarket},
    system::{MarketSettings, System},
};
use reqwest::Method;
use serde_json::{Value, json};

static MARKET: SharedMarket = SharedMarket::new(|| {
    let services = ["--approve-image", "gpubnb/hostile:1"].map(str::to_owned).into();
    Plan::with_settings(MarketSettings { services, ..MarketSettings::default() })
        .with_worker("attic", &["--slots", "2"])
});

#[tokio::test]
async fn a_disconnected_page_says_so_and_gets_the_missed_changes_afterwards() {
    let mut system = System::start(MarketSettings::default()).await.unwrap();
    let browser = Browser::open(&system).await;
    browser.sign_in(&system, &system.consumer).await;
    browser.visit(&system, "/wallet").await;
    browser.wait_for_text("#sums", "$100.00").await;
    system.ui = None;
    browser.wait_for("#offline:not([hidden])").await;
    system.start_ui().await.unwrap();
    system.consumer.deposit("7").await.unwrap();
    browser.wait_for_text("#sums", "$107.00").await;
    browser.wait_for("#offline[hidden]").await;
    browser.close().await;
}

/// Makes the page believe that its tab is hidden or visible. A driven browser never hides a tab itself.
async fn set_hidden(browser: &Browser, is_hidden: bool) {
    let script = "Object.defineProperty(document, 'hidden', { value: arguments[0], configurable: true });
                  document.dispatchEvent(new Event('visibilitychange'));";
    browser.client.execute(script, vec![json!(is_hidden)]).await.unwrap();
}

#[tokio::test]
async fn a_hidden_tab_closes_its_connection_and_gets_the_missed_changes_afterwards() {
    let market = MARKET.open().await.unwrap();
    let browser = Browser::open(&market).await;
    browser.sign_in(&market, &market.consumer).await;
    browser.visit(&market, "/wallet").await;
    browser.wait_for_text("#sums", "$100.00").await;
    // The page has one open event stream from the server.
    browser.wait_until_true("return source !== null && source.readyState === EventSource.OPEN").await;
    set_hidden(&browser, true).await;
    browser.wait_until_true("return source === null").await;
    market.consumer.deposit("7").await.unwrap();
    assert!(browser.text("#sums").await.contains("$100.00"), "a hidden tab gets no changes");
    set_hidden(&browser, false).await;
    browser.wait_for_text("#sums", "$107.00").await;
    browser.close().await;
}

#[tokio::test]
async fn a_hidden_tab_tells_of_the_end_of_a_job_if_somebody_asked_for_it() {
    let market = MARKET.open().await.unwrap();
    let consumer = market.new_consumer().await.unwrap();
    let job = consumer.submit(&unplaceable(noop_job(), "0.10")).await.unwrap();
    let browser = Browser::open(&market).await;
    browser.sign_in(&market, &consumer).await;
    browser.visit(&market, &format!("/jobs/{job}")).await;
    // The notification itself belongs to the system of the person, which a driven browser does not have.
    let stand_in = "window.told = [];
                    window.Notification = class { constructor(text) { told.push(text); } };
                    Notification.permission = 'default';
                    Notification.requestPermission = async () => 'granted';";
    browser.client.execute(stand_in, Vec::new()).await.unwrap();
    browser.click("#notify:not([hidden])").await;
    browser.wait_for("#notify:disabled").await;
    set_hidden(&browser, true).await;
    // The connection of another hidden tab would be closed soon.
    browser.wait_until_true("return hiddenTimer === null").await;
    consumer.post(&format!("/jobs/{job}/cancel"), &json!({})).await.unwrap();
    browser.wait_until_true("return told.length === 1 && told[0].startsWith('Cancelled')").await;
    browser.wait_until_true("return document.title.startsWith('Cancelled')").await;
    browser.close().await;
}

/// Reads a job's stream of output until an event `unfinished` for which `is_wanted` returns true.
async fn wait_for_unfinished(client: &ApiClient, job: &str, is_wanted: impl Fn(&Value) -> bool) -> Value {
    let request = client.build_request(Method::GET, &format!("/api/v1/jobs/{job}/logs/stream"));
    let mut answer = request.send().await.unwrap().error_for_status().unwrap();
    let mut text = String::new();
    while let Some(chunk) = answer.chunk().await.unwrap() {
        text += &String::from_utf8_lossy(&chunk);
        while let Some((event, rest)) = text.split_once("\n\n") {
            let lines = event.strip_prefix("event: unfinished\ndata: ").map(|data| serde_json::from_str(data).unwrap());
            text = rest.to_owned();
            if let Some(lines) = lines.filter(&is_wanted) {
                return lines;
            }
        }
    }
    panic!("the stream ended")
}

/// The number of the step that a progress bar shows.
fn step(bar: &str) -> Option<u32> {
    bar.trim().strip_prefix("step ")?.parse().ok()
}

#[tokio::test]
async fn an_unfinished_line_and_a_progress_bar_are_seen_while_the_job_writes_them() {
    let market = MARKET.open().await.unwrap();
    let body = json!({ "image": "gpubnb/hostile:1", "command": ["unfinished"], "name": "bar", "time_seconds": 120,
        "budget_usd": "0.50", "max_attempts": 1 });
    let job = market.consumer.submit(&body).await.unwrap();
    let is_drawn =
        |lines: &Value| lines["stdout"] == "loading... " && step(lines["stderr"].as_str().unwrap()).is_some();
    let first = wait_for_unfinished(&market.consumer, &job, is_drawn).await;
    // A second reader, who came later, sees a later step.
    let is_later = |lines: &Value| step(lines["stderr"].as_str().unwrap()) > step(first["stderr"].as_str().unwrap());
    wait_for_unfinished(&market.consumer, &job, is_later).await;

    let browser = Browser::open(&market).await;
    browser.set_window_size(1_280, 1_100).await;
    browser.sign_in(&market, &market.consumer).await;
    browser.visit(&market, &format!("/jobs/{job}")).await;
    browser.wait_for_text("#log", "whole line").await;
    browser.wait_for_text("#log-unfinished", "loading...").await;
    let shown = browser.text("#log-unfinished .err").await;
    browser
        .wait_until_true(&format!(
            "return document.querySelector('#log-unfinished .err').textContent.trim() !== '{shown}'"
        ))
        .await;
    browser.save_screenshot("job-unfinished").await;
    browser.assert_sound("a job with an unfinished line").await;
    // When the job has ended, the lines stand in the log, and nothing is unfinished.
    market.consumer.post(&format!("/jobs/{job}/cancel"), &json!({})).await.unwrap();
    browser.wait_for_text("#log", "loading...").await;
    browser.wait_for("#log-unfinished:empty").await;
    market.consumer.wait_until_settled(&job).await.unwrap();
    browser.close().await;
}
