//! The documents of an image, as far as the worker reads them: the index of its platforms, its manifest and its
//! configuration (<https://github.com/opencontainers/image-spec>).

use bytes::Bytes;
use gpubnb_events::spec::{ImageName, is_digest};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{FetchError, registry::Registry};

/// Most layers of an image. Docker can mount no more.
pub(super) const MAX_LAYERS: usize = 127;
/// Largest document, bytes.
const MAX_DOCUMENT: usize = 4 << 20;
/// The kinds of manifests and indexes that the worker reads.
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                        application/vnd.docker.distribution.manifest.list.v2+json, \
                        application/vnd.docker.distribution.manifest.v2+json";

/// A reference to another part of the image.
#[derive(Debug, Deserialize)]
#[serde(try_from = "RawDescriptor")]
pub(super) struct Descriptor {
    /// SHA-256, as 64 hexadecimal digits in small letters.
    pub(super) digest: String,
    /// Bytes.
    pub(super) size: u64,
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
pub(super) struct ImageManifest {
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

/// The configuration of an image.
pub(super) struct ImageConfig {
    pub(super) bytes: Bytes,
    /// The digests of the unpacked layers, as Docker names them.
    pub(super) diff_ids: Vec<String>,
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
pub(super) async fn read_manifest(registry: &mut Registry, name: &ImageName<'_>) -> Result<ImageManifest, FetchError> {
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
            let entry = for_this_platform(manifests).ok_or(FetchError::OtherPlatform(architecture()))?;
            let path = format!("manifests/sha256:{}", entry.digest);
            let bytes = registry.document(&path, ACCEPTED, MAX_DOCUMENT).await?;
            registry.check_digest(&entry.digest, &Sha256::digest(&bytes))?;
            let Document::Manifest(manifest) = parse(&bytes)? else { return Err(FetchError::Malformed) };
            manifest
        }
    };
    if manifest.layers.len() > MAX_LAYERS { Err(FetchError::TooMany) } else { Ok(manifest) }
}

fn parse(bytes: &[u8]) -> Result<Document, FetchError> {
    serde_json::from_slice(bytes).map_err(|_| FetchError::Malformed)
}

fn for_this_platform(manifests: Vec<IndexEntry>) -> Option<Descriptor> {
    let fits = |platform: &Platform| platform.os == "linux" && platform.architecture == architecture();
    manifests.into_iter().find(|entry| entry.platform.as_ref().is_some_and(fits)).map(|entry| entry.descriptor)
}

/// Reads the configuration of an image.
pub(super) async fn read_config(registry: &mut Registry, manifest: &ImageManifest) -> Result<ImageConfig, FetchError> {
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
    let config: Config = serde_json::from_slice(&bytes).map_err(|_| FetchError::Malformed)?;
    if config.architecture != architecture() || config.os != "linux" {
        return Err(FetchError::OtherPlatform(architecture()));
    }
    let diff_ids = config.rootfs.diff_ids;
    if diff_ids.len() == manifest.layers.len() {
        Ok(ImageConfig { bytes, diff_ids })
    } else {
        Err(FetchError::Malformed)
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
            assert!(matches!(parse(manifest.to_string().as_bytes()), Err(FetchError::Malformed)), "{bad}");
        }
        assert!(parse(b"{}").is_err() && parse(b"").is_err() && parse(b"[]").is_err());
    }
}
