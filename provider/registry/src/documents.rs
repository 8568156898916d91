//! The documents of an image, as far as they are read here: the index of its platforms, its manifest and its
//! configuration (<https://github.com/opencontainers/image-spec>).

use std::collections::BTreeSet;

use bytes::Bytes;
use gpubnb_events::spec::{ImageName, is_digest};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::{Registry, RegistryError};

/// Most layers of an image. Docker can mount no more.
pub const MAX_LAYERS: usize = 127;
/// Most variants of an index that are told.
const MAX_VARIANTS: usize = 32;
/// Largest document, bytes.
const MAX_DOCUMENT: usize = 4 << 20;
/// The kinds of manifests and indexes that are read.
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                        application/vnd.docker.distribution.manifest.list.v2+json, \
                        application/vnd.docker.distribution.manifest.v2+json";

/// A reference to another part of the image.
#[derive(Debug, Deserialize)]
#[serde(try_from = "RawDescriptor")]
pub struct Descriptor {
    /// SHA-256, as 64 hexadecimal digits in small letters.
    pub digest: String,
    /// Bytes.
    pub size: u64,
}

#[derive(Deserialize)]
struct RawDescriptor {
    digest: String,
    size: u64,
}

impl TryFrom<RawDescriptor> for Descriptor {
    type Error = &'static str;

    fn try_from(raw: RawDescriptor) -> Result<Self, Self::Error> {
        let digest = raw.digest.strip_prefix("sha256:").ok_or("another digest than SHA-256")?;
        // The digest becomes a part of a path.
        if is_digest(digest) { Ok(Self { digest: digest.to_owned(), size: raw.size }) } else { Err("no digest") }
    }
}

/// The manifest of an image for one platform.
#[derive(Debug, Deserialize)]
pub struct ImageManifest {
    /// The configuration.
    pub config: Descriptor,
    /// The layers, the lowest first.
    pub layers: Vec<Descriptor>,
}

