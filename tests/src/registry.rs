//! A registry of Docker images on 127.0.0.1, for pulls only (OCI Distribution Specification 1.1). Each of its images is
//! the image of the demo jobs with one more layer. Some of the images are faulty on purpose.

use std::{
    collections::HashMap,
    net::SocketAddr,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
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
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The token that the registry gives to everybody.
const TOKEN: &str = "everybodys-token";
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
    /// The manifest announces 30 GiB for the layer.
    Huge,
    /// The layer is packed, and unpacks to 2 GiB.
    Bomb,
    /// The registry breaks off each answer after the first mebibyte. A request with a byte range gets the next
    /// mebibyte.
    Breaking,
    /// The image is one of several platforms in an index.
    Indexed,
    /// The registry demands a token, which it gives to everybody.
    NeedsToken,
    /// The registry demands a token, and names a server at this address.
    TokenFrom(SocketAddr),
    /// The registry sends everybody who asks for a layer to this address.
    RedirectTo(SocketAddr),
    /// The added layer has another digest than the manifest says.
    WrongDigest,
    /// The image declares `/data` as its working directory and as a volume.
    Volume,
    /// The image has every setting that could reach beyond its container.
    Hostile,
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
    /// The index or the manifest that the image's name stands for, and its media type.
    top: (Bytes, &'static str),
    /// The manifests and the layers by digest.
    blobs: HashMap<String, Bytes>,
}

struct Served {
    images: HashMap<String, Image>,
    is_available: AtomicBool,
    /// The digests of the layers that were sent.
    sent: Mutex<Vec<String>>,
    address: SocketAddr,
}

/// A running registry. It stops when this value is dropped; then its images are removed from Docker.
pub struct Registry {
    served: Arc<Served>,
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
        let (is_available, sent) = (AtomicBool::new(false), Mutex::default());
        let served = Arc::new(Served { images, is_available, sent, address });
        let router = Router::new()
            .route("/v2/", get(async || "{}"))
            .route("/token", get(async || json!({ "token": TOKEN, "access_token": TOKEN }).to_string()))
            .route("/v2/{name}/manifests/{reference}", get(manifest))
            .route("/v2/{name}/blobs/{digest}", get(blob))
            .with_state(Arc::clone(&served));
        let server = tokio::spawn(async move { drop(axum::serve(listener, router).await) });
        Ok(Self { served, server })
    }

    /// Lets the registry serve every image, also those of the kind [`ImageKind::Unavailable`].
    pub fn make_available(&self) {
        self.served.is_available.store(true, Ordering::Relaxed);
    }

    /// The full name of an image, with the registry and the tag: `127.0.0.1:<port>/<image>:1`.
    pub fn name(&self, image: &str) -> String {
        format!("{}/{image}:1", self.served.address)
    }

    /// The full name of an image with its digest: `127.0.0.1:<port>/<image>@sha256:…`.
    pub fn pinned_name(&self, image: &str) -> String {
        let top = self.served.images.get(image).map(|image| digest(&image.top.0)).unwrap_or_default();
        format!("{}/{image}@{top}", self.served.address)
    }

    /// The address of the registry, for the worker's option `--private-registry`.
    pub fn url(&self) -> String {
        format!("http://{}", self.served.address)
    }

    /// The digests of the layers that were sent.
    pub fn sent(&self) -> Vec<String> {
        self.served.sent.lock().map(|sent| sent.clone()).unwrap_or_default()
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
        let prefix = format!("reference={}/*", self.served.address);
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
    let added = if kind == ImageKind::Bomb { bomb()? } else { packed.stdout.into() };
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
    if kind == ImageKind::Hostile {
        config["config"]["User"] = json!("root");
        config["config"]["StopSignal"] = json!("SIGNOSUCH");
        config["config"]["ExposedPorts"] = json!({ "80/tcp": {} });
        config["config"]["Volumes"] = json!({ "/data": {}, "/output": {} });
        config["config"]["Labels"] = json!({ "traefik.enable": "true", "gpubnb.gpus": "GPU-1", "gpubnb.lease": "1" });
        config["config"]["Env"] = json!(["NVIDIA_VISIBLE_DEVICES=all", "GPUBNB_JOB=1", "HOME=/", "KEPT=1"]);
        config["config"]["Healthcheck"] =
            json!({ "Test": ["CMD", "/gpubnb-workload", "noop"], "Interval": 10_000_000, "Timeout": 1_000_000_000 });
    }
    let config = Bytes::from(serde_json::to_vec(&config)?);
    let described =
        |bytes: &Bytes, kind: &str| json!({ "mediaType": kind, "size": bytes.len(), "digest": digest(bytes) });
    let tar = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    let mut added_layer = described(&added, tar);
    if kind == ImageKind::Huge {
        added_layer["size"] = json!(30_u64 << 30);
    }
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST,
        "config": described(&config, "application/vnd.docker.container.image.v1+json"),
        "layers": [described(layer, tar), added_layer] });
    let manifest = Bytes::from(serde_json::to_vec(&manifest)?);
    let top = if kind == ImageKind::Indexed { (index(&manifest)?, INDEX) } else { (manifest.clone(), MANIFEST) };
    let mut blobs: HashMap<_, _> = [&config, layer, &added, &manifest].map(|blob| (digest(blob), blob.clone())).into();
    if kind == ImageKind::WrongDigest {
        let other = added.iter().map(|byte| byte ^ 1).collect::<Vec<_>>();
        blobs.insert(digest(&added), other.into());
    }
    Ok(Image { kind, top, blobs })
}

