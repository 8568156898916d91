//! The requests to one registry, by the specification of distribution
//! (<https://github.com/opencontainers/distribution-spec/blob/main/spec.md>) and of its tokens
//! (<https://distribution.github.io/distribution/spec/auth/token/>). Every connection goes over the dialer: to the
//! registry, to the server of tokens that the registry names, and to each redirect.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use gpubnb_dialer::Dialer;
use reqwest::{
    Response, StatusCode, Url,
    header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, HeaderValue, LOCATION, RANGE, WWW_AUTHENTICATE},
};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tracing::debug;

use crate::{Descriptor, RegistryError};

/// Longest time without a byte from a server.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Most redirects of a request.
const MAX_REDIRECTS: usize = 5;
/// Most tries of a layer in a row that bring no byte, and half of the pause after the first try. Each further pause is
/// twice as long as the one before: 1 s, 2 s and so on up to 32 s, which is a minute in total.
const TRIES: u32 = 7;
const PAUSE_UNIT: Duration = Duration::from_millis(500);
/// Largest answer with a token, bytes.
const MAX_TOKEN: usize = 64 << 10;

/// One repository of a registry.
pub struct Registry {
    dialer: Dialer,
    /// The address of the registry: `https://ghcr.io/`.
    base: Url,
    /// The registry's name for people.
    name: String,
    repository: String,
    token: Option<HeaderValue>,
}

impl Registry {
    /// The repository `repository` at the address `base`. `name` is the registry's name for people.
    pub fn new(dialer: Dialer, base: Url, name: &str, repository: &str) -> Self {
        Self { dialer, base, name: name.to_owned(), repository: repository.to_owned(), token: None }
    }

    /// A document, of at most `max` bytes.
    pub async fn document(&mut self, path: &str, accept: &str, max: usize) -> Result<Bytes, RegistryError> {
        let response = self.get(path, accept, 0).await?;
        let broken = |source| RegistryError::BrokenOff { registry: self.name.clone(), source };
        read_body(response, max).await.map_err(broken)?.ok_or(RegistryError::Malformed)
    }

    /// A document whose digest is known.
    pub async fn blob(&mut self, descriptor: &Descriptor, max: usize) -> Result<Bytes, RegistryError> {
        let bytes = self.document(&format!("blobs/sha256:{}", descriptor.digest), "*/*", max).await?;
        self.check_digest(&descriptor.digest, &Sha256::digest(&bytes))?;
        Ok(bytes)
    }

    /// Compares a computed digest with the named one.
    pub fn check_digest(&self, named: &str, computed: &[u8]) -> Result<(), RegistryError> {
        let is_same = data_encoding::HEXLOWER.encode(computed) == named;
        if is_same { Ok(()) } else { Err(RegistryError::WrongDigest(self.name.clone())) }
    }

    /// Reads a layer.
    pub fn layer<'a>(&'a mut self, layer: &'a Descriptor) -> LayerReader<'a> {
        LayerReader { registry: self, layer, position: 0, hash: Sha256::new(), failures: 0, response: None }
    }

    /// Requests a part of the repository, from the byte `position` on.
    async fn get(&mut self, path: &str, accept: &str, position: u64) -> Result<Response, RegistryError> {
        let url = self.base.join(&format!("v2/{}/{path}", self.repository)).map_err(|_| RegistryError::Malformed)?;
        let mut response = self.follow(url.clone(), accept, position).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            self.token = Some(self.request_token(&response).await?);
            response = self.follow(url, accept, position).await?;
        }
        match response.status() {
            status if status.is_success() => Ok(response),
            StatusCode::NOT_FOUND => Err(RegistryError::NoSuchImage(self.name.clone())),
            // The registry has fewer bytes of the layer than its manifest says.
            StatusCode::RANGE_NOT_SATISFIABLE => Err(RegistryError::WrongDigest(self.name.clone())),
            // Only the registry itself knows whether the image is public. Another server, behind a redirect, may refuse
            // this machine's address or country, which counts as `Unavailable`.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if response.url().host() == self.base.host() => {
                Err(RegistryError::Denied(self.name.clone()))
            }
            StatusCode::TOO_MANY_REQUESTS => Err(RegistryError::Limited(self.name.clone())),
            _ => Err(RegistryError::Unavailable(self.name.clone())),
        }
    }

    /// Requests an address, and follows its redirects. Only the registry itself gets the token.
    async fn follow(&self, mut url: Url, accept: &str, position: u64) -> Result<Response, RegistryError> {
        let mut token = self.token.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.dial(url.clone()).await?.header(ACCEPT, accept);
            if let Some(token) = token.take() {
                request = request.header(AUTHORIZATION, token);
            }
            if position > 0 {
                request = request.header(RANGE, format!("bytes={position}-"));
            }
            let response = request.send().await.map_err(|e| self.unreachable(&e))?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION).and_then(|to| to.to_str().ok());
            url = location.and_then(|to| url.join(to).ok()).ok_or_else(|| self.unavailable())?;
        }
        Err(self.unavailable())
    }

    /// Gets a token from the server that the registry names in its answer.
    async fn request_token(&self, answer: &Response) -> Result<HeaderValue, RegistryError> {
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            /// The token by another name. Some servers send both.
            access_token: Option<String>,
        }
        let denied = || RegistryError::Denied(self.name.clone());
        let realm = self.token_url(answer).ok_or_else(denied)?;
        let response = self.dial(realm).await?.send().await.map_err(|e| self.unreachable(&e))?;
        match response.status() {
            status if status.is_success() => {}
            status if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => return Err(denied()),
            StatusCode::TOO_MANY_REQUESTS => return Err(RegistryError::Limited(self.name.clone())),
            _ => return Err(self.unavailable()),
        }
        let body = read_body(response, MAX_TOKEN).await.map_err(|e| self.unreachable(&e))?.ok_or_else(denied)?;
        let found = serde_json::from_slice::<Token>(&body).ok();
        let token = found.and_then(|found| found.token.or(found.access_token)).ok_or_else(denied)?;
        HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| denied())
    }

    /// The address at which the registry says that it gives tokens.
    fn token_url(&self, answer: &Response) -> Option<Url> {
        let offered = answer.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok());
        let mut challenges = offered.filter_map(|text| http_auth::parse_challenges(text).ok()).flatten();
        let bearer = challenges.find(|challenge| challenge.scheme.eq_ignore_ascii_case("bearer"))?;
        let param = |name: &str| {
            let found = bearer.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.to_unescaped())
        };
        let mut url = Url::parse(&param("realm")?).ok()?;
        let scope = param("scope").unwrap_or_else(|| format!("repository:{}:pull", self.repository));
        url.query_pairs_mut().append_pair("scope", &scope);
        if let Some(service) = param("service") {
            url.query_pairs_mut().append_pair("service", &service);
        }
        Some(url)
    }

    /// A request over the dialer. A registry that speaks HTTPS cannot lead to an address without HTTPS.
    async fn dial(&self, url: Url) -> Result<reqwest::RequestBuilder, RegistryError> {
        let is_safe = url.scheme() == "https" || (url.scheme() == "http" && self.base.scheme() == "http");
        if !is_safe {
            return Err(self.unavailable());
        }
        Ok(self.dialer.get(url, READ_TIMEOUT).await?)
    }

    fn unavailable(&self) -> RegistryError {
        RegistryError::Unavailable(self.name.clone())
    }

    /// A request without an answer. The cause is only logged here: its text may tell of the machine's network.
    fn unreachable(&self, e: &reqwest::Error) -> RegistryError {
        debug!(registry = self.name, error = ?e, "no answer");
        self.unavailable()
    }
}

