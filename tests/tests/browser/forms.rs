//! Forms: a refused form keeps its text, a job gets input files, and a job is run again.

use std::fs;

use fantoccini::Locator;
use gpubnb_tests::{
    browser::{Browser, console_errors},
    market::Market,
    shared::{Plan, SharedMarket},
};
use serde_json::{Value, json};

static MARKET: SharedMarket =
    SharedMarket::new(|| Plan::default().with_worker("attic", &["--price", "0.1", "--slots", "2"]));

#[tokio::test]
async fn a_refused_form_keeps_its_text_and_shows_the_error_at_the_field() {
    let market = MARKET.open().await.unwrap();
    let browser = Browser::open(&market).await;
    browser.sign_in(&market, &market.consumer).await;
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

/// The job whose page the browser shows, read through the API.
async fn job_on_page(browser: &Browser, market: &Market) -> Value {
    let page = browser.client.current_url().await.unwrap();
    market.consumer.get(&format!("/jobs/{}", page.path().rsplit('/').next().unwrap())).await.unwrap()
}

#[tokio::test]
async fn a_job_gets_input_files_and_is_run_again_under_another_name() {
    let market = MARKET.open().await.unwrap();
    let browser = Browser::open(&market).await;
    browser.sign_in(&market, &market.consumer).await;
    browser.client.goto(&format!("{}/jobs/new?template=noop", market.url())).await.unwrap();
    let files = ["measured.csv", "<img src=x>.txt"].map(|name| market.path().join(name));
    for file in &files {
        fs::write(file, "1,2,3\n").unwrap();
        browser.client.find(Locator::Css("#files")).await.unwrap().send_keys(file.to_str().unwrap()).await.unwrap();
    }
    browser.wait_for("#given li:nth-child(2) input[name=input]").await;
    assert!(browser.text("#given").await.contains("<img src=x>.txt"), "the name of a file is escaped");
    browser.set_window_size(1280, 1300).await;
    browser.save_screenshot("new-job-files").await;
    browser.click("select[name=strategy] option[value=most_reliable]").await;
    // The second file is removed again.
    browser.click("#given li:nth-child(2) button").await;
    browser.client.find(Locator::Css("input[name=name]")).await.unwrap().send_keys("With a file").await.unwrap();
    browser.click(".submit button.primary").await;
    browser.wait_for("#state[data-state=Settled]").await;
    let first = job_on_page(&browser, &market).await;
    let inputs = first["spec"]["inputs"].as_array().unwrap();
    assert_eq!((inputs.len(), &inputs[0]["path"], &inputs[0]["bytes"]), (1, &json!("measured.csv"), &json!(6)));

    browser.click_live(".head .actions .button").await;
    browser.wait_for("#given li input[name=input]").await;
    let name = browser.client.find(Locator::Css("input[name=name]")).await.unwrap();
    assert_eq!(name.prop("value").await.unwrap().as_deref(), Some("With a file"));
    name.send_keys(", again").await.unwrap();
    browser.click(".submit button.primary").await;
    browser.wait_for("#state[data-state=Settled]").await;
    let second = job_on_page(&browser, &market).await;
    assert_ne!(second["job"], first["job"]);
    assert_eq!(second["spec"]["name"], "With a file, again");
    for field in ["inputs", "resources", "command", "image"] {
        assert_eq!(second["spec"][field], first["spec"][field], "{field}");
    }
    assert_eq!(first["placement"]["by"], "most_reliable");
    assert_eq!((&second["limits"], &second["placement"]), (&first["limits"], &first["placement"]));
    // The statement of the account, as a CSV file, lists both jobs.
    let (_, csv) = market.consumer.browser_session().bytes("/wallet/statement.csv").await.unwrap();
    let csv = String::from_utf8(csv).unwrap();
    assert!(csv.starts_with("seq,time,event,job,available,held,balance\n"), "{csv}");
    for job in [&first, &second] {
        assert!(csv.contains(&format!(",Settled,{},", job["job"].as_str().unwrap())), "{csv}");
    }
    assert_eq!(console_errors(&browser.client).await, Vec::<Value>::new());
    browser.close().await;
}

#[tokio::test]
async fn console_errors_finds_an_error_in_the_browsers_console() {
    let market = MARKET.open().await.unwrap();
    let browser = Browser::open(&market).await;
    browser.visit(&market, "/").await;
    browser.client.execute("console.error('seen')", vec![]).await.unwrap();
    assert_eq!(console_errors(&browser.client).await.len(), 1);
    browser.close().await;
}
