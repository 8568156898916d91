//! Live pages: one that was cut off, or hidden, takes up what it missed.

use gpubnb_tests::{
    browser::Browser,
    shared::{Plan, Shared},
    system::{Options, System},
};
use serde_json::json;

static MARKET: Shared = Shared::new(Plan::default);

#[tokio::test]
async fn a_page_says_that_it_is_cut_off_and_takes_up_what_it_missed() {
    let mut system = System::start(Options::default()).await.unwrap();
    let browser = Browser::open(&system).await;
    browser.sign_in(&system, &system.web).await;
    browser.visit(&system, "/wallet").await;
    browser.says("#sums", "$100.00").await;
    system.ui = None;
    browser.wait_for("#offline:not([hidden])").await;
    system.start_ui().await.unwrap();
    system.web.deposit("7").await.unwrap();
    browser.says("#sums", "$107.00").await;
    browser.wait_for("#offline[hidden]").await;
    browser.close().await;
}

/// Tells the page that its tab is hidden, or seen again: a browser that a test drives never hides a tab.
async fn hide(browser: &Browser, hidden: bool) {
    let script = "Object.defineProperty(document, 'hidden', { value: arguments[0], configurable: true });
                  document.dispatchEvent(new Event('visibilitychange'));";
    browser.client.execute(script, vec![json!(hidden)]).await.unwrap();
}

#[tokio::test]
async fn a_hidden_tab_lets_go_of_its_connection_and_takes_up_what_it_missed() {
    let market = MARKET.open().await.unwrap();
    let browser = Browser::open(&market).await;
    browser.sign_in(&market, &market.web).await;
    browser.visit(&market, "/wallet").await;
    browser.says("#sums", "$100.00").await;
    // The page holds one stream of the server open.
    browser.until("return source !== null && source.readyState === EventSource.OPEN").await;
    hide(&browser, true).await;
    browser.until("return source === null").await;
    market.web.deposit("7").await.unwrap();
    assert!(browser.text("#sums").await.contains("$100.00"), "nobody tells a hidden tab");
    hide(&browser, false).await;
    browser.says("#sums", "$107.00").await;
    browser.close().await;
}
