//! A person's way through the pages, in real Chromium: from the market to a settled job, and what they look like.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use fantoccini::Locator;
use gpubnb_tests::{
    browser::{Browser, console},
    system::{Options, System},
};
use serde_json::{Value, json};

#[tokio::test]
async fn a_person_runs_a_job_from_the_market_page_and_sees_it_settled() {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("Quiet attic", &["--price", "0.36", "--region", "eu-west"]).await.unwrap();
    system.start_worker("Studio", &["--price", "0.9", "--region", "eu-north", "--simulate-gpus", "2"]).await.unwrap();
    let browser = Browser::open(&system).await;
    let url = system.url();

    browser.size(1280, 800).await;
    browser.client.goto(&url).await.unwrap();
    browser.picture("landing").await;
    browser.sign_in(&system, &system.web).await;
    browser.client.goto(&format!("{url}/market")).await.unwrap();
    assert_eq!(browser.text("#matches").await, "2 of 2 machines");
    browser.picture("market").await;
    // The cheapest is first.
    browser.click_live(".machine .button.primary").await;
    browser.wait_for("#quote dd b").await;
    assert_eq!(browser.text("#quote dd b").await, "Quiet attic");
    browser.size(1280, 1240).await;
    browser.picture("new-job").await;
    browser.click(".submit button.primary").await;
    browser.wait_for("#state[data-state=Settled]").await;
    assert_eq!(browser.text("#state").await, "Completed");
    browser.wait_for("#log .line").await;
    assert!(browser.text("#log").await.contains("epoch"));
    browser.size(1280, 1000).await;
    browser.picture("job").await;
    browser.click("label[for=tab-receipt]").await;
    browser.wait_for("#receipt .sum").await;
    browser.picture("receipt").await;
    browser.click("label[for=tab-artifacts]").await;
    browser.wait_for("#artifacts figure img").await;
    browser.size(1280, 1500).await;
    browser.picture("files").await;
    browser.click("label[for=tab-events]").await;
    assert!(browser.text("#trail").await.contains("JobSubmitted"));
    let job = browser.client.current_url().await.unwrap();

    for (width, height, suffix) in [(1280, 900, ""), (360, 740, "-phone")] {
        browser.size(width, height).await;
        for (path, name) in [
            ("/", "landing"),
            ("/market", "market"),
            ("/jobs", "jobs"),
            ("/jobs/new", "new-job"),
            ("/wallet", "wallet"),
            ("/account", "account"),
            ("/provider", "provider"),
            ("/docs", "docs"),
            ("/sign-up", "sign-up"),
            (job.path(), "job"),
        ] {
            browser.client.goto(&format!("{url}{path}")).await.unwrap();
            browser.fits(path).await;
            if !suffix.is_empty() || matches!(name, "jobs" | "wallet" | "account" | "docs" | "sign-up") {
                browser.picture(&format!("{name}{suffix}")).await;
            }
            assert_eq!(console(&browser.client).await, Vec::<Value>::new(), "{path}");
        }
    }
    browser.click(".who form button").await;
    browser.wait_for(".who a[href='/sign-in']").await;
    browser.sign_in(&system, &system.owner).await;
    browser.client.goto(&format!("{url}/provider")).await.unwrap();
    browser.wait_for("article .badge.good").await;
    browser.click("form[action='/provider/enrollments'] button").await;
    browser.wait_for("#enroll").await;
    assert!(browser.text("#enroll").await.contains(&format!("--market {url}")));
    // The console is listened to: an error in it is seen.
    browser.client.execute("console.error('seen')", vec![]).await.unwrap();
    assert_eq!(console(&browser.client).await.len(), 1);
    browser.size(1280, 900).await;
    browser.picture("provider").await;
    browser.client.clone().close().await.unwrap();
}

#[tokio::test]
async fn what_was_typed_is_kept_and_the_error_stands_at_its_field() {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("attic", &[]).await.unwrap();
    let browser = Browser::open(&system).await;
    browser.sign_in(&system, &system.web).await;
    browser.client.goto(&format!("{}/jobs/new?template=train", system.url())).await.unwrap();
    let name = browser.client.find(Locator::Css("input[name=name]")).await.unwrap();
    name.send_keys("My <b>digits</b>").await.unwrap();
    let epochs = browser.client.find(Locator::Css("input[name='parameter.epochs']")).await.unwrap();
    epochs.clear().await.unwrap();
    epochs.send_keys("0").await.unwrap();
    browser.click(".submit button.primary").await;
    browser.wait_for("label .error").await;
    assert!(browser.text("label .error").await.contains("Epochs must be"));
    let name = browser.client.find(Locator::Css("input[name=name]")).await.unwrap();
    assert_eq!(name.prop("value").await.unwrap().as_deref(), Some("My <b>digits</b>"));
    browser.client.clone().close().await.unwrap();
}

