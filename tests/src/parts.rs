//! Where the parts that are not ours come from, and free ports for them.

use std::{
    env,
    net::TcpListener,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

/// The repository.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// One of our binaries, beside the one that runs.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let here = env::current_exe().context("where am I?")?;
    let directories = here.ancestors().skip(1).take(2);
    let found = directories.map(|dir| dir.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{name} is not built: run `cargo build --workspace --bins` first"))
}

/// The stand-in for NVIDIA's library, which tests load where there is no GPU.
pub fn fake_nvml() -> anyhow::Result<PathBuf> {
    binary("libgpubnb_fake_nvml.so").context("run `cargo build -p gpubnb-fake-nvml` first")
}

/// A program, from an environment variable, from `target/tools/bin`, or from PATH.
pub fn program(variable: &str, name: &str, remedy: &str) -> anyhow::Result<PathBuf> {
    if let Some(path) = env::var_os(variable) {
        return Ok(path.into());
    }
    let tools = root().join("target/tools/bin");
    let path = env::var_os("PATH").unwrap_or_default();
    let places = std::iter::once(tools).chain(env::split_paths(&path));
    match places.map(|dir| dir.join(name)).find(|candidate| candidate.is_file()) {
        Some(found) => Ok(found),
        None => bail!("{name} is not installed: {remedy}"),
    }
}

/// The broker.
pub fn nats_server() -> anyhow::Result<PathBuf> {
    program("GPUBNB_NATS_SERVER", "nats-server", "run `make setup`")
}

/// A port that is free now.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Chooses the library that HTTP clients of this process speak TLS with.
pub fn crypto() {
    // Another one may have been chosen: either is good.
    drop(rustls::crypto::ring::default_provider().install_default());
}
