//! A registry of Docker images on 127.0.0.1, for pulls only (OCI Distribution Specification 1.1). Each of its images is
//! the image of the demo jobs with one more layer. Some of the images are faulty on purpose.

use std::{
    collections::HashMap,
    net::SocketAddr,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// A slow image is sent in pieces of this size, bytes.
const PIECE_BYTES: usize = 1 << 20;
/// Pause before each piece of a slow image.
const PAUSE: Duration = Duration::from_millis(600);

/// The way in which an image is faulty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// The image has no fault.
    Plain,
    /// The image is sent slowly.
    Slow,
    /// The image is sent slowly, and the registry announces 30 GiB for its layer.
    Huge,
    /// The added layer has another digest than the manifest says.
    WrongDigest,
    /// The image declares `/data` as its working directory and as a volume.
    Volume,
    /// The image has a file where the job's output is mounted.
    FileAtOutput,
    /// The image has a file where it declares a volume.
    FileAtVolume,
    /// The image has no entrypoint, so the job's command is the program.
    NoEntrypoint,
    /// The registry answers with this HTTP status, such as 500, until [`Registry::make_available`] is called.
    Unavailable(u16),
}

struct Image {
    kind: ImageKind,
    manifest: Bytes,
    blobs: HashMap<String, Bytes>,
}

/// A running registry. It stops when this value is dropped; then its images are removed from Docker.
pub struct Registry {
    address: SocketAddr,
    is_available: Arc<AtomicBool>,
    server: tokio::task::JoinHandle<()>,
}

impl Registry {
    /// Starts a registry. Each image has a name, a kind, and the size of its added layer in bytes.
    pub async fn start(images: &[(&str, ImageKind, usize)]) -> anyhow::Result<Self> {
        let base = workloads()?;
        let made = images.iter().map(|(name, kind, bytes)| Ok(((*name).to_owned(), image(&base, *kind, *bytes)?)));
        let images: HashMap<String, Image> = made.collect::<anyhow::Result<_>>()?;
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let is_available = Arc::new(AtomicBool::new(false));
        let router = Router::new()
            .route("/v2/", get(async || "{}"))
            .route("/v2/{name}/manifests/{reference}", get(manifest))
            .route("/v2/{name}/blobs/{digest}", get(blob))
            .with_state((Arc::new(images), Arc::clone(&is_available)));
        let server = tokio::spawn(async move { drop(axum::serve(listener, router).await) });
        Ok(Self { address, is_available, server })
    }

    /// Lets the registry serve every image, also those of the kind [`ImageKind::Unavailable`].
    pub fn make_available(&self) {
        self.is_available.store(true, Ordering::Relaxed);
    }

    /// The full name of an image, with the registry and the tag: `127.0.0.1:<port>/<image>:1`.
    pub fn name(&self, image: &str) -> String {
        format!("{}/{image}:1", self.address)
    }