/// Reads a layer. If the connection breaks off, the reader continues with the first missing byte.
pub struct LayerReader<'a> {
    registry: &'a mut Registry,
    layer: &'a Descriptor,
    position: u64,
    hash: Sha256,
    /// The tries in a row that brought no byte.
    failures: u32,
    /// The answer that is being read, and how many of its next bytes the reader has already, from an earlier answer.
    response: Option<(Response, u64)>,
}

impl LayerReader<'_> {
    /// The next bytes of the layer; `None` at its end. The end is an error if the bytes have another digest.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        while self.position < self.layer.size {
            let chunk = match &mut self.response {
                None => {
                    match self.request().await {
                        Err(e) if self.position > 0 && e.may_pass() => self.wait_after_failure(e).await?,
                        requested => requested?,
                    }
                    continue;
                }
                Some((response, _)) => response.chunk().await,
            };
            match chunk {
                Ok(Some(chunk)) => {
                    let new = self.without_known(chunk);
                    if !new.is_empty() {
                        self.hash.update(&new);
                        (self.position, self.failures) = (self.position + new.len() as u64, 0);
                        return Ok(Some(new));
                    }
                }
                // The server ended the layer too early.
                Ok(None) => self.wait_after_failure(RegistryError::WrongDigest(self.registry.name.clone())).await?,
                Err(source) => {
                    let registry = self.registry.name.clone();
                    self.wait_after_failure(RegistryError::BrokenOff { registry, source }).await?;
                }
            }
        }
        self.registry.check_digest(&self.layer.digest, &self.hash.clone().finalize())?;
        Ok(None)
    }

    async fn request(&mut self) -> Result<(), RegistryError> {
        let path = format!("blobs/sha256:{}", self.layer.digest);
        let response = self.registry.get(&path, "*/*", self.position).await?;
        // A server that knows no ranges sends the layer from its beginning.
        let known = match response.status() {
            StatusCode::PARTIAL_CONTENT if first_byte(&response) != Some(self.position) => {
                return Err(self.registry.unavailable());
            }
            StatusCode::PARTIAL_CONTENT => 0,
            _ => self.position,
        };
        self.response = Some((response, known));
        Ok(())
    }

    /// The part of a chunk that was not read before and that belongs to the layer.
    fn without_known(&mut self, mut chunk: Bytes) -> Bytes {
        if let Some((_, known)) = &mut self.response {
            let skip = usize::try_from(*known).unwrap_or(usize::MAX).min(chunk.len());
            drop(chunk.split_to(skip));
            *known -= skip as u64;
        }
        chunk.truncate(usize::try_from(self.layer.size - self.position).unwrap_or(usize::MAX));
        chunk
    }

    /// Waits before the next try, or ends the tries.
    async fn wait_after_failure(&mut self, failure: RegistryError) -> Result<(), RegistryError> {
        (self.response, self.failures) = (None, self.failures + 1);
        debug!(registry = self.registry.name, failures = self.failures, error = ?failure, "a layer broke off");
        if self.failures >= TRIES {
            return Err(failure);
        }
        tokio::time::sleep(PAUSE_UNIT * 2_u32.pow(self.failures)).await;
        Ok(())
    }
}

/// The position of the first byte of a partial answer.
fn first_byte(response: &Response) -> Option<u64> {
    let range = response.headers().get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    range.split_once('-')?.0.parse().ok()
}

/// Reads an answer of at most `max` bytes; `None` if the answer is longer.
async fn read_body(mut response: Response, max: usize) -> Result<Option<Bytes>, reqwest::Error> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > max {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body.freeze()))
}
