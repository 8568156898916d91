//! The JSON API, as a program uses it.

use std::time::Duration;

use anyhow::{Context as _, bail};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio::time::{Instant, sleep};

/// A client of one market.
#[derive(Clone)]
pub struct Web {
    client: reqwest::Client,
    /// Address of the web server.
    pub url: String,
}

impl Web {
    /// Of the market at an address.
    pub fn new(url: &str) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).build()?;
        Ok(Self { client, url: url.to_owned() })
    }

    /// One request of the API, below `/api/v1`.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(StatusCode, Value)> {
        let mut request = self.client.request(method, format!("{}/api/v1{path}", self.url));
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await?;
        let status = response.status();
        let text = response.text().await?;
        let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok((status, value))
    }

    /// Reads.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        match self.request(Method::GET, path, None).await? {
            (status, value) if status.is_success() => Ok(value),
            (status, value) => bail!("GET {path}: {status} {value}"),
        }
    }

    /// Does.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        match self.request(Method::POST, path, Some(body)).await? {
            (status, value) if status.is_success() => Ok(value),
            (status, value) => bail!("POST {path}: {status} {value}"),
        }
    }

    /// The bytes of a page or a file.
    pub async fn bytes(&self, path: &str) -> anyhow::Result<(StatusCode, Vec<u8>)> {
        let response = self.client.get(format!("{}{path}", self.url)).send().await?;
        Ok((response.status(), response.bytes().await?.to_vec()))
    }

    /// Submits a job and opens its live page.
    pub async fn submit_and_watch(&self, body: &Value) -> anyhow::Result<(String, reqwest::Response)> {
        let submitted = self.post("/jobs", body).await?;
        let job = submitted["job"].as_str().context("an answer without a job")?.to_owned();
        let url = format!("{}/jobs/{job}/live?seq={}", self.url, submitted["seq"]);
        // For as long as the page stays open.
        let page = self.client.get(url).timeout(Duration::from_secs(600)).send().await?.error_for_status()?;
        Ok((job, page))
    }

    /// Submits a job and returns its id.
    pub async fn submit(&self, body: &Value) -> anyhow::Result<String> {
        let submitted = self.post("/jobs", body).await?;
        Ok(submitted["job"].as_str().context("an answer without a job")?.to_owned())
    }

    /// Waits until a job is as wanted, and returns it.
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
