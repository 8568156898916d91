//! A live page gets the changes that it missed while it was disconnected or hidden.

use gpubnb_tests::{
    browser::Browser,
    shared::{Plan, SharedMarket},
    system::{MarketSettings, System},
};
use serde_json::json;

static MARKET: SharedMarket = SharedMarket::new(Plan::default);

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
