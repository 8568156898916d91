//! The archive that Docker loads an image from, by the format of `docker save`. It is made while the layers arrive, and
//! takes no room on the worker's disk.

use std::future::ready;

use bollard::{
    Docker, body_try_stream,
    models::BuildInfo,
    query_parameters::{ImportImageOptionsBuilder, ListImagesOptions},
};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use gpubnb_registry::{Descriptor, Registry, RegistryError};
use serde_json::json;
use tokio::sync::{mpsc, watch};

use super::{
    FETCH_TIMEOUT, FetchError, FetchProgress,
    unpacked::{CountedLayer, LayerCounter, Unpacked},
};

/// Most chunks of the archive that wait to be sent to Docker.
const WAITING: usize = 8;
/// The unit of a tar archive, bytes.
const BLOCK: usize = 512;
/// The file of the image's configuration.
const CONFIG: &str = "config.json";
/// Most images whose layers are compared with a new one.
const MAX_COMPARED: usize = 500;

/// The bytes of the archive. If they end before the list of the parts (`manifest.json`), Docker loads nothing.
pub(super) type ArchiveBody = mpsc::Receiver<Bytes>;

/// Writes the archive.
pub(super) struct Archive {
    to: mpsc::Sender<Bytes>,
    /// The name that the image gets.
    name: String,
    /// The files of the layers, the lowest layer first.
    layers: Vec<String>,
}

impl Archive {
    pub(super) fn new(name: String) -> (Self, ArchiveBody) {
        let (to, body) = mpsc::channel(WAITING);
        (Self { to, name, layers: Vec::new() }, body)
    }

    async fn write(&self, bytes: Bytes) -> Result<(), FetchError> {
        self.to.send(bytes).await.map_err(|_| FetchError::ArchiveRefused)
    }

    async fn begin_file(&self, name: &str, size: u64) -> Result<(), FetchError> {
        let mut header = tar::Header::new_gnu();
        header.set_path(name).map_err(FetchError::Worker)?;
        header.set_size(size);
        header.set_mode(0o600);
        header.set_cksum();
        self.write(Bytes::copy_from_slice(header.as_bytes())).await
    }

    async fn end_file(&self, size: u64) -> Result<(), FetchError> {
        let padding = usize::try_from(size.wrapping_neg() % BLOCK as u64).unwrap_or_default();
        self.write(Bytes::from(vec![0; padding])).await
    }

    async fn add_file(&self, name: &str, bytes: Bytes) -> Result<(), FetchError> {
        let size = bytes.len() as u64;
        self.begin_file(name, size).await?;
        self.write(bytes).await?;
        self.end_file(size).await
    }

    pub(super) async fn add_config(&self, config: Bytes) -> Result<(), FetchError> {
        self.add_file(CONFIG, config).await
    }

    /// Names the next layer in the list of layers.
    pub(super) fn name_layer(&mut self, layer: &Descriptor) {
        self.layers.push(layer_file(layer));
    }

    /// Fetches a layer into the archive, and counts its files.
    pub(super) async fn add_layer(
        &self,
        registry: &mut Registry,
        layer: &Descriptor,
        before: Unpacked,
        progress: &watch::Sender<FetchProgress>,
    ) -> Result<CountedLayer, FetchError> {
        self.begin_file(&layer_file(layer), layer.size).await?;
        let counter = LayerCounter::start(before);
        let mut reader = registry.layer(layer);
        while let Some(chunk) = reader.next().await? {
            progress.send_modify(|progress| progress.done += chunk.len() as u64);
            if !counter.add(chunk.clone()).await {
                let refused = counter.finish().await.err().unwrap_or(RegistryError::Malformed.into());
                // If the layer is no archive, read it to its end. The reader may then find that the registry sent other
                // bytes than the digest names, which tells the consumer more.
                while matches!(refused, FetchError::Registry(RegistryError::Malformed))
                    && reader.next().await?.is_some()
                {}
                return Err(refused);
            }
            self.write(chunk).await?;
        }
        let counted = counter.finish().await?;
        self.end_file(layer.size).await?;
        Ok(counted)
    }

    /// Writes the list of the parts, which makes the archive complete.
    pub(super) async fn finish(self) -> Result<(), FetchError> {
        let list = json!([{ "Config": CONFIG, "RepoTags": [self.name], "Layers": self.layers }]);
        self.add_file("manifest.json", list.to_string().into()).await?;
        self.write(Bytes::from(vec![0; 2 * BLOCK])).await
    }
}

fn layer_file(layer: &Descriptor) -> String {
    format!("{}.tar", layer.digest)
}

/// Loads an archive into Docker while `send` writes it. Returns the result of `send`.
pub(super) async fn load<T>(
    docker: &Docker,
    mut body: ArchiveBody,
    send: impl Future<Output = Result<T, FetchError>>,
) -> Result<T, FetchError> {
    // Docker answers only after the whole archive.
    let docker = docker.clone().with_timeout(FETCH_TIMEOUT);
    let options = ImportImageOptionsBuilder::default().quiet(true).build();
    let body = stream::poll_fn(move |cx| body.poll_recv(cx)).map(Ok);
    let steps = docker.import_image(options, body_try_stream(body), None);
    let loaded = steps.try_fold(false, |failed, step| ready(Ok(failed || is_failure(&step))));
    let (sent, loaded) = tokio::join!(send, loaded);
    match (sent, loaded) {
        (Ok(_), Ok(true)) => Err(FetchError::ArchiveRefused),
        (Ok(_) | Err(FetchError::ArchiveRefused), Err(e)) => Err(e.into()),
        // If `send` failed, Docker reports an incomplete archive. The error of `send` says why.
        (sent, _) => sent,
    }
}

/// True if Docker cannot unpack a layer. With the image store of containerd, Docker says so only in the text of a step,
/// and returns no error.
fn is_failure(step: &BuildInfo) -> bool {
    step.stream.as_ref().is_some_and(|text| text.contains("Error unpacking"))
}

/// The number of an image's lowest layers that Docker has, as parts of other images. Docker needs no files for them.
pub(super) async fn known_layers(docker: &Docker, diff_ids: &[String]) -> Result<usize, FetchError> {
    let info = docker.info().await?;
    // With the image store of containerd, Docker needs the packed layers, too.
    let is_containerd =
        info.driver_status.iter().flatten().flatten().any(|text| text.contains("containerd.snapshotter"));
    if is_containerd {
        return Ok(0);
    }
    let mut known = 0;
    for image in docker.list_images(None::<ListImagesOptions>).await?.iter().take(MAX_COMPARED) {
        // An image that cannot be inspected, for example because it was just removed, helps nobody.
        let Ok(found) = docker.inspect_image(&image.id).await else { continue };
        let layers = found.root_fs.and_then(|root| root.layers).unwrap_or_default();
        known = known.max(layers.iter().zip(diff_ids).take_while(|(theirs, ours)| theirs == ours).count());
    }
    Ok(known)
}
