//! Forms: a refused form keeps its text, a job gets input files, and a job is run again.

use std::fs;

use fantoccini::Locator;
use gpubnb_tests::{
    browser::{Browser, console_errors},
    jobs::counting_job,
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
    // The browser would refuse the number itself.
    browser.client.execute("document.getElementById('job-form').noValidate = true", vec![]).await.unwrap();
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

#[tokio::test]
async fn a_failed_job_leads_to_a_form_with_the_fix_and_another_template_keeps_what_was_typed() {
    let market = MARKET.open().await.unwrap();
    let mut job = counting_job(1_000, 100);
    job["time_seconds"] = json!(1);
    let jobs = [market.consumer.submit(&job).await.unwrap(), market.consumer.submit(&job).await.unwrap()];
    for job in &jobs {
        assert_eq!(market.consumer.wait_until_settled(job).await.unwrap()["state"], "Failed");
    }
    let browser = Browser::open(&market).await;
    browser.sign_in(&market, &market.consumer).await;
    browser.visit(&market, &format!("/jobs/{}", jobs[0])).await;
    browser.save_screenshot("job-failed").await;
    browser.click_live(".remedies li:first-child a").await;
    let value = async |field: &str| {
        let field = browser.client.find(Locator::Css(&format!("[name='{field}']"))).await.unwrap();
        field.prop("value").await.unwrap().unwrap_or_default()
    };
    browser.wait_for("input[name=time_seconds]").await;
    // The time that the person chose is doubled, and the budget that must pay for it.
    assert_eq!((value("time_seconds").await, value("budget_usd").await), ("2".to_owned(), "1.00".to_owned()));
    assert_eq!(value("parameter.lines").await, "1000");
    // Another template keeps the common fields, and not those of the present template.
    browser.fill("input[name=name]", "kept & typed").await;
    browser.click("nav.picker a[href*='template=noop']").await;
    browser.wait_for("input[name=template][value=noop]").await;
    assert_eq!(value("name").await, "kept & typed");
    assert!(!browser.client.current_url().await.unwrap().as_str().contains("interval"));

    // Both jobs side by side.
    browser.visit(&market, "/jobs").await;
    for job in &jobs {
        browser.click(&format!("input[name=job][value='{job}']")).await;
    }
    browser.click("#jobs-list button:not(.danger)").await;
    browser.wait_for_text("table.compare", "time limit").await;
    browser.assert_sound("two jobs side by side").await;
    browser.close().await;
}

#[tokio::test]
async fn anything_is_found_by_keys_and_a_search_of_the_market_is_remembered() {
    let market = MARKET.open().await.unwrap();
    let job = market.consumer.submit(&json!({ "template": "noop", "name": "needle" })).await.unwrap();
    market.consumer.wait_until_settled(&job).await.unwrap();
    let browser = Browser::open(&market).await;
    browser.sign_in(&market, &market.consumer).await;
    browser.visit(&market, "/market?gpu=&kind=cpu&view=table").await;
    browser.click("#searches button").await;
    browser.wait_for_text("#searches .chip", "cpu").await;
    browser.visit(&market, "/market").await;
    browser.click("#searches .chip a").await;
    browser.wait_for("table.offers").await;
    browser.click("input[name=machine]").await;

    let body = browser.client.find(Locator::Css("body")).await.unwrap();
    body.send_keys("/").await.unwrap();
    browser.wait_for("dialog#find[open]").await;
    let field = browser.client.find(Locator::Css("#find input")).await.unwrap();
    field.send_keys("needle").await.unwrap();
    browser.wait_for_text("#find-results", "Completed").await;
    browser.assert_sound("the search over everything").await;
    browser.save_screenshot("find").await;
    // Return opens the first result, the job.
    field.send_keys("\u{e007}").await.unwrap();
    browser.wait_for("#summary").await;
    assert!(browser.client.current_url().await.unwrap().path().ends_with(&job));
    browser.close().await;
}
