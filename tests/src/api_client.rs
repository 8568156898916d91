//! An HTTP client of the web server: its JSON API, its pages and its forms.

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use gpubnb_events::dataset::{DatasetFile, DatasetManifest};
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep};

#[cfg(feature = "contract")]
use crate::contract::{self, Answer};
use crate::market::Market;

/// The HTTP client of one person. It has an API token and the cookie of a browser session. A stranger's client has
/// neither.
#[derive(Clone, Serialize, Deserialize)]
pub struct ApiClient {
    #[serde(skip, default = "client")]
    client: reqwest::Client,
    /// URL of the web server.
    pub url: String,
    /// The id of the account. Empty for a stranger.
    pub account: String,
    /// The account's e-mail address.
    pub email: String,
    /// The account's password.
    pub password: String,
    token: Option<String>,
    cookie: Option<String>,
    csrf: String,
}

/// All scopes that a token can have.
pub const SCOPES: [&str; 6] =
    ["jobs:read", "jobs:write", "machines:write", "wallet:read", "webhooks:write", "secrets:write"];

/// An HTTP client that shows redirections instead of following them. Its connections belong to the runtime of one test,
/// so each test has a client of its own.
fn client() -> reqwest::Client {
    crate::programs::install_crypto_provider();
    // The server closes a connection that was idle for ten seconds, and a request that is sent at that moment fails.
    // So the client closes its idle connections earlier.
    let idle = Duration::from_secs(5);
    let settings = reqwest::Client::builder().timeout(Duration::from_secs(30)).pool_idle_timeout(idle);
    settings.redirect(reqwest::redirect::Policy::none()).build().unwrap_or_default()
}

impl ApiClient {
    /// The client of a stranger, who has no account. `url` is the address of the web server.
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

    /// Signs up as `<name>@gpubnb.example`, signs in at a browser, and makes a token with all scopes.
    pub async fn sign_up(url: &str, name: &str) -> anyhow::Result<Self> {
        let mut client = Self::new(url);
        client.email = format!("{name}@gpubnb.example");
        client.password = gpubnb_events::CommandId::generate().to_string();
        let who = json!({ "email": client.email, "password": client.password });
        client.post("/accounts", &who).await?;
        client.sign_in().await?;
        client.token = Some(client.new_token(&SCOPES).await?);
        let me = client.get("/account").await?;
        me["account"].as_str().context("an answer without an account")?.clone_into(&mut client.account);
        Ok(client)
    }

    /// Signs up an operator with the link that the web server prints at its first start. The link works once. Returns a
    /// client with a browser session, because operators have no token.
    pub async fn sign_up_operator(market: &Market) -> anyhow::Result<Self> {
        let log = market.process_log("ui");
        let link = log.split_whitespace().find(|word| word.contains("/operator/")).context("no link in the log")?;
        let path = link.strip_prefix(&market.url()).context("the link does not belong to this market")?.to_owned();
        let mut operator = Self::sign_up(&market.url(), "operator").await?;
        let form = [("csrf", operator.csrf().to_owned())];
        for expected in [StatusCode::SEE_OTHER, StatusCode::FORBIDDEN] {
            let opened = operator.browser_session().build_request(Method::POST, &path).form(&form).send().await?;
            anyhow::ensure!(opened.status() == expected, "{} {}", opened.status(), opened.text().await?);
        }
        operator.sign_in().await?;
        Ok(operator.browser_session())
    }

    /// Makes a new token with these scopes.
    pub async fn new_token(&self, scopes: &[&str]) -> anyhow::Result<String> {
        let ask = json!({ "email": self.email, "password": self.password, "label": "test", "scopes": scopes });
        let (status, made) = self.stranger().request(Method::POST, "/login", Some(&ask)).await?;
        anyhow::ensure!(status == StatusCode::CREATED, "login: {status} {made}");
        Ok(made["token"].as_str().context("an answer without a token")?.to_owned())
    }

    /// Signs in at a browser. Keeps the cookie of the session and the CSRF token of its forms.
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

    /// Runs the program `gpubnb` with this client's token, and with this standard input.
    pub fn run_client(&self, arguments: &[&str], input: &str) -> anyhow::Result<Output> {
        let mut client = Command::new(crate::programs::binary("gpubnb")?);
        client.args(arguments).env("GPUBNB_URL", &self.url);
        client.env("GPUBNB_TOKEN", self.token.as_deref().unwrap_or_default());
        let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        client.stdin.take().context("no pipe")?.write_all(input.as_bytes())?;
        Ok(client.wait_with_output()?)
    }

    /// Runs `gpubnb verify JOB --json` with this client's token. Returns the exit code and the verdict.
    pub fn verify_with_client(&self, job: &str) -> anyhow::Result<(Option<i32>, Value)> {
        let output = self.run_client(&["verify", job, "--json"], "")?;
        let verdict = serde_json::from_slice(&output.stdout);
        Ok((output.status.code(), verdict.with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?))
    }

