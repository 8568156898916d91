//! The JSON API, as a program uses it.

use std::time::Duration;

use anyhow::{Context as _, bail};
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::market::Market;

/// A person of one market: a token for programs, and a signed-in browser.
#[derive(Clone, Serialize, Deserialize)]
pub struct Web {
    #[serde(skip, default = "client")]
    client: reqwest::Client,
    /// Address of the web server.
    pub url: String,
    /// The account; empty for a stranger.
    pub account: String,
    /// The account's e-mail address.
    pub email: String,
    /// The account's password.
    pub password: String,
    token: Option<String>,
    cookie: Option<String>,
    csrf: String,
}

/// All scopes of a token. Operators have none: they work at a browser.
pub const SCOPES: [&str; 4] = ["jobs:read", "jobs:write", "machines:write", "wallet:read"];

/// An HTTP client that shows redirections instead of following them. Its connections belong to the runtime of one test,
/// so each test has a client of its own.
fn client() -> reqwest::Client {
    crate::parts::crypto();
    let settings = reqwest::Client::builder().timeout(Duration::from_secs(30));
    settings.redirect(reqwest::redirect::Policy::none()).build().unwrap_or_default()
}

impl Web {
    /// A stranger at the market at an address.
    #[must_use]
    pub fn new(url: &str) -> Self {
        Self {
            client: client(),
            url: url.to_owned(),
            account: String::new(),
            email: String::new(),
            password: String::new(),
            token: None,
            cookie: None,
            csrf: String::new(),
        }
    }

    /// Signs up, signs in at a browser, and makes a token.
    pub async fn join(url: &str, name: &str) -> anyhow::Result<Self> {
        let mut web = Self::new(url);
        web.email = format!("{name}@gpubnb.example");
        web.password = gpubnb_events::CommandId::generate().to_string();
        let who = json!({ "email": web.email, "password": web.password });
        web.post("/accounts", &who).await?;
        web.sign_in().await?;
        web.token = Some(web.new_token(&SCOPES).await?);
        let me = web.get("/account").await?;
        me["account"].as_str().context("an account")?.clone_into(&mut web.account);
        Ok(web)
    }

    /// Somebody who runs the platform, by the link that the web server prints at its first start. The link works once.
    pub async fn operator(market: &Market) -> anyhow::Result<Self> {
        let log = market.log("ui");
        let link = log.split_whitespace().find(|word| word.contains("/operator/")).context("a link in the log")?;
        let path = link.strip_prefix(&market.url()).context("a link of this market")?.to_owned();
        let mut operator = Self::join(&market.url(), "operator").await?;
        let form = [("csrf", operator.csrf().to_owned())];
        for expected in [StatusCode::SEE_OTHER, StatusCode::FORBIDDEN] {
            let opened = operator.at_browser().ask(Method::POST, &path).form(&form).send().await?;
            anyhow::ensure!(opened.status() == expected, "{} {}", opened.status(), opened.text().await?);
        }
        operator.sign_in().await?;
        Ok(operator.at_browser())
    }

    /// A token with these scopes.
    pub async fn new_token(&self, scopes: &[&str]) -> anyhow::Result<String> {
        let ask = json!({ "email": self.email, "password": self.password, "label": "test", "scopes": scopes });
        let (status, made) = self.stranger().request(Method::POST, "/login", Some(&ask)).await?;
        anyhow::ensure!(status == StatusCode::CREATED, "login: {status} {made}");
        Ok(made["token"].as_str().context("a token")?.to_owned())
    }

    /// Signs in at a browser: keeps the session's cookie and the token of its forms.
    pub async fn sign_in(&mut self) -> anyhow::Result<()> {
        let form = [("email", self.email.as_str()), ("password", self.password.as_str())];
        let response = self.client.post(format!("{}/sign-in", self.url)).form(&form).send().await?;
        let status = response.status();
        let Some(cookie) = response.headers().get("set-cookie").cloned() else {
            bail!("signing in: {status} {}", response.text().await?);
        };
        self.cookie = Some(cookie.to_str()?.split(';').next().unwrap_or_default().to_owned());
        let page = self.client.get(format!("{}/account", self.url)).header("cookie", self.cookie()).send().await?;
        let page = page.text().await?;
        let (_, rest) = page.split_once("name=\"csrf\" value=\"").context("no token in the forms")?;
        rest.split('"').next().unwrap_or_default().clone_into(&mut self.csrf);
        Ok(())
    }

