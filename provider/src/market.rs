//! The client for the market's edge, over HTTP: enrolls this machine and renews its credential.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, bail};
use gpubnb_events::{
    MachineId,
    command::{Challenge, MachineCredential, RedeemEnrollment, RenewCredential},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::identity::Keys;

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// The market's answer to an enrolled machine: its credential, and where the broker is.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Enrolled {
    #[serde(flatten)]
    pub(crate) credential: MachineCredential,
    pub(crate) broker: String,
    #[serde(default)]
    pub(crate) broker_authority: Option<String>,
}

/// The edge refused a request.
#[derive(Debug, thiserror::Error)]
#[error("{title}: {detail}")]
pub(crate) struct EdgeRefusal {
    pub(crate) title: String,
    pub(crate) detail: String,
}

/// The body of an answer that is an error (RFC 9457).
#[derive(Deserialize)]
struct ProblemBody {
    title: String,
    detail: String,
}

/// The answer to a challenge.
#[derive(Serialize)]
struct SignedChallenge {
    nonce: String,
    signature: String,
}

/// A client for the market's edge.
#[derive(Clone)]
pub(crate) struct Market {
    client: reqwest::Client,
    url: String,
}

/// An HTTP client for a market. It trusts the public authorities and the given one.
pub(crate) fn http(url: &str, authority: Option<&Path>) -> anyhow::Result<reqwest::Client> {
    if !url.contains("://") {
        bail!("{url} is not the address of a market: write https://{url}, or http://{url} for one on this machine");
    }
    // The call fails where another library of this process has installed a provider, which does as well.
    drop(rustls::crypto::ring::default_provider().install_default());
    let mut builder = reqwest::Client::builder().connect_timeout(Duration::from_secs(5));
    if let Some(path) = authority {
        let pem = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        builder = builder.tls_certs_merge(reqwest::Certificate::from_pem_bundle(&pem)?);
    }
    if url.starts_with("http://") {
        // Without TLS no authority is needed, and a small system may have none.
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
            return serde_json::from_slice(&text).with_context(|| format!("the answer of {url} is not understood"));
        }
        match serde_json::from_slice::<ProblemBody>(&text) {
            Ok(ProblemBody { title, detail }) if status.is_client_error() && status.as_u16() != 429 => {
                Err(EdgeRefusal { title, detail }.into())
            }
            Ok(ProblemBody { title, detail }) => bail!("{title}: {detail}"),
            Err(_) => bail!("{url} answered {status}"),
        }
    }

    /// Enrolls the machine with a one-time code. Returns its first credential.
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

    /// Renews the credential by signing the market's challenge.
    pub(crate) async fn renew(&self, keys: &Keys, machine: MachineId) -> anyhow::Result<Enrolled> {
        let empty = serde_json::Map::new();
        let challenge: Challenge = self.post(&format!("/machines/{machine}/challenge"), &empty).await?;
        let mut renew = RenewCredential { machine, nonce: challenge.nonce, signature: String::new() };
        renew.signature = keys.sign(&renew.signed_text())?;
        let signed = SignedChallenge { nonce: renew.nonce, signature: renew.signature };
        self.post(&format!("/machines/{machine}/credential"), &signed).await
    }
}