/// An index with the manifest for this machine's platform, and one for another platform.
fn index(manifest: &Bytes) -> anyhow::Result<Bytes> {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let entry = |digest: String, architecture: &str| {
        json!({ "mediaType": MANIFEST, "size": manifest.len(), "digest": digest,
            "platform": { "os": "linux", "architecture": architecture } })
    };
    let entries = [entry(format!("sha256:{}", "0".repeat(64)), "s390x"), entry(digest(manifest), architecture)];
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
    Ok(serde_json::to_vec(&index)?.into())
}

/// A packed layer with one file of 2 GiB.
fn bomb() -> anyhow::Result<Bytes> {
    let script = "truncate --size 2G zeros && tar --create zeros | gzip -1";
    let dir = tempfile::tempdir()?;
    let packed = Command::new("sh").args(["-c", script]).current_dir(dir.path()).output()?;
    ensure!(packed.status.success(), "the layer cannot be packed");
    Ok(packed.stdout.into())
}

async fn manifest(
    State(served): State<Arc<Served>>,
    Path((name, reference)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let Some(image) = served.images.get(&name) else {
        let error = json!({ "errors": [{ "code": "MANIFEST_UNKNOWN", "message": "manifest unknown" }] });
        return (StatusCode::NOT_FOUND, [(header::CONTENT_TYPE, "application/json")], error.to_string())
            .into_response();
    };
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    match image.kind {
        ImageKind::Unavailable(status) if !served.is_available.load(Ordering::Relaxed) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            return (status, "the registry is not available").into_response();
        }
        ImageKind::NeedsToken if authorization != Some(&format!("Bearer {TOKEN}")) => return demand(served.address),
        ImageKind::TokenFrom(address) => return demand(address),
        _ => {}
    }
    let (document, kind) = match image.blobs.get(&reference) {
        Some(manifest) => (manifest.clone(), MANIFEST),
        None => image.top.clone(),
    };
    let digest = digest(&document);
    let headers = [(header::CONTENT_TYPE.as_str(), kind), ("docker-content-digest", digest.as_str())];
    (headers, document).into_response()
}

/// The answer that demands a token from the server at this address.
fn demand(address: SocketAddr) -> Response {
    let challenge = format!("Bearer realm=\"http://{address}/token\",service=\"registry\",scope=\"repository:a:pull\"");
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)], "a token is needed").into_response()
}

async fn blob(
    State(served): State<Arc<Served>>,
    Path((name, digest)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let found = served.images.get(&name).and_then(|image| Some((image.kind, image.blobs.get(&digest)?.clone())));
    let Some((kind, bytes)) = found else { return StatusCode::NOT_FOUND.into_response() };
    if let Ok(mut sent) = served.sent.lock() {
        sent.push(digest.clone());
    }
    if let ImageKind::RedirectTo(address) = kind {
        return (StatusCode::FOUND, [(header::LOCATION, format!("http://{address}/secret"))]).into_response();
    }
    let range =
        headers.get(header::RANGE).and_then(|range| range.to_str().ok()?.strip_prefix("bytes=")?.strip_suffix('-'));
    let first = range.and_then(|first| first.parse().ok()).unwrap_or(0).min(bytes.len());
    let (bytes, length) = (bytes.slice(first..), bytes.len() - first);
    let mut pieces: Vec<_> = bytes.chunks(PIECE_BYTES).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    if kind == ImageKind::Breaking && pieces.len() > 1 {
        pieces.truncate(1);
        pieces.push(Err(std::io::Error::other("the line breaks")));
    }
    let is_slow = kind == ImageKind::Slow && bytes.len() > PIECE_BYTES;
    let pieces = stream::iter(pieces).then(move |piece| async move {
        if is_slow {
            tokio::time::sleep(PAUSE).await;
        }
        piece
    });
    let range = format!("bytes {first}-{}/{}", first + length.saturating_sub(1), first + length);
    let status = if first > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let headers = [(header::CONTENT_LENGTH, length.to_string()), (header::CONTENT_RANGE, range)];
    (status, headers, Body::from_stream(pieces)).into_response()
}