#[tokio::test]
async fn a_job_is_given_files_and_run_again_with_something_changed() {
    let mut system = System::start(Options::default()).await.unwrap();
    system.start_worker("attic", &["--price", "0.1"]).await.unwrap();
    let browser = Browser::open(&system).await;
    browser.sign_in(&system, &system.web).await;
    browser.client.goto(&format!("{}/jobs/new?template=noop", system.url())).await.unwrap();
    let files = ["measured.csv", "<img src=x>.txt"].map(|name| system.path().join(name));
    for file in &files {
        fs::write(file, "1,2,3\n").unwrap();
        browser.client.find(Locator::Css("#files")).await.unwrap().send_keys(file.to_str().unwrap()).await.unwrap();
    }
    browser.wait_for("#given li:nth-child(2) input[name=input]").await;
    assert!(browser.text("#given").await.contains("<img src=x>.txt"), "a name is text");
    browser.size(1280, 1300).await;
    browser.picture("new-job-files").await;
    browser.click("select[name=strategy] option[value=most_reliable]").await;
    // One of them was a mistake.
    browser.click("#given li:nth-child(2) button").await;
    browser.client.find(Locator::Css("input[name=name]")).await.unwrap().send_keys("With a file").await.unwrap();
    browser.click(".submit button.primary").await;
    browser.wait_for("#state[data-state=Settled]").await;
    let first = browser.client.current_url().await.unwrap();
    let first = system.web.get(&format!("/jobs/{}", first.path().rsplit('/').next().unwrap())).await.unwrap();
    let inputs = first["spec"]["inputs"].as_array().unwrap();
    assert_eq!((inputs.len(), &inputs[0]["path"], &inputs[0]["bytes"]), (1, &json!("measured.csv"), &json!(6)));

    browser.click_live(".head .actions .button").await;
    browser.wait_for("#given li input[name=input]").await;
    let name = browser.client.find(Locator::Css("input[name=name]")).await.unwrap();
    assert_eq!(name.prop("value").await.unwrap().as_deref(), Some("With a file"));
    name.send_keys(", again").await.unwrap();
    browser.click(".submit button.primary").await;
    browser.wait_for("#state[data-state=Settled]").await;
    let second = browser.client.current_url().await.unwrap();
    let second = system.web.get(&format!("/jobs/{}", second.path().rsplit('/').next().unwrap())).await.unwrap();
    assert_ne!(second["job"], first["job"]);
    assert_eq!(second["spec"]["name"], "With a file, again");
    for same in ["inputs", "resources", "command", "image"] {
        assert_eq!(second["spec"][same], first["spec"][same], "{same}");
    }
    assert_eq!(first["placement"]["by"], "most_reliable");
    assert_eq!((&second["limits"], &second["placement"]), (&first["limits"], &first["placement"]));
    // Both are on the statement, which a spreadsheet can read.
    let (_, csv) = system.web.at_browser().bytes("/wallet/statement.csv").await.unwrap();
    let csv = String::from_utf8(csv).unwrap();
    assert!(csv.starts_with("seq,time,event,job,available,held,balance\n"), "{csv}");
    for job in [&first, &second] {
        assert!(csv.contains(&format!(",Settled,{},", job["job"].as_str().unwrap())), "{csv}");
    }
    assert_eq!(console(&browser.client).await, Vec::<Value>::new());
    browser.client.clone().close().await.unwrap();
}

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

/// Says that the page is hidden, or seen again: a browser that is driven has no hidden tab.
async fn hide(browser: &Browser, hidden: bool) {
    let script = "Object.defineProperty(document, 'hidden', { value: arguments[0], configurable: true });
                  document.dispatchEvent(new Event('visibilitychange'));";
    browser.client.execute(script, vec![json!(hidden)]).await.unwrap();
}

#[tokio::test]
async fn a_hidden_tab_lets_go_of_its_connection_and_takes_up_what_it_missed() {
    let system = System::start(Options::default()).await.unwrap();
    let browser = Browser::open(&system).await;
    browser.sign_in(&system, &system.web).await;
    browser.visit(&system, "/wallet").await;
    browser.says("#sums", "$100.00").await;
    // What the page holds open, and nothing else, is how many streams the server has of this person.
    browser.until("return source !== null && source.readyState === EventSource.OPEN").await;
    hide(&browser, true).await;
    browser.until("return source === null").await;
    system.web.deposit("7").await.unwrap();
    assert!(browser.text("#sums").await.contains("$100.00"), "nobody tells a hidden tab");
    hide(&browser, false).await;
    browser.says("#sums", "$107.00").await;
    browser.close().await;
}
