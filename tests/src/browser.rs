//! Drives a real Chromium as a person would, through `ChromeDriver`. The pictures go to `target/pictures`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::missing_panics_doc)]

use std::{fs, path::PathBuf, process::Command, time::Duration};

use fantoccini::{
    Client, ClientBuilder, Locator,
    wd::{Capabilities, WebDriverCompatibleCommand},
};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};

use crate::{
    api_client::ApiClient,
    market::Market,
    process::Process,
    programs::{free_port, program, root},
};

/// A browser. Each browser has a new, empty profile.
pub struct Browser {
    /// The connection to `ChromeDriver`.
    pub client: Client,
    pictures: PathBuf,
    _driver: Process,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts `ChromeDriver` and a browser. The logs go to the directory of the market.
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
                Err(e) if tokio::time::Instant::now() > deadline => panic!("the browser did not start: {e}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        };
        let pictures =
            std::env::var_os("GPUBNB_PICTURES").map_or_else(|| root().join("target/pictures"), PathBuf::from);
        fs::create_dir_all(&pictures).unwrap();
        Self { client, pictures, _driver: driver, _profile: profile }
    }

    /// Signs in with the form of the page `/sign-in`.
    pub async fn sign_in(&self, market: &Market, who: &ApiClient) {
        self.client.goto(&format!("{}/sign-in", market.url())).await.unwrap();
        for (field, text) in [("email", &who.email), ("password", &who.password)] {
            let input = self.client.find(Locator::Css(&format!("input[name={field}]"))).await.unwrap();
            input.send_keys(text).await.unwrap();
        }
        self.click("main form button.primary").await;
        self.wait_for(".who form button").await;
    }

    /// Sets the size of the window, in pixels.
    pub async fn set_window_size(&self, width: u32, height: u32) {
        self.client.set_window_size(width, height).await.unwrap();
    }

    /// Sets the size of the part of the window that shows the page, in pixels.
    pub async fn set_viewport(&self, width: u32, height: u32) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// Saves a screenshot of the window as `<name>.png`. Fails if the screenshot is so small that the page must be
    /// empty.
    pub async fn save_screenshot(&self, name: &str) {
        let png = self.client.screenshot().await.unwrap();
        assert!(png.len() > 5_000, "{name}: the page is empty");
        fs::write(self.pictures.join(format!("{name}.png")), png).unwrap();
    }

    /// Clicks the first element that matches a CSS selector, in the middle of the window: on a phone, the bar of places
    /// covers the lower end.
    pub async fn click(&self, css: &str) {
        let script = "document.querySelector(arguments[0]).scrollIntoView({ block: 'center' })";
        self.client.execute(script, vec![json!(css)]).await.unwrap();
        self.client.find(Locator::Css(css)).await.unwrap().click().await.unwrap();
    }

    /// Finds and clicks an element in one step, because the live parts of a page may be replaced at any moment.
    pub async fn click_live(&self, css: &str) {
        let script = "document.querySelector(arguments[0]).click()";
        self.client.execute(script, vec![json!(css)]).await.unwrap();
    }

    /// Waits until an element matches a CSS selector.
    pub async fn wait_for(&self, css: &str) {
        let wait = self.client.wait().at_most(Duration::from_secs(60));
        if let Err(e) = wait.for_element(Locator::Css(css)).await {
            let page = self.client.source().await.unwrap_or_default();
            panic!("{css} did not appear: {e}\n{page}");
        }
    }

