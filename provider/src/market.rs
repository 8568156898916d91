//! The market's edge, over HTTP: enrolling this machine and renewing its credential.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, bail};
use gpubnb_events::{
    MachineId,
    command::{Challenge, MachineCredential, RedeemEnrollment, RenewCredential},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::identity::Keys;

const PATIENCE: Duration = Duration::from_secs(15);

/// What the market says to an enrolled machine.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Enrolled {
    #[serde(flatten)]
    pub(crate) credential: MachineCredential,
    pub(crate) broker: String,
    #[serde(default)]
    pub(crate) broker_authority: Option<String>,
}

/// A no of the edge, and its name.
#[derive(Debug, thiserror::Error)]
#[error("{title}: {detail}")]
pub(crate) struct Refused {
    pub(crate) title: String,
    pub(crate) detail: String,
}

#[derive(Deserialize)]
struct Problem {
    title: String,
    detail: String,
}

#[derive(Serialize)]
struct Signed {
    nonce: String,
    signature: String,
}

/// A client for the market's edge.
#[derive(Clone)]
pub(crate) struct Market {
    client: reqwest::Client,
    url: String,
}

/// An HTTP client for a market: trusts public authorities, and the one given besides.
pub(crate) fn http(url: &str, authority: Option<&Path>) -> anyhow::Result<reqwest::Client> {
    if !url.contains("://") {
        bail!("{url} is no address of a market: write https://{url}, or http://{url} for one on this machine");
    }
    // Another library in this process may have installed one: either is good.
    drop(rustls::crypto::ring::default_provider().install_default());
    let mut builder = reqwest::Client::builder().connect_timeout(Duration::from_secs(5));
    if let Some(path) = authority {
        let pem = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        builder = builder.tls_certs_merge(reqwest::Certificate::from_pem_bundle(&pem)?);
    }
    if url.starts_with("http://") {
        // Without TLS there is nobody to trust, and a small system may know no authority at all.
        builder = builder.tls_certs_only([]);
    }
    Ok(builder.build()?)
}

impl Market {
    pub(crate) fn new(client: reqwest::Client, url: &str) -> Self {
        Self { client, url: url.trim_end_matches('/').to_owned() }
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &(impl Serialize + Sync)) -> anyhow::Result<T> {
        let url = format!("{}/api/v1{path}", self.url);
        let body = serde_json::to_vec(body)?;
        let request = self.client.post(&url).timeout(PATIENCE).header("content-type", "application/json").body(body);
        let response = request.send().await.with_context(|| format!("{} does not answer", self.url))?;
        let status = response.status();
        let text = response.bytes().await?;
        if status.is_success() {
            return serde_json::from_slice(&text).with_context(|| format!("{url} answered something else"));
        }
        match serde_json::from_slice::<Problem>(&text) {
            Ok(Problem { title, detail }) if status.is_client_error() && status.as_u16() != 429 => {
                Err(Refused { title, detail }.into())
            }
            Ok(Problem { title, detail }) => bail!("{title}: {detail}"),
            Err(_) => bail!("{url} answered {status}"),
        }
    }

    /// Trades a code for a credential.
    pub(crate) async fn enroll(&self, keys: &Keys, machine: MachineId, code: &str) -> anyhow::Result<Enrolled> {
        let mut redeem = RedeemEnrollment {
            code: code.to_owned(),
            machine,
            public_key: keys.public_key(),
            sealing_key: keys.sealing.public_key(),
            signature: String::new(),
        };
        redeem.signature = keys.sign(&redeem.signed_text())?;
        self.post("/enroll", &redeem).await
    }

    /// Renews the credential by signing what the market asks to sign.
    pub(crate) async fn renew(&self, keys: &Keys, machine: MachineId) -> anyhow::Result<Enrolled> {
        let empty = serde_json::Map::new();
        let challenge: Challenge = self.post(&format!("/machines/{machine}/challenge"), &empty).await?;
        let mut renew = RenewCredential { machine, nonce: challenge.nonce, signature: String::new() };
        renew.signature = keys.sign(&renew.signed_text())?;
        let signed = Signed { nonce: renew.nonce, signature: renew.signature };
        self.post(&format!("/machines/{machine}/credential"), &signed).await
    }
}
