//! Fetches the image of a job from its registry, and loads the image into Docker. Docker itself never follows a name
//! that a consumer chose: the worker resolves the name and connects, to public addresses only (`gpubnb-dialer`).
//!
//! The crate `gpubnb-registry` has the requests to registries, and the documents of images.
//!
//! - `unpacked.rs`: the size of a layer's files after unpacking.
//! - `archive.rs`: the archive that Docker loads, made while the layers arrive.

mod archive;
mod unpacked;

use std::{collections::HashMap, time::Duration};

use bollard::Docker;
use gpubnb_events::{event::Reason, spec::ImageName};
use gpubnb_registry::{
    ImageConfig, ImageManifest, MAX_LAYERS, Registries, Registry, RegistryError, is_on_docker_hub, read_config,
    read_manifest,
};
use tokio::sync::watch;

use self::{
    archive::{Archive, load},
    unpacked::Unpacked,
};

/// Longest time to fetch an image.
const FETCH_TIMEOUT: Duration = Duration::from_secs(1_800);

/// Fetches images.
#[derive(Debug)]
pub(crate) struct ImageFetcher {
    pub(crate) registries: Registries,
    /// Largest image, bytes. The limit holds for the layers as they are sent, all together, and for the unpacked files.
    pub(crate) largest: u64,
}

/// How far a fetch has come, in bytes as they are sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FetchProgress {
    pub(crate) done: u64,
    pub(crate) total: u64,
}

/// The name by which Docker knows a fetched image: `ghcr.io/team/tool:sha256-…` for an image that is named by its
/// digest. Docker keeps no digest of an image that is loaded, so the digest becomes the tag.
pub(crate) fn local_name(name: &ImageName<'_>) -> String {
    // Docker has one name for `busybox`, `docker.io/busybox` and `docker.io/library/busybox`.
    let repository = if is_on_docker_hub(name) {
        name.repository.strip_prefix("library/").unwrap_or(name.repository).to_owned()
    } else {
        format!("{}/{}", name.registry(), name.repository)
    };
    match name.digest {
        Some(digest) => format!("{repository}:sha256-{digest}"),
        None => format!("{repository}:{}", name.tag.unwrap_or("latest")),
    }
}

/// The parts of an image that is about to be loaded.
struct ImageParts {
    local_name: String,
    manifest: ImageManifest,
    config: ImageConfig,
    /// The number of the lowest layers that Docker has.
    known: usize,
}

impl ImageParts {
    /// Sends the parts to the archive. The list of the parts comes last: without that list, Docker loads nothing.
    async fn send(
        &self,
        registry: &mut Registry,
        mut archive: Archive,
        mut unpacked: Unpacked,
        progress: &watch::Sender<FetchProgress>,
    ) -> Result<u64, FetchError> {
        archive.add_config(self.config.bytes.clone()).await?;
        // The size that each layer adds to the image, by the digest of the layer. A layer that the manifest lists twice
        // is sent once, and counts twice, because Docker unpacks it twice.
        let mut added: HashMap<&str, Unpacked> = HashMap::new();
        for (index, layer) in self.manifest.layers.iter().enumerate() {
            archive.name_layer(layer);
            if index < self.known {
                continue;
            }
            if let Some(again) = added.get(layer.digest.as_str()) {
                unpacked = unpacked.plus(*again)?;
                continue;
            }
            let after = archive.add_layer(registry, layer, unpacked, progress).await?;
            let named = self.config.diff_ids.get(index).and_then(|id| id.strip_prefix("sha256:"));
            if named != Some(after.digest.as_str()) {
                return Err(RegistryError::Malformed.into());
            }
            added.insert(&layer.digest, after.total.minus(unpacked));
            unpacked = after.total;
        }
        archive.finish().await?;
        Ok(unpacked.bytes)
    }
}

impl ImageFetcher {
    /// Fetches an image and loads it into Docker under its [`local_name`]. Returns the size of its files in bytes,
    /// without the layers that Docker already has.
    pub(crate) async fn fetch(
        &self,
        docker: &Docker,
        name: &ImageName<'_>,
        progress: &watch::Sender<FetchProgress>,
    ) -> Result<u64, FetchError> {
        let fetched = tokio::time::timeout(FETCH_TIMEOUT, self.fetch_all(docker, name, progress)).await;
        fetched.map_err(|_| FetchError::TooSlow)?
    }

    async fn fetch_all(
        &self,
        docker: &Docker,
        name: &ImageName<'_>,
        progress: &watch::Sender<FetchProgress>,
    ) -> Result<u64, FetchError> {
        let mut registry = self.registries.open(name)?;
        let manifest = read_manifest(&mut registry, name).await?;
        let config = read_config(&mut registry, &manifest).await?;
        let known = archive::known_layers(docker, &config.diff_ids).await?;
        let parts = ImageParts { local_name: local_name(name), manifest, config, known };
        match self.load_parts(docker, &mut registry, &parts, progress).await {
            // Docker may have removed a layer in the meantime.
            Err(FetchError::Docker(e)) if known > 0 && e.to_string().contains("no such file") => {
                self.load_parts(docker, &mut registry, &ImageParts { known: 0, ..parts }, progress).await
            }
            loaded => loaded,
        }
    }

