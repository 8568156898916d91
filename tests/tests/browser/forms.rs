//! Forms: the text that was typed is kept, files are given to a job, and a job is run again.

use std::fs;

use fantoccini::Locator;
use gpubnb_tests::{
    browser::{Browser, console},
    market::Market,
    shared::{Plan, Shared},
};
use serde_json::{Value, json};

static MARKET: Shared = Shared::new(|| Plan::default().worker("attic", &["--price", "0.1", "--slots", "2"]));

#[tokio::test]
async fn what_was_typed_is_kept_and_the_error_stands_at_its_field() {
    let market = MARKET.open().await.unwrap();
    let browser = Browser::open(&market).await;
    browser.sign_in(&market, &market.web).await;
    browser.client.goto(&format!("{}/jobs/new?template=train", market.url())).await.unwrap();
    browser.fill("input[name=name]", "My <b>digits</b>").await;
    browser.fill("input[name='parameter.epochs']", "0").await;
    browser.click(".submit button.primary").await;
    browser.wait_for("label .error").await;
    assert!(browser.text("label .error").await.contains("Epochs must be"));
    let name = browser.client.find(Locator::Css("input[name=name]")).await.unwrap();
    assert_eq!(name.prop("value").await.unwrap().as_deref(), Some("My <b>digits</b>"));
    browser.close().await;
}

/// The job whose page the browser shows.
async fn shown(browser: &Browser, market: &Market) -> Value {
    let page = browser.client.current_url().await.unwrap();
    market.web.get(&format!("/jobs/{}", page.path().rsplit('/').next().unwrap())).await.unwrap()
}

#[tokio::test]
async fn a_job_is_given_files_and_run_again_with_something_changed() {
    let market = MARKET.open().await.unwrap();
    let browser = Browser::open(&market).await;
    browser.sign_in(&market, &market.web).await;
    browser.client.goto(&format!("{}/jobs/new?template=noop", market.url())).await.unwrap();
    let files = ["measured.csv", "<img src=x>.txt"].map(|name| market.path().join(name));
    for file in &files {
        fs::write(file, "1,2,3\n").unwrap();
        browser.client.find(Locator::Css("#files")).await.unwrap().send_keys(file.to_str().unwrap()).await.unwrap();
    }
    browser.wait_for("#given li:nth-child(2) input[name=input]").await;
    assert!(browser.text("#given").await.contains("<img src=x>.txt"), "a name is text");
    browser.size(1280, 1300).await;
    browser.picture("new-job-files").await;
    browser.click("select[name=strategy] option[value=most_reliable]").await;
    // One of the files was a mistake.
    browser.click("#given li:nth-child(2) button").await;
    browser.client.find(Locator::Css("input[name=name]")).await.unwrap().send_keys("With a file").await.unwrap();
    browser.click(".submit button.primary").await;
    browser.wait_for("#state[data-state=Settled]").await;
    let first = shown(&browser, &market).await;
    let inputs = first["spec"]["inputs"].as_array().unwrap();
    assert_eq!((inputs.len(), &inputs[0]["path"], &inputs[0]["bytes"]), (1, &json!("measured.csv"), &json!(6)));

    browser.click_live(".head .actions .button").await;
    browser.wait_for("#given li input[name=input]").await;
    let name = browser.client.find(Locator::Css("input[name=name]")).await.unwrap();
    assert_eq!(name.prop("value").await.unwrap().as_deref(), Some("With a file"));
    name.send_keys(", again").await.unwrap();
    browser.click(".submit button.primary").await;
    browser.wait_for("#state[data-state=Settled]").await;
    let second = shown(&browser, &market).await;
    assert_ne!(second["job"], first["job"]);
    assert_eq!(second["spec"]["name"], "With a file, again");
    for same in ["inputs", "resources", "command", "image"] {
        assert_eq!(second["spec"][same], first["spec"][same], "{same}");
    }
    assert_eq!(first["placement"]["by"], "most_reliable");
    assert_eq!((&second["limits"], &second["placement"]), (&first["limits"], &first["placement"]));
    // Both jobs are on the statement, which a spreadsheet can read.
    let (_, csv) = market.web.at_browser().bytes("/wallet/statement.csv").await.unwrap();
    let csv = String::from_utf8(csv).unwrap();
    assert!(csv.starts_with("seq,time,event,job,available,held,balance\n"), "{csv}");
    for job in [&first, &second] {
        assert!(csv.contains(&format!(",Settled,{},", job["job"].as_str().unwrap())), "{csv}");
    }
    assert_eq!(console(&browser.client).await, Vec::<Value>::new());
    browser.close().await;
}

#[tokio::test]
async fn an_error_in_the_console_is_seen() {
    let market = MARKET.open().await.unwrap();
    let browser = Browser::open(&market).await;
    browser.visit(&market, "/").await;
    browser.client.execute("console.error('seen')", vec![]).await.unwrap();
    assert_eq!(console(&browser.client).await.len(), 1);
    browser.close().await;
}