    /// The same person, by a token alone.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), cookie: None, csrf: String::new(), ..self.clone() }
    }

    /// The same person, at a browser alone.
    #[must_use]
    pub fn at_browser(&self) -> Self {
        Self { token: None, ..self.clone() }
    }

    /// A stranger at the same market.
    #[must_use]
    pub fn stranger(&self) -> Self {
        Self { token: None, cookie: None, csrf: String::new(), ..self.clone() }
    }

    /// The session's cookie.
    pub fn cookie(&self) -> String {
        self.cookie.clone().unwrap_or_default()
    }

    /// The token that the forms of the session carry against forged requests.
    pub fn csrf(&self) -> &str {
        &self.csrf
    }

    /// A request as this person would send it: with the token, or else from the browser.
    pub fn ask(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.url));
        match (&self.token, &self.cookie) {
            (Some(token), _) => request.bearer_auth(token),
            (None, Some(cookie)) => request.header("cookie", cookie).header("x-csrf-token", &self.csrf),
            (None, None) => request,
        }
    }

    /// One request of the API, below `/api/v1`.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(StatusCode, Value)> {
        let mut request = self.ask(method, &format!("/api/v1{path}"));
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await?;
        let status = response.status();
        let text = response.text().await?;
        let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok((status, value))
    }

    /// Adds play money, as a person at a browser.
    pub async fn deposit(&self, dollars: &str) -> anyhow::Result<Value> {
        let deposit = json!({ "deposit": gpubnb_events::CommandId::generate(), "amount_usd": dollars });
        self.at_browser().post("/wallet/deposits", &deposit).await
    }

    /// Reads a resource below `/api/v1`.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        match self.request(Method::GET, path, None).await? {
            (status, value) if status.is_success() => Ok(value),
            (status, value) => bail!("GET {path}: {status} {value}"),
        }
    }

    /// Posts to a resource below `/api/v1`.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        match self.request(Method::POST, path, Some(body)).await? {
            (status, value) if status.is_success() => Ok(value),
            (status, value) => bail!("POST {path}: {status} {value}"),
        }
    }

    /// The bytes of a page or a file.
    pub async fn bytes(&self, path: &str) -> anyhow::Result<(StatusCode, Vec<u8>)> {
        let response = self.at_browser().ask(Method::GET, path).send().await?;
        Ok((response.status(), response.bytes().await?.to_vec()))
    }

    /// Submits a job and opens its live page.
    pub async fn submit_and_watch(&self, body: &Value) -> anyhow::Result<(String, reqwest::Response)> {
        let submitted = self.post("/jobs", body).await?;
        let job = submitted["job"].as_str().context("an answer without a job")?.to_owned();
        let path = format!("/jobs/{job}/live?seq={}", submitted["seq"]);
        // For as long as the page stays open.
        let page = self.ask(Method::GET, &path).timeout(Duration::from_secs(600)).send().await?.error_for_status()?;
        Ok((job, page))
    }

    /// Submits a job and returns its id.
    pub async fn submit(&self, body: &Value) -> anyhow::Result<String> {
        let submitted = self.post("/jobs", body).await?;
        Ok(submitted["job"].as_str().context("an answer without a job")?.to_owned())
    }

    /// Waits until a job fulfils a condition, and returns the job.
    pub async fn wait_for(
        &self,
        job: &str,
        within: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let deadline = Instant::now() + within;
        loop {
            let value = match self.get(&format!("/jobs/{job}")).await {
                Ok(value) if wanted(&value) => return Ok(value),
                Ok(value) => value,
                Err(e) => Value::String(e.to_string()),
            };
            if Instant::now() > deadline {
                bail!("job {job} did not get there within {within:?}: {value:#}");
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until a job is settled.
    pub async fn settled(&self, job: &str) -> anyhow::Result<Value> {
        self.wait_for(job, Duration::from_secs(60), |job| job["settled"] == true).await
    }
}