/// The configuration of an image.
pub struct ImageConfig {
    /// The document as the registry sent it.
    pub bytes: Bytes,
    /// The digests of the unpacked layers, as Docker names them.
    pub diff_ids: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Document {
    Index { manifests: Vec<IndexEntry> },
    Manifest(ImageManifest),
}

#[derive(Deserialize)]
struct IndexEntry {
    #[serde(flatten)]
    descriptor: Descriptor,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// This machine's architecture, in the words of images.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Reads the manifest of an image for this machine's platform.
pub async fn read_manifest(registry: &mut Registry, name: &ImageName<'_>) -> Result<ImageManifest, RegistryError> {
    let reference = match name.digest {
        Some(digest) => format!("sha256:{digest}"),
        None => name.tag.unwrap_or("latest").to_owned(),
    };
    let first = registry.document(&format!("manifests/{reference}"), ACCEPTED, MAX_DOCUMENT).await?;
    if let Some(digest) = name.digest {
        registry.check_digest(digest, &Sha256::digest(&first))?;
    }
    let manifest = match parse(&first)? {
        Document::Manifest(manifest) => manifest,
        Document::Index { manifests } => {
            let entry = for_this_platform(manifests).ok_or(RegistryError::OtherPlatform(architecture()))?;
            let path = format!("manifests/sha256:{}", entry.digest);
            let bytes = registry.document(&path, ACCEPTED, MAX_DOCUMENT).await?;
            registry.check_digest(&entry.digest, &Sha256::digest(&bytes))?;
            let Document::Manifest(manifest) = parse(&bytes)? else { return Err(RegistryError::Malformed) };
            manifest
        }
    };
    if manifest.layers.len() > MAX_LAYERS { Err(RegistryError::TooManyLayers) } else { Ok(manifest) }
}

/// An image that is named by its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// SHA-256 of the image's index, or of its manifest: 64 hexadecimal digits in small letters.
    pub digest: String,
    /// The architectures of the index' Linux variants, such as `amd64`; empty for an image of one platform, which only
    /// its configuration tells.
    pub architectures: Vec<String>,
}

/// Finds the digest behind a tag. The digest is computed here, from the document that the registry sends.
pub async fn pin(registry: &mut Registry, tag: &str) -> Result<Pinned, RegistryError> {
    let bytes = registry.document(&format!("manifests/{tag}"), ACCEPTED, MAX_DOCUMENT).await?;
    let architectures = match parse(&bytes)? {
        Document::Manifest(_) => Vec::new(),
        Document::Index { manifests } => {
            let platforms = manifests.into_iter().filter_map(|entry| entry.platform).filter(|p| p.os == "linux");
            let known: BTreeSet<_> = platforms.map(|p| p.architecture).filter(|name| is_architecture(name)).collect();
            known.into_iter().take(MAX_VARIANTS).collect()
        }
    };
    Ok(Pinned { digest: data_encoding::HEXLOWER.encode(&Sha256::digest(&bytes)), architectures })
}

/// True for a name such as `amd64`. The names come from a stranger's server, and are shown and remembered.
fn is_architecture(name: &str) -> bool {
    (1..=16).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

fn parse(bytes: &[u8]) -> Result<Document, RegistryError> {
    serde_json::from_slice(bytes).map_err(|_| RegistryError::Malformed)
}

fn for_this_platform(manifests: Vec<IndexEntry>) -> Option<Descriptor> {
    let fits = |platform: &Platform| platform.os == "linux" && platform.architecture == architecture();
    manifests.into_iter().find(|entry| entry.platform.as_ref().is_some_and(fits)).map(|entry| entry.descriptor)
}

/// Reads the configuration of an image.
pub async fn read_config(registry: &mut Registry, manifest: &ImageManifest) -> Result<ImageConfig, RegistryError> {
    #[derive(Deserialize)]
    struct Config {
        architecture: String,
        os: String,
        rootfs: RootFs,
    }
    #[derive(Deserialize)]
    struct RootFs {
        diff_ids: Vec<String>,
    }
    let bytes = registry.blob(&manifest.config, MAX_DOCUMENT).await?;
    let config: Config = serde_json::from_slice(&bytes).map_err(|_| RegistryError::Malformed)?;
    if config.architecture != architecture() || config.os != "linux" {
        return Err(RegistryError::OtherPlatform(architecture()));
    }
    let diff_ids = config.rootfs.diff_ids;
    if diff_ids.len() == manifest.layers.len() {
        Ok(ImageConfig { bytes, diff_ids })
    } else {
        Err(RegistryError::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn digest(c: char) -> String {
        format!("sha256:{}", c.to_string().repeat(64))
    }

    #[test]
    fn the_manifest_of_this_platform_is_chosen() {
        let entry = |c: char, os: &str, architecture: &str| {
            let platform = json!({ "os": os, "architecture": architecture });
            json!({ "digest": digest(c), "size": 7, "platform": platform })
        };
        let unknown = json!({ "digest": digest('0'), "size": 7 });
        let index = |entries: serde_json::Value| {
            let bytes = serde_json::to_vec(&json!({ "manifests": entries })).unwrap();
            let Ok(Document::Index { manifests }) = parse(&bytes) else { panic!("no index") };
            for_this_platform(manifests).map(|found| found.digest)
        };
        let ours = entry('a', "linux", architecture());
        assert_eq!(index(json!([unknown, entry('b', "linux", "s390x"), ours])), Some("a".repeat(64)));
        assert_eq!(index(json!([unknown, entry('b', "windows", architecture())])), None);
    }

    #[test]
    fn a_document_with_a_digest_that_is_no_digest_is_refused() {
        for bad in ["sha512:00", "sha256:00", "sha256:../../../../etc/passwd", "", &digest('A'), &digest('g')] {
            let manifest = json!({ "config": { "digest": bad, "size": 1 }, "layers": [] });
            assert!(matches!(parse(manifest.to_string().as_bytes()), Err(RegistryError::Malformed)), "{bad}");
        }
        assert!(parse(b"{}").is_err() && parse(b"").is_err() && parse(b"[]").is_err());
    }
}
