//! The programs and libraries that tests start, with the places where they are found, and free ports for them.

use std::{
    env,
    net::TcpListener,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

/// The root directory of the repository.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// A program or library that this workspace builds. It is looked for in the directory of the running test, and in the
/// directory above.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let here = env::current_exe().context("finding the path of the running test")?;
    let directories = here.ancestors().skip(1).take(2);
    let found = directories.map(|dir| dir.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{name} is not built: run `cargo build --workspace --bins` first"))
}

/// The stand-in for NVIDIA's library NVML, which workers of tests load in its place, since test machines have no GPU.
pub fn fake_nvml() -> anyhow::Result<PathBuf> {
    binary("libgpubnb_fake_nvml.so").context("run `cargo build -p gpubnb-fake-nvml` first")
}

/// The path of a program of others: the value of the environment variable `variable`, or the program `name` in
/// `target/tools/bin` or on PATH. If there is none, the error tells the `remedy`.
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

/// The program of the broker.
pub fn nats_server() -> anyhow::Result<PathBuf> {
    program("GPUBNB_NATS_SERVER", "nats-server", "run `make setup`")
}

/// A port that is free now.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Chooses the cryptography with which HTTP clients of this process speak TLS.
pub fn crypto() {
    // If the process has chosen another provider already, that provider is as good, so the error is dropped.
    drop(rustls::crypto::ring::default_provider().install_default());
}
