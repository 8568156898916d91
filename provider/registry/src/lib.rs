//! Reads images of container registries, of public addresses only (`gpubnb-dialer`): nobody who names an image can make
//! this process connect to a private network. The worker fetches images with this crate, and the web server finds the
//! digest behind a tag.
//!
//! - `registry.rs`: the requests to one registry: tokens, redirects, connections that break off.
//! - `documents.rs`: the index, the manifest and the configuration of an image.
//!
//! Belongs here: the protocol of registries. Must not come here: Docker, or a rule of the market.

mod documents;
mod registry;

use std::str::FromStr;

use gpubnb_dialer::{AllowedHost, DialError, Dialer};
use gpubnb_events::spec::{DEFAULT_REGISTRY, ImageName};
use reqwest::Url;

pub use self::{
    documents::{Descriptor, ImageConfig, ImageManifest, MAX_LAYERS, Pinned, pin, read_config, read_manifest},
    registry::{LayerReader, Registry},
};

/// A registry that the owner allows although its address may be private: `http://127.0.0.1:5000`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrivateRegistry {
    /// The registry in the names of its images: `127.0.0.1:5000`.
    pub name: String,
    url: Url,
}

impl FromStr for PrivateRegistry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_plain = |url: &Url| {
            let has_more = !url.username().is_empty() || url.password().is_some() || url.query().is_some();
            ["http", "https"].contains(&url.scheme()) && url.path() == "/" && !has_more && url.fragment().is_none()
        };
        let url = Url::parse(text).ok().filter(is_plain);
        let url = url.ok_or("a private registry is an address without a path: https://registry.lan:5000")?;
        let name = text.split_once("://").map_or(text, |(_, name)| name).trim_end_matches('/').to_owned();
        Ok(Self { name, url })
    }
}

/// The registries that images are read from.
#[derive(Debug, Clone)]
pub struct Registries {
    /// Connects to public addresses only.
    pub dialer: Dialer,
    /// The registries that may have private addresses.
    pub private: Vec<PrivateRegistry>,
}

impl Registries {
    /// The repository of an image.
    pub fn open(&self, name: &ImageName<'_>) -> Result<Registry, RegistryError> {
        if let Some(private) = self.private.iter().find(|private| private.name.eq_ignore_ascii_case(name.registry())) {
            let host = AllowedHost {
                host: private.url.host_str().unwrap_or_default().to_owned(),
                port: private.url.port_or_known_default().unwrap_or_default(),
            };
            return Ok(Registry::new(self.dialer.allowing(host), private.url.clone(), &private.name, name.repository));
        }
        // The registry of Docker has another address than its name says.
        let host = if is_on_docker_hub(name) { "registry-1.docker.io" } else { name.registry() };
        let repository = if is_on_docker_hub(name) && !name.repository.contains('/') {
            format!("library/{}", name.repository)
        } else {
            name.repository.to_owned()
        };
        let url = Url::parse(&format!("https://{host}/")).map_err(|_| RegistryError::Malformed)?;
        Ok(Registry::new(self.dialer.clone(), url, name.registry(), &repository))
    }
}

/// True for an image of Docker's own registry, which has two names.
pub fn is_on_docker_hub(name: &ImageName<'_>) -> bool {
    [DEFAULT_REGISTRY, "index.docker.io"].contains(&name.registry())
}

/// A failure to read an image. The texts are shown to the consumer. They contain nothing that a server answered: a
/// consumer could otherwise read answers of servers that only this machine can reach.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The registry cannot be connected to.
    #[error("the image cannot be fetched: {0}")]
    Dial(#[from] DialError),
    /// The registry has no such image.
    #[error("the registry {0} has no image of this name")]
    NoSuchImage(String),
    /// The registry gives the image to nobody without a password.
    #[error("the registry {0} gives this image to nobody without a password: make the image public")]
    Denied(String),
    /// The registry asks to wait.
    #[error("the registry {0} limits how much it serves; the job is tried again later")]
    Limited(String),
    /// The registry answered something else than an image.
    #[error("the registry {0} does not serve the image at the moment; the job is tried again later")]
    Unavailable(String),
    /// The connection to the registry broke off, again and again.
    #[error("the line to the registry {registry} broke off again and again; the job is tried again later")]
    BrokenOff {
        /// The registry.
        registry: String,
        /// The last error.
        source: reqwest::Error,
    },
    /// The bytes are others than the digest says.
    #[error("the registry {0} sent other bytes than the digest names: verification failed")]
    WrongDigest(String),
    /// A document or a layer of the image cannot be read.
    #[error("the image is malformed: its manifest, its configuration or a layer cannot be read")]
    Malformed,
    /// The image runs on other machines.
    #[error("the image has no variant for linux/{0}: build it for this platform, too")]
    OtherPlatform(&'static str),
    /// The image has too many layers.
    #[error("the image has too many layers: at most {MAX_LAYERS} are allowed")]
    TooManyLayers,
}

impl RegistryError {
    /// True for a failure that may pass within a minute.
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Dial(DialError::Unreachable { .. } | DialError::Unresolved { .. })
                | Self::Limited(_)
                | Self::Unavailable(_)
                | Self::BrokenOff { .. }
        )
    }

    /// True for a fault of the image itself, which no other machine and no other time mends.
    pub fn is_of_the_image(&self) -> bool {
        matches!(
            self,
            Self::NoSuchImage(_) | Self::Denied(_) | Self::WrongDigest(_) | Self::Malformed | Self::TooManyLayers
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_registry_is_an_address_without_a_path() {
        let name = |text: &str| text.parse::<PrivateRegistry>().ok().map(|registry| registry.name);
        assert_eq!(name("http://127.0.0.1:5000").as_deref(), Some("127.0.0.1:5000"));
        assert_eq!(name("https://registry.lan/").as_deref(), Some("registry.lan"));
        for refused in [
            "https://user:secret@registry.lan",
            "https://registry.lan/?a",
            "https://registry.lan/#a",
            "127.0.0.1:5000",
            "registry.lan",
            "ftp://registry.lan",
            "https://registry.lan/team",
            "",
        ] {
            assert_eq!(name(refused), None, "{refused}");
        }
    }
}
