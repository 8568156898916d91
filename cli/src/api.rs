//! A client of the market's public API. The text of a refusal comes from the market.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, bail};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;

use crate::saved::SavedLogin;

/// Time limit for one request.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Most tries of a request that may be repeated.
const MAX_TRIES: u32 = 8;
/// First and longest pause between two tries, if the market does not ask for another.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// A client of one market.
#[derive(Clone)]
pub(crate) struct Api {
    client: Client,
    pub(crate) url: String,
    /// True if an option, the environment or a login names the market.
    is_chosen: bool,
    token: Option<String>,
}

impl Api {
    /// A client of a market. Without `url`, the address is that of the saved login. Without `token`, the token is that
    /// of the saved login, if the address is the same. `ca` is a PEM file.
    pub(crate) fn new(
        saved: Option<SavedLogin>,
        url: Option<&str>,
        token: Option<String>,
        ca: Option<&Path>,
    ) -> anyhow::Result<Self> {
        // This fails only if a provider is already installed, and any provider will do.
        drop(rustls::crypto::ring::default_provider().install_default());
        let mut builder = Client::builder().connect_timeout(Duration::from_secs(5));
        if let Some(path) = ca {
            let pem = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
            builder = builder.tls_certs_merge(reqwest::Certificate::from_pem_bundle(&pem)?);
        }
        let login = saved.filter(|s| url.is_none_or(|url| url.trim_end_matches('/') == s.url));
        let url = url.map(|u| u.trim_end_matches('/').to_owned()).or_else(|| login.as_ref().map(|s| s.url.clone()));
        let is_chosen = url.is_some();
        let url = url.unwrap_or_else(|| "http://127.0.0.1:8080".to_owned());
        if !url.contains("://") {
            bail!("{url} is not the address of a market: write https://{url}, or http://{url} for a local market");
        }
        if url.starts_with("http://") {
            // Plain HTTP needs no certificates, and a small system may have none installed.
            builder = builder.tls_certs_only([]);
        }
        Ok(Self { client: builder.build()?, url, is_chosen, token: token.or(login.map(|s| s.token)) })
    }

    /// The same client without a token.
    pub(crate) fn without_token(&self) -> Self {
        Self { token: None, ..self.clone() }
    }

    /// Makes a request to a path below `/api/v1`.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}/api/v1{path}", self.url));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Sends a request. Fails if the status of the answer is not a success.
    pub(crate) async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let response = request.send().await.with_context(|| {
            if !self.is_chosen {
                let name_it =
                    "name the market with --url https://THE.MARKET, or sign in: gpubnb login YOU@EXAMPLE.COM --url …";
                return format!("no market is named, and {} does not answer: {name_it}", self.url);
            }
            format!("{} does not answer. Is this the market's address? --url or GPUBNB_URL names another", self.url)
        })?;
        self.accept(response).await
    }

    /// Fails if the status of an answer is not a success. The text of the error is the market's.
    async fn accept(&self, response: Response) -> anyhow::Result<Response> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let response_is_about_a_password = response.url().path().ends_with("/api/v1/login");
        let problem: Value = response.json().await.unwrap_or_default();
        let text = |name: &str| problem[name].as_str().unwrap_or_default().to_owned();
        if status.as_u16() == 401 && response_is_about_a_password {
            bail!("{}", text("detail"));
        }
        if status.as_u16() == 401 && self.token.is_none() {
            bail!("log in first: gpubnb login <e-mail address> --url {}", self.url);
        }
        if status.as_u16() == 401 {
            bail!("{} Log in again: gpubnb login <e-mail address> --url {}", text("detail"), self.url);
        }
        match problem["field"].as_str() {
            Some(field) => bail!("{} ({field}): {}", text("title"), text("detail")),
            None if problem["detail"].is_string() => bail!("{}: {}", text("title"), text("detail")),
            None => bail!("{} answered {status}", self.url),
        }
    }

    /// Sends a request that may be repeated without harm. Tries again while the market does not answer, has an error of
    /// its own, or asks to wait.
    pub(crate) async fn send_repeatedly(&self, request: impl Fn() -> RequestBuilder) -> anyhow::Result<Response> {
        let mut pause = FIRST_PAUSE;
        for _ in 1..MAX_TRIES {
            let wait = match request().send().await {
                Ok(response) if response.status() == StatusCode::TOO_MANY_REQUESTS => {
                    let asked =
                        response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
                    asked.map_or(pause, Duration::from_secs).min(LONGEST_PAUSE * 4)
                }
                // Room comes back after days, not after seconds.
                Ok(response)
                    if !response.status().is_server_error()
                        || response.status() == StatusCode::INSUFFICIENT_STORAGE =>
                {
                    return self.accept(response).await;
                }
                Ok(_) => pause,
                // No connection, after several pauses: the address may be wrong, and then more tries do not help.
                Err(e) if e.is_connect() && pause > FIRST_PAUSE * 4 => break,
                Err(_) => pause,
            };
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.send(request()).await
    }

    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let request = || self.request(Method::GET, path).timeout(REQUEST_TIMEOUT);
        Ok(self.send_repeatedly(request).await?.json().await?)
    }

    /// The document in which the market publishes the keys that sign its log. The request needs no token.
    pub(crate) async fn published(&self) -> anyhow::Result<Value> {
        let request = self.client.get(format!("{}/.well-known/gpubnb.json", self.url)).timeout(REQUEST_TIMEOUT);
        Ok(self.send(request).await?.json().await?)
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        Ok(self.send(self.request(Method::POST, path).timeout(REQUEST_TIMEOUT).json(body)).await?.json().await?)
    }
}