    /// Waits until a script in the page returns `true`.
    pub async fn wait_until_true(&self, script: &str) {
        let last = tokio::time::Instant::now() + Duration::from_secs(60);
        while self.client.execute(script, vec![]).await.unwrap() != json!(true) {
            assert!(tokio::time::Instant::now() < last, "the script never returned true: {script}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Returns the text of an element. Finds and reads the element in one step, because it may be replaced at any
    /// moment.
    pub async fn text(&self, css: &str) -> String {
        let script = "return document.querySelector(arguments[0]).innerText";
        let text = self.client.execute(script, vec![json!(css)]).await.unwrap();
        text.as_str().unwrap().to_owned()
    }

    /// Checks that the page is not wider than the window.
    pub async fn assert_fits_window(&self, page: &str) {
        let script = "return [document.documentElement.scrollWidth, window.innerWidth]";
        let widths: Value = self.client.execute(script, vec![]).await.unwrap();
        assert!(widths[0].as_i64() <= widths[1].as_i64(), "{page} is wider than its window: {widths}");
    }
}

impl Browser {
    /// Goes to a page of the market and checks that the page is sound: no error in the console, no violation of the
    /// content security policy, no serious finding of axe-core (a checker of accessibility), and not wider than the
    /// window.
    pub async fn visit(&self, market: &Market, path: &str) {
        self.client.goto(&format!("{}{path}", market.url())).await.unwrap();
        self.assert_sound(path).await;
    }

    /// Opens an address that has no page. Checks that the answer is a sound page with the status 404.
    pub async fn visit_missing(&self, market: &Market, path: &str) {
        self.client.goto(&format!("{}{path}", market.url())).await.unwrap();
        self.assert_fits_window(path).await;
        self.assert_accessible(path).await;
        self.assert_console_has_only_status(path, "404").await;
    }

    /// Checks that every error in the browser's console names this HTTP status, such as `404`. The browser logs each
    /// answer with such a status as an error.
    pub async fn assert_console_has_only_status(&self, page: &str, status: &str) {
        let errors = console_errors(&self.client).await;
        assert!(errors.iter().all(|error| error.to_string().contains(status)), "{page}: {errors:?}");
    }

    /// Checks that the page that is open is sound. `page` names the page in the messages.
    pub async fn assert_sound(&self, page: &str) {
        self.assert_fits_window(page).await;
        self.assert_accessible(page).await;
        assert_eq!(console_errors(&self.client).await, Vec::<Value>::new(), "{page}");
    }

    /// Checks that axe-core finds no serious problem of accessibility.
    pub async fn assert_accessible(&self, page: &str) {
        let axe = fs::read_to_string(root().join("ui/node_modules/axe-core/axe.min.js"))
            .expect("axe-core is missing: run `deploy/setup.sh --tests`");
        self.client.execute(&format!("if (!window.axe) {{ {axe} }}"), vec![]).await.unwrap();
        let script = "const done = arguments[arguments.length - 1];
            axe.run(document, { resultTypes: ['violations'] }).then((found) => done(found.violations
                .filter((v) => ['serious', 'critical'].includes(v.impact))
                .map((v) => v.id + ': ' + v.help + ' '
                    + v.nodes.slice(0, 3).map((n) => n.html.slice(0, 200)).join(' | '))));";
        let found = self.client.execute_async(script, vec![]).await.unwrap();
        assert_eq!(found, json!([]), "{page}");
    }

    /// Sets the preferred colour scheme of the operating system: `light` or `dark`.
    pub async fn set_colour_scheme(&self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.devtools("Emulation.setEmulatedMedia", json!({ "features": features })).await;
    }

    /// Sends a command of the protocol of Chromium's developer tools.
    pub async fn devtools(&self, command: &str, parameters: Value) {
        self.client.issue_cmd(Devtools(json!({ "cmd": command, "params": parameters }))).await.unwrap();
    }

    /// Replaces the text of an input field.
    pub async fn fill(&self, css: &str, text: &str) {
        let field = self.client.find(Locator::Css(css)).await.unwrap();
        field.clear().await.unwrap();
        field.send_keys(text).await.unwrap();
    }

    /// Waits until the text of an element contains `words`.
    pub async fn wait_for_text(&self, css: &str, words: &str) {
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

/// A command of the browser's debugging protocol, which `ChromeDriver` passes on to the browser.
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

/// The command of `ChromeDriver` that reads the browser's console.
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

/// The errors in the browser's console since the last call. Violations of the content security policy are among them.
pub async fn console_errors(client: &Client) -> Vec<Value> {
    let entries = client.issue_cmd(ConsoleLog).await.unwrap();
    let entries = entries.as_array().expect("a list of entries").clone();
    entries.into_iter().filter(|entry| entry["level"] == "SEVERE").collect()
}