    async fn load_parts(
        &self,
        docker: &Docker,
        registry: &mut Registry,
        parts: &ImageParts,
        progress: &watch::Sender<FetchProgress>,
    ) -> Result<u64, FetchError> {
        let new_layers = parts.manifest.layers.iter().skip(parts.known);
        let total = new_layers.map(|layer| layer.size).fold(0, u64::saturating_add);
        if total > self.largest {
            return Err(FetchError::PackedTooLarge { largest: self.largest });
        }
        let (archive, body) = Archive::new(parts.local_name.clone());
        progress.send_replace(FetchProgress { done: 0, total });
        load(docker, body, parts.send(registry, archive, Unpacked::new(self.largest), progress)).await
    }
}

/// A failure to fetch an image. The texts are shown to the consumer. They contain nothing that a server answered: a
/// consumer could otherwise read answers of servers that only this machine can reach.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// The registry does not serve the image.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The image took longer than [`FETCH_TIMEOUT`].
    #[error("the image was not fetched within {} minutes; another try may be faster", FETCH_TIMEOUT.as_secs() / 60)]
    TooSlow,
    /// The image is too large for this machine, as its manifest says.
    #[error("the image is larger than {} GiB, which is the most that this machine's owner allows", largest >> 30)]
    PackedTooLarge {
        /// Most bytes.
        largest: u64,
    },
    /// The unpacked files of the image are larger than this machine allows, although the packed layers are not.
    #[error("the image unpacks to more than {} GiB, which is the most that this machine's owner allows", largest >> 30)]
    UnpackedTooLarge {
        /// Most bytes.
        largest: u64,
    },
    /// The image has too many layers or files.
    #[error(
        "the image has too many layers or files: at most {} layers and {} files are allowed",
        MAX_LAYERS,
        unpacked::MAX_FILES
    )]
    TooMany,
    /// Docker ended the connection before the archive was complete.
    #[error("Docker does not load the image")]
    ArchiveRefused,
    /// Docker does not load the image.
    #[error("Docker does not load the image")]
    Docker(#[from] bollard::errors::Error),
    /// The worker failed by itself.
    #[error("the worker cannot read the image")]
    Worker(#[source] std::io::Error),
}

impl FetchError {
    /// The reason for the market. Whatever may be different on another machine, or a moment later, is nobody's fault.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::Registry(e) if e.is_of_the_image() => Reason::BadImage,
            Self::UnpackedTooLarge { .. } | Self::TooMany => Reason::BadImage,
            // A larger machine, or one of another platform, may take the image. A name that leads to a private address
            // looks the same as a machine whose resolver misleads it.
            Self::Registry(_) | Self::PackedTooLarge { .. } | Self::TooSlow => Reason::RegistryUnavailable,
            Self::Docker(e) if e.to_string().contains("no space left on device") => Reason::DiskFull,
            // A layer that Docker cannot unpack looks the same as a Docker that is broken.
            Self::Docker(_) | Self::ArchiveRefused => Reason::RegistryUnavailable,
            Self::Worker(_) => Reason::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_known_to_docker_by_its_digest_or_its_tag() {
        let digest = "0f".repeat(32);
        for (name, expected) in [
            (format!("ghcr.io/team/tool:1@sha256:{digest}"), format!("ghcr.io/team/tool:sha256-{digest}")),
            (format!("busybox@sha256:{digest}"), format!("busybox:sha256-{digest}")),
            ("localhost:5000/tool:1".to_owned(), "localhost:5000/tool:1".to_owned()),
            ("tool".to_owned(), "tool:latest".to_owned()),
            ("docker.io/library/busybox:1".to_owned(), "busybox:1".to_owned()),
            ("docker.io/team/tool:1".to_owned(), "team/tool:1".to_owned()),
        ] {
            assert_eq!(local_name(&ImageName::parse(&name).unwrap()), expected);
        }
    }

    #[test]
    fn only_the_images_own_faults_are_the_consumers() {
        let registry = || "ghcr.io".to_owned();
        for (error, reason) in [
            (RegistryError::NoSuchImage(registry()).into(), Reason::BadImage),
            (FetchError::UnpackedTooLarge { largest: 1 << 30 }, Reason::BadImage),
            (RegistryError::Limited(registry()).into(), Reason::RegistryUnavailable),
            (RegistryError::OtherPlatform("amd64").into(), Reason::RegistryUnavailable),
            (FetchError::TooSlow, Reason::RegistryUnavailable),
        ] {
            assert_eq!(error.reason(), reason, "{error}");
        }
    }
}