    /// A client of the same person that uses only this token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), cookie: None, csrf: String::new(), ..self.clone() }
    }

    /// A client of the same person that uses only the browser session.
    #[must_use]
    pub fn browser_session(&self) -> Self {
        Self { token: None, ..self.clone() }
    }

    /// The client of a stranger at the same market.
    #[must_use]
    pub fn stranger(&self) -> Self {
        Self { token: None, cookie: None, csrf: String::new(), ..self.clone() }
    }

    /// The cookie of the browser session, `<name>=<value>`. Empty without a session.
    pub fn cookie(&self) -> String {
        self.cookie.clone().unwrap_or_default()
    }

    /// The CSRF token of the browser session. Forms send it as proof that they are not forged.
    pub fn csrf(&self) -> &str {
        &self.csrf
    }

    /// Builds a request with the API token, or with the browser session if there is no token. `path` begins with `/`.
    pub fn build_request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.url));
        match (&self.token, &self.cookie) {
            (Some(token), _) => request.bearer_auth(token),
            (None, Some(cookie)) => request.header("cookie", cookie).header("x-csrf-token", &self.csrf),
            (None, None) => request,
        }
    }

    /// Sends a request to `/api/v1<path>`. Returns the status and the body of the answer.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(StatusCode, Value)> {
        #[cfg(feature = "contract")]
        let sent = (method.clone(), format!("/api/v1{path}"));
        let mut request = self.build_request(method, &format!("/api/v1{path}"));
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await?;
        let status = response.status();
        let text = response.text().await?;
        #[cfg(feature = "contract")]
        {
            let answer = Answer { method: &sent.0, path: &sent.1, status, body: &text };
            contract::check(&self.client, &self.url, &answer).await;
        }
        let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok((status, value))
    }

    /// Adds play money to the account, through the browser session.
    pub async fn deposit(&self, dollars: &str) -> anyhow::Result<Value> {
        let deposit = json!({ "deposit": gpubnb_events::CommandId::generate(), "amount_usd": dollars });
        self.browser_session().post("/wallet/deposits", &deposit).await
    }

    /// Reads `/api/v1<path>`. Fails if the status is not 2xx.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        match self.request(Method::GET, path, None).await? {
            (status, value) if status.is_success() => Ok(value),
            (status, value) => bail!("GET {path}: {status} {value}"),
        }
    }

    /// Posts to `/api/v1<path>`. Fails if the status is not 2xx.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        match self.request(Method::POST, path, Some(body)).await? {
            (status, value) if status.is_success() => Ok(value),
            (status, value) => bail!("POST {path}: {status} {value}"),
        }
    }

    /// Reads a page or a file through the browser session. Returns the status and the body.
    pub async fn bytes(&self, path: &str) -> anyhow::Result<(StatusCode, Vec<u8>)> {
        let response = self.browser_session().build_request(Method::GET, path).send().await?;
        Ok((response.status(), response.bytes().await?.to_vec()))
    }

    /// Submits a job and opens the event stream of its page. Returns the job's id and the open stream.
    pub async fn submit_and_open_page(&self, body: &Value) -> anyhow::Result<(String, reqwest::Response)> {
        let submitted = self.post("/jobs", body).await?;
        let job = submitted["job"].as_str().context("an answer without a job")?.to_owned();
        let path = format!("/jobs/{job}/live?seq={}", submitted["seq"]);
        // The stream stays open for as long as the page is open.
        let page = self
            .build_request(Method::GET, &path)
            .timeout(Duration::from_secs(600))
            .send()
            .await?
            .error_for_status()?;
        Ok((job, page))
    }

    /// Submits a job and returns its id.
    pub async fn submit(&self, body: &Value) -> anyhow::Result<String> {
        let submitted = self.post("/jobs", body).await?;
        Ok(submitted["job"].as_str().context("an answer without a job")?.to_owned())
    }

    /// Uploads a dataset of one file, and returns its id.
    pub async fn push_dataset(&self, path: &str, content: &'static str) -> anyhow::Result<String> {
        let sha256 = gpubnb_events::hex(Sha256::digest(content));
        let file = DatasetFile { path: path.to_owned(), bytes: content.len() as u64, sha256, exec: false };
        let manifest = DatasetManifest::new(vec![file], Vec::new());
        let address = format!("/api/v1/datasets/{}", manifest.id()?);
        let put = async || self.build_request(Method::PUT, &address).json(&manifest).send().await?.error_for_status();
        put().await?;
        let contents = format!("{address}/contents?first=0&count=1");
        self.build_request(Method::PUT, &contents).body(content).send().await?.error_for_status()?;
        put().await?;
        Ok(manifest.id()?.to_string())
    }

    /// Waits until `wanted` returns true for a job, as the API shows it. Returns that view.
    pub async fn wait_for(
        &self,
        job: &str,
        timeout: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let deadline = Instant::now() + timeout;
        loop {
            let value = match self.get(&format!("/jobs/{job}")).await {
                Ok(value) if wanted(&value) => return Ok(value),
                Ok(value) => value,
                Err(e) => Value::String(e.to_string()),
            };
            if Instant::now() > deadline {
                bail!("job {job} is not in the wanted state after {timeout:?}: {value:#}");
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until a job is settled: it has ended, and its bill is in the ledger. Returns the job.
    pub async fn wait_until_settled(&self, job: &str) -> anyhow::Result<Value> {
        self.wait_for(job, Duration::from_secs(60), |job| job["settled"] == true).await
    }
}
