//! A registry of images on 127.0.0.1 (OCI Distribution Specification 1.1, the reading half), whose images are the demo jobs'
//! with a layer added. Some of the images are odd on purpose.

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
/// Size of the pieces in which a slow image is sent, and the pause between them.
const PIECE: usize = 1 << 20;
const PAUSE: Duration = Duration::from_millis(600);

/// The oddity of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The image has none.
    Plain,
    /// The image is sent slowly.
    Slow,
    /// The registry announces 30 GiB.
    Huge,
    /// The content that is sent has another digest than the manifest says.
    Lying,
    /// The image has no program of its own: the job's command is the program.
    Bare,
    /// The registry answers with this HTTP status until [`Registry::mend`] is called.
    Away(u16),
}

struct Image {
    kind: Kind,
    manifest: Bytes,
    blobs: HashMap<String, Bytes>,
}

/// A registry, which ends with the test.
pub struct Registry {
    address: SocketAddr,
    is_mended: Arc<AtomicBool>,
    server: tokio::task::JoinHandle<()>,
}

impl Registry {
    /// Starts a registry with these images, each of so many bytes and more.
    pub async fn start(images: &[(&str, Kind, usize)]) -> anyhow::Result<Self> {
        let base = workloads()?;
        let made = images.iter().map(|(name, kind, bytes)| Ok(((*name).to_owned(), image(&base, *kind, *bytes)?)));
        let images: HashMap<String, Image> = made.collect::<anyhow::Result<_>>()?;
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let is_mended = Arc::new(AtomicBool::new(false));
        let router = Router::new()
            .route("/v2/", get(async || "{}"))
            .route("/v2/{name}/manifests/{reference}", get(manifest))
            .route("/v2/{name}/blobs/{digest}", get(blob))
            .with_state((Arc::new(images), Arc::clone(&is_mended)));
        let server = tokio::spawn(async move { drop(axum::serve(listener, router).await) });
        Ok(Self { address, is_mended, server })
    }

    /// From now on the registry gives every image.
    pub fn mend(&self) {
        self.is_mended.store(true, Ordering::Relaxed);
    }

    /// The name by which a job asks for the image.
    pub fn name(&self, image: &str) -> String {
        format!("{}/{image}:1", self.address)
    }

    /// Tells whether Docker has the image.
    pub fn is_here(&self, image: &str) -> bool {
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

/// The demo jobs' image: its layer, and its configuration.
fn workloads() -> anyhow::Result<(Bytes, Value)> {
    let dir = tempfile::tempdir()?;
    let mut saved = Command::new("docker").args(["save", "gpubnb/workloads:1"]).stdout(Stdio::piped()).spawn()?;
    let archive = saved.stdout.take().context("the saved image")?;
    let unpacked = Command::new("tar").arg("-x").arg("-C").arg(dir.path()).stdin(archive).status()?;
    ensure!(saved.wait()?.success() && unpacked.success(), "the demo jobs' image is not here: run deploy/images.sh");
    let read = |name: &Value| std::fs::read(dir.path().join(name.as_str().unwrap_or_default()));
    let manifest: Value = serde_json::from_slice(&read(&json!("manifest.json"))?)?;
    let layer = read(&manifest[0]["Layers"][0])?;
    Ok((layer.into(), serde_json::from_slice(&read(&manifest[0]["Config"])?)?))
}

/// The demo jobs' image with one more layer, which no other image has.
fn image((layer, config): &(Bytes, Value), kind: Kind, bytes: usize) -> anyhow::Result<Image> {
    let dir = tempfile::tempdir()?;
    let mut noise = vec![0; bytes];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut noise)?;
    std::fs::write(dir.path().join("noise"), noise)?;
    let packed = Command::new("tar").arg("-C").arg(dir.path()).args(["-c", "noise"]).output()?;
    let added = Bytes::from(packed.stdout);
    let mut config = config.clone();
    config["rootfs"]["diff_ids"] = json!([digest(layer), digest(&added)]);
    if let Some(config) = config.as_object_mut() {
        config.remove("history");
    }
    if kind == Kind::Bare {
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
    if kind == Kind::Lying {
        let other = added.iter().map(|byte| byte ^ 1).collect::<Vec<_>>();
        blobs.insert(digest(&added), other.into());
    }
    Ok(Image { kind, manifest: serde_json::to_vec(&manifest)?.into(), blobs })
}

/// The images, and whether the registry is mended.
type Images = (Arc<HashMap<String, Image>>, Arc<AtomicBool>);

async fn manifest(State((images, is_mended)): State<Images>, Path((name, _)): Path<(String, String)>) -> Response {
    let Some(image) = images.get(&name) else {
        let error = json!({ "errors": [{ "code": "MANIFEST_UNKNOWN", "message": "manifest unknown" }] });
        return (StatusCode::NOT_FOUND, [(header::CONTENT_TYPE, "application/json")], error.to_string())
            .into_response();
    };
    if let Kind::Away(status) = image.kind
        && !is_mended.load(Ordering::Relaxed)
    {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        return (status, "the registry is away").into_response();
    }
    let digest = digest(&image.manifest);
    let headers = [(header::CONTENT_TYPE.as_str(), MANIFEST), ("docker-content-digest", digest.as_str())];
    (headers, image.manifest.clone()).into_response()
}

async fn blob(State((images, _)): State<Images>, Path((name, digest)): Path<(String, String)>) -> Response {
    let found = images.get(&name).and_then(|image| Some((image.kind, image.blobs.get(&digest)?.clone())));
    let Some((kind, bytes)) = found else { return StatusCode::NOT_FOUND.into_response() };
    let pieces: Vec<_> = bytes.chunks(PIECE).map(Bytes::copy_from_slice).collect();
    let slow = matches!(kind, Kind::Slow | Kind::Huge) && bytes.len() > PIECE;
    let pieces = stream::iter(pieces).then(move |piece| async move {
        if slow {
            tokio::time::sleep(PAUSE).await;
        }
        Ok::<_, std::io::Error>(piece)
    });
    let length = if kind == Kind::Huge && slow { 30 << 30 } else { bytes.len() };
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_LENGTH, length.into());
    (headers, Body::from_stream(pieces)).into_response()
}
