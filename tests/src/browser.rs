//! Real Chromium, driven as a person would.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::missing_panics_doc)]

use std::{fs, path::PathBuf, process::Command, time::Duration};

use fantoccini::{
    Client, ClientBuilder, Locator,
    wd::{Capabilities, WebDriverCompatibleCommand},
};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};

use crate::{
    market::Market,
    parts::{free_port, program, root},
    process::Process,
    web::Web,
};

/// A browser with a profile of its own.
pub struct Browser {
    /// The connection to the driver.
    pub client: Client,
    pictures: PathBuf,
    _driver: Process,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts a browser that shows a market.
    pub async fn open(market: &Market) -> Self {
        let driver = program("GPUBNB_CHROMEDRIVER", "chromedriver", "run `deploy/setup.sh --tests`").unwrap();
        let port = free_port().unwrap();
        let mut command = Command::new(driver);
        command.arg(format!("--port={port}"));
        let driver = Process::start("chromedriver", &mut command, market.path()).unwrap();
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
    pub async fn sign_in(&self, market: &Market, who: &Web) {
        self.client.goto(&format!("{}/sign-in", market.url())).await.unwrap();
        for (field, text) in [("email", &who.email), ("password", &who.password)] {
            let input = self.client.find(Locator::Css(&format!("input[name={field}]"))).await.unwrap();
            input.send_keys(text).await.unwrap();
        }
        self.click("main form button").await;
        self.wait_for(".who form button").await;
    }

    /// The window's size.
    pub async fn size(&self, width: u32, height: u32) {
        self.client.set_window_size(width, height).await.unwrap();
    }

    /// Takes a picture of the window.
    pub async fn picture(&self, name: &str) {
        let png = self.client.screenshot().await.unwrap();
        assert!(png.len() > 5_000, "{name} is no empty page");
        fs::write(self.pictures.join(format!("{name}.png")), png).unwrap();
    }

    /// Clicks.
    pub async fn click(&self, css: &str) {
        self.client.find(Locator::Css(css)).await.unwrap().click().await.unwrap();
    }

    /// Finds and clicks an element in one step: live parts of a page may be replaced at any moment.
    pub async fn click_live(&self, css: &str) {
        let script = "document.querySelector(arguments[0]).click()";
        self.client.execute(script, vec![json!(css)]).await.unwrap();
    }

    /// Waits until there is such an element.
    pub async fn wait_for(&self, css: &str) {
        let wait = self.client.wait().at_most(Duration::from_secs(60));
        if let Err(e) = wait.for_element(Locator::Css(css)).await {
            let page = self.client.source().await.unwrap_or_default();
            panic!("{css} did not appear: {e}\n{page}");
        }
    }

    /// Waits until a script of the page answers with `true`.
    pub async fn until(&self, script: &str) {
        let last = tokio::time::Instant::now() + Duration::from_secs(60);
        while self.client.execute(script, vec![]).await.unwrap() != json!(true) {
            assert!(tokio::time::Instant::now() < last, "never true: {script}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The text of an element, found and read in one step: live parts may be replaced at any moment.
    pub async fn text(&self, css: &str) -> String {
        let script = "return document.querySelector(arguments[0]).innerText";
        let text = self.client.execute(script, vec![json!(css)]).await.unwrap();
        text.as_str().unwrap().to_owned()
    }

    /// Checks that the page is not wider than the window.
    pub async fn fits(&self, page: &str) {
        let script = "return [document.documentElement.scrollWidth, window.innerWidth]";
        let widths: Value = self.client.execute(script, vec![]).await.unwrap();
        assert!(widths[0].as_i64() <= widths[1].as_i64(), "{page} is wider than its window: {widths}");
    }
}

impl Browser {
    /// Goes to a page of the market and checks that the page is sound: no error in the console, no violation of the content
    /// security policy, nothing that axe-core finds seriously wrong, and not wider than the window.
    pub async fn visit(&self, market: &Market, path: &str) {
        self.client.goto(&format!("{}{path}", market.url())).await.unwrap();
        self.is_sound(path).await;
    }

    /// Opens the address of no page: the page that says so is as sound as any.
    pub async fn visit_missing(&self, market: &Market, path: &str) {
        self.client.goto(&format!("{}{path}", market.url())).await.unwrap();
        self.fits(path).await;
        self.is_accessible(path).await;
        self.forget_refusal(path, "404").await;
    }

    /// Checks that the browser's console has nothing but an answer of this status, which the browser counts as an error.
    pub async fn forget_refusal(&self, page: &str, status: &str) {
        let said = console(&self.client).await;
        assert!(said.iter().all(|line| line.to_string().contains(status)), "{page}: {said:?}");
    }

    /// Checks that the page is sound in its present state.
    pub async fn is_sound(&self, page: &str) {
        self.fits(page).await;
        self.is_accessible(page).await;
        assert_eq!(console(&self.client).await, Vec::<Value>::new(), "{page}");
    }

    /// Checks that axe-core finds nothing serious.
    pub async fn is_accessible(&self, page: &str) {
        let axe = fs::read_to_string(root().join("ui/node_modules/axe-core/axe.min.js"))
            .expect("axe-core is missing: run `deploy/setup.sh --tests`");
        self.client.execute(&format!("if (!window.axe) {{ {axe} }}"), vec![]).await.unwrap();
        let script = "const done = arguments[arguments.length - 1];
            axe.run(document, { resultTypes: ['violations'] }).then((found) => done(found.violations
                .filter((v) => ['serious', 'critical'].includes(v.impact))
                .map((v) => v.id + ': ' + v.help + ' ' + v.nodes.slice(0, 3).map((n) => n.html.slice(0, 200)).join(' | '))));";
        let found = self.client.execute_async(script, vec![]).await.unwrap();
        assert_eq!(found, json!([]), "{page}");
    }

    /// Light or dark, as a person's system would ask for.
    pub async fn scheme(&self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        let command = json!({ "cmd": "Emulation.setEmulatedMedia", "params": { "features": features } });
        self.client.issue_cmd(Devtools(command)).await.unwrap();
    }

    /// Types into a field, in place of its present text.
    pub async fn fill(&self, css: &str, text: &str) {
        let field = self.client.find(Locator::Css(css)).await.unwrap();
        field.clear().await.unwrap();
        field.send_keys(text).await.unwrap();
    }

    /// Waits until the text of an element has these words.
    pub async fn says(&self, css: &str, words: &str) {
        let script = "const e = document.querySelector(arguments[0]); return e ? e.innerText : ''";
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            let text = self.client.execute(script, vec![json!(css)]).await.unwrap();
            if text.as_str().is_some_and(|text| text.contains(words)) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{css} does not say {words:?}: {text}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Closes the browser.
    pub async fn close(self) {
        self.client.clone().close().await.unwrap();
    }
}

/// A command of the browser's own protocol, through `ChromeDriver`.
#[derive(Debug)]
struct Devtools(Value);

impl WebDriverCompatibleCommand for Devtools {
    fn endpoint(&self, base: &url::Url, session: Option<&str>) -> Result<url::Url, url::ParseError> {
        base.join(&format!("session/{}/goog/cdp/execute", session.unwrap_or_default()))
    }

    fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(self.0.to_string()))
    }
}

/// `ChromeDriver`'s own command for the lines that the browser wrote to its console.
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
pub async fn console(client: &Client) -> Vec<Value> {
    let entries = client.issue_cmd(ConsoleLog).await.unwrap();
    let entries = entries.as_array().expect("a list of entries").clone();
    entries.into_iter().filter(|entry| entry["level"] == "SEVERE").collect()
}
