//! The HTTP client for the market's edge, which is the market's public web server. The client enrolls this machine and
//! renews its credential for the broker.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, bail};
use gpubnb_events::{
    MachineId,
    command::{Challenge, MachineCredential, RedeemEnrollment, RenewCredential},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::identity::MachineKeys;

/// Longest time of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// An enrolled machine's access to the broker.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct BrokerAccess {
    #[serde(flatten)]
    pub(crate) credential: MachineCredential,
    /// Address of the broker.
    pub(crate) broker: String,
    #[serde(default)]
    /// Certificate (PEM) of the authority that signed the broker's certificate; `None` for a public authority.
    pub(crate) broker_authority: Option<String>,
}

/// The edge refused a request. A later try would be refused, too.
#[derive(Debug, thiserror::Error)]
#[error("{title}: {detail}")]
pub(crate) struct EdgeRefusal {
    pub(crate) title: String,
    pub(crate) detail: String,
}

/// The body of an error response (RFC 9457).
#[derive(Deserialize)]
struct ProblemBody {
    title: String,
    detail: String,
}

/// The market's challenge (a nonce) with the machine's signature, base64url.
#[derive(Serialize)]
struct SignedChallenge {
    nonce: String,
    signature: String,
}

/// A client for the market's edge.
#[derive(Clone)]
pub(crate) struct MarketClient {
    client: reqwest::Client,
    url: String,
}

/// Makes an HTTP client for the market at `url`. The client trusts the public authorities, and the authority whose
/// certificate (PEM) is in the file `authority`.
pub(crate) fn http_client(url: &str, authority: Option<&Path>) -> anyhow::Result<reqwest::Client> {
    if !url.contains("://") {
        bail!("{url} is not the address of a market: write https://{url}, or http://{url} for one on this machine");
    }
    // The call fails if a library has already installed a provider of cryptography. That provider is as good.
    drop(rustls::crypto::ring::default_provider().install_default());
    let mut builder = reqwest::Client::builder().connect_timeout(Duration::from_secs(5));
    if let Some(path) = authority {
        let pem = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        builder = builder.tls_certs_merge(reqwest::Certificate::from_pem_bundle(&pem)?);
    }
    if url.starts_with("http://") {
        // Plain HTTP needs no authorities. A minimal system has none, and `build` could fail without this line.
        builder = builder.tls_certs_only([]);
    }
    Ok(builder.build()?)
}

impl MarketClient {
    pub(crate) fn new(client: reqwest::Client, url: &str) -> Self {
        Self { client, url: url.trim_end_matches('/').to_owned() }
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &(impl Serialize + Sync)) -> anyhow::Result<T> {
        let url = format!("{}/api/v1{path}", self.url);
        let body = serde_json::to_vec(body)?;
        let request =
            self.client.post(&url).timeout(REQUEST_TIMEOUT).header("content-type", "application/json").body(body);
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
    pub(crate) async fn enroll(
        &self,
        keys: &MachineKeys,
        machine: MachineId,
        code: &str,
    ) -> anyhow::Result<BrokerAccess> {
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
    pub(crate) async fn renew(&self, keys: &MachineKeys, machine: MachineId) -> anyhow::Result<BrokerAccess> {
        let empty = serde_json::Map::new();
        let challenge: Challenge = self.post(&format!("/machines/{machine}/challenge"), &empty).await?;
        let mut renew = RenewCredential { machine, nonce: challenge.nonce, signature: String::new() };
        renew.signature = keys.sign(&renew.signed_text())?;
        let signed = SignedChallenge { nonce: renew.nonce, signature: renew.signature };
        self.post(&format!("/machines/{machine}/credential"), &signed).await
    }
}