    /// Returns true if Docker has pulled the image.
    pub fn is_pulled(&self, image: &str) -> bool {
        let inspected = Command::new("docker").args(["image", "inspect", &self.name(image)]).output();
        inspected.is_ok_and(|output| output.status.success())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.abort();
        let prefix = format!("reference={}/*", self.address);
        let listed = Command::new("docker").args(["images", "--quiet", "--filter", &prefix]).output();
        let ids = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        for id in ids.split_whitespace() {
            drop(Command::new("docker").args(["image", "rm", "--force", id]).output());
        }
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", data_encoding::HEXLOWER.encode(&Sha256::digest(bytes)))
}

/// The layer and the configuration of the demo jobs' image.
fn workloads() -> anyhow::Result<(Bytes, Value)> {
    let dir = tempfile::tempdir()?;
    let mut saved = Command::new("docker").args(["save", "gpubnb/workloads:1"]).stdout(Stdio::piped()).spawn()?;
    let archive = saved.stdout.take().context("no pipe from docker save")?;
    let unpacked = Command::new("tar").arg("-x").arg("-C").arg(dir.path()).stdin(archive).status()?;
    ensure!(saved.wait()?.success() && unpacked.success(), "the demo jobs' image is missing: run deploy/images.sh");
    let read = |name: &Value| std::fs::read(dir.path().join(name.as_str().unwrap_or_default()));
    let manifest: Value = serde_json::from_slice(&read(&json!("manifest.json"))?)?;
    let layer = read(&manifest[0]["Layers"][0])?;
    Ok((layer.into(), serde_json::from_slice(&read(&manifest[0]["Config"])?)?))
}

/// Makes an image: the demo jobs' image and one layer of random bytes.
fn image((layer, config): &(Bytes, Value), kind: ImageKind, bytes: usize) -> anyhow::Result<Image> {
    let dir = tempfile::tempdir()?;
    let mut noise = vec![0; bytes];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut noise)?;
    std::fs::write(dir.path().join("noise"), noise)?;
    let file = match kind {
        ImageKind::FileAtOutput => Some("output"),
        ImageKind::FileAtVolume => Some("data"),
        _ => None,
    };
    if let Some(name) = file {
        std::fs::write(dir.path().join(name), "a file")?;
    }
    let packed = Command::new("tar").arg("-C").arg(dir.path()).args(["-c", "noise"]).args(file).output()?;
    let added = Bytes::from(packed.stdout);
    let mut config = config.clone();
    config["rootfs"]["diff_ids"] = json!([digest(layer), digest(&added)]);
    if let Some(config) = config.as_object_mut() {
        config.remove("history");
    }
    if matches!(kind, ImageKind::Volume | ImageKind::FileAtVolume) {
        config["config"]["WorkingDir"] = json!("/data");
        config["config"]["Volumes"] = json!({ "/data": {} });
    }
    if kind == ImageKind::NoEntrypoint {
        config["config"]["Entrypoint"] = Value::Null;
    }
    let config = Bytes::from(serde_json::to_vec(&config)?);
    let described =
        |bytes: &Bytes, kind: &str| json!({ "mediaType": kind, "size": bytes.len(), "digest": digest(bytes) });
    let tar = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST,
        "config": described(&config, "application/vnd.docker.container.image.v1+json"),
        "layers": [described(layer, tar), described(&added, tar)] });
    let mut blobs: HashMap<_, _> = [&config, layer, &added].map(|blob| (digest(blob), blob.clone())).into();
    if kind == ImageKind::WrongDigest {
        let other = added.iter().map(|byte| byte ^ 1).collect::<Vec<_>>();
        blobs.insert(digest(&added), other.into());
    }
    Ok(Image { kind, manifest: serde_json::to_vec(&manifest)?.into(), blobs })
}

/// The images by name, and the flag that [`Registry::make_available`] sets.
type Images = (Arc<HashMap<String, Image>>, Arc<AtomicBool>);

async fn manifest(State((images, is_available)): State<Images>, Path((name, _)): Path<(String, String)>) -> Response {
    let Some(image) = images.get(&name) else {
        let error = json!({ "errors": [{ "code": "MANIFEST_UNKNOWN", "message": "manifest unknown" }] });
        return (StatusCode::NOT_FOUND, [(header::CONTENT_TYPE, "application/json")], error.to_string())
            .into_response();
    };
    if let ImageKind::Unavailable(status) = image.kind
        && !is_available.load(Ordering::Relaxed)
    {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        return (status, "the registry is not available").into_response();
    }
    let digest = digest(&image.manifest);
    let headers = [(header::CONTENT_TYPE.as_str(), MANIFEST), ("docker-content-digest", digest.as_str())];
    (headers, image.manifest.clone()).into_response()
}

async fn blob(State((images, _)): State<Images>, Path((name, digest)): Path<(String, String)>) -> Response {
    let found = images.get(&name).and_then(|image| Some((image.kind, image.blobs.get(&digest)?.clone())));
    let Some((kind, bytes)) = found else { return StatusCode::NOT_FOUND.into_response() };
    let pieces: Vec<_> = bytes.chunks(PIECE_BYTES).map(Bytes::copy_from_slice).collect();
    let is_slow = matches!(kind, ImageKind::Slow | ImageKind::Huge) && bytes.len() > PIECE_BYTES;
    let pieces = stream::iter(pieces).then(move |piece| async move {
        if is_slow {
            tokio::time::sleep(PAUSE).await;
        }
        Ok::<_, std::io::Error>(piece)
    });
    let length = if kind == ImageKind::Huge && is_slow { 30 << 30 } else { bytes.len() };
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_LENGTH, length.into());
    (headers, Body::from_stream(pieces)).into_response()
}
