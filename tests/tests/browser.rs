//! A person's way through the pages, in real Chromium: from the market to a settled job, and what they look like.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{fs, path::PathBuf, process::Command, time::Duration};

use fantoccini::{
    Client, ClientBuilder, Locator,
    wd::{Capabilities, WebDriverCompatibleCommand},
};
use gpubnb_tests::{
    parts::{free_port, program, root},
    process::Process,
    system::{Options, System},
    web::Web,
};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};

struct Browser {
    client: Client,
    pictures: PathBuf,
    _driver: Process,
    _profile: tempfile::TempDir,
}

impl Browser {
    async fn open(system: &System) -> Self {
        let driver = program("GPUBNB_CHROMEDRIVER", "chromedriver", "run `deploy/setup.sh --tests`").unwrap();
        let port = free_port().unwrap();
        let mut command = Command::new(driver);
        command.arg(format!("--port={port}"));
        let driver = Process::start("chromedriver", &mut command, system.path()).unwrap();
        let profile = tempfile::tempdir().unwrap();
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            "--hide-scrollbars",
            &format!("--user-data-dir={}", profile.path().display()),
        ];
        let mut capabilities = Capabilities::new();
        capabilities.insert("goog:chromeOptions".to_owned(), json!({ "args": arguments }));
        capabilities.insert("goog:loggingPrefs".to_owned(), json!({ "browser": "ALL" }));
        let url = format!("http://127.0.0.1:{port}");
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        let client = loop {
            match ClientBuilder::new(HttpConnector::new()).capabilities(capabilities.clone()).connect(&url).await {
                Ok(client) => break client,
                Err(e) if tokio::time::Instant::now() > deadline => panic!("no browser: {e}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        };
        let pictures =
            std::env::var_os("GPUBNB_PICTURES").map_or_else(|| root().join("target/pictures"), PathBuf::from);
        fs::create_dir_all(&pictures).unwrap();
        Self { client, pictures, _driver: driver, _profile: profile }
    }

    /// Signs in, as a person does.
    async fn sign_in(&self, system: &System, who: &Web) {
        self.client.goto(&format!("{}/sign-in", system.url())).await.unwrap();
        for (field, text) in [("email", &who.email), ("password", &who.password)] {
            let input = self.client.find(Locator::Css(&format!("input[name={field}]"))).await.unwrap();
            input.send_keys(text).await.unwrap();
        }
        self.click("main form button").await;
        self.wait_for(".who form button").await;
    }

    async fn size(&self, width: u32, height: u32) {
        self.client.set_window_size(width, height).await.unwrap();
    }

    async fn picture(&self, name: &str) {
        let png = self.client.screenshot().await.unwrap();
        assert!(png.len() > 5_000, "{name} is no empty page");
        fs::write(self.pictures.join(format!("{name}.png")), png).unwrap();
    }

    async fn click(&self, css: &str) {
        self.client.find(Locator::Css(css)).await.unwrap().click().await.unwrap();
    }

    /// Clicks what may be replaced at any moment: found and clicked in one step.
    async fn click_live(&self, css: &str) {
        let script = "document.querySelector(arguments[0]).click()";
        self.client.execute(script, vec![json!(css)]).await.unwrap();
    }

    async fn wait_for(&self, css: &str) {
        let wait = self.client.wait().at_most(Duration::from_secs(60));
        if let Err(e) = wait.for_element(Locator::Css(css)).await {
            let page = self.client.source().await.unwrap_or_default();
            panic!("{css} did not appear: {e}\n{page}");
        }
    }

    /// The text of an element, found and read in one step: live parts may be replaced at any moment.
    async fn text(&self, css: &str) -> String {
        let script = "return document.querySelector(arguments[0]).innerText";
        let text = self.client.execute(script, vec![json!(css)]).await.unwrap();
        text.as_str().unwrap().to_owned()
    }

    /// No page is wider than the window.
    async fn fits(&self, page: &str) {
        let script = "return [document.documentElement.scrollWidth, window.innerWidth]";
        let widths: Value = self.client.execute(script, vec![]).await.unwrap();
        assert!(widths[0].as_i64() <= widths[1].as_i64(), "{page} is wider than its window: {widths}");
    }
}

/// `ChromeDriver`'s own command for what the browser wrote to its console.
#[derive(Debug)]
struct ConsoleLog;

impl WebDriverCompatibleCommand for ConsoleLog {
    fn endpoint(&self, base: &url::Url, session: Option<&str>) -> Result<url::Url, url::ParseError> {
        base.join(&format!("session/{}/se/log", session.unwrap_or_default()))
    }

    fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(json!({ "type": "browser" }).to_string()))
    }
}

/// Errors in the console since the last look, violations of the content security policy among them.
async fn console(client: &Client) -> Vec<Value> {
    let entries = client.issue_cmd(ConsoleLog).await.unwrap();
    let entries = entries.as_array().expect("a list of entries").clone();
    entries.into_iter().filter(|entry| entry["level"] == "SEVERE").collect()
}

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
    assert!(browser.text("#events").await.contains("JobSubmitted"));
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
