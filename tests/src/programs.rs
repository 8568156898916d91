//! The paths of the programs and libraries that tests start, and free ports for them.

use std::{
    env,
    hash::{BuildHasher as _, RandomState},
    net::TcpListener,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

/// The root directory of the repository.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// The path of a program or library that this workspace builds. The function looks in the directory of the running test
/// and in the directory above.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let here = env::current_exe().context("finding the path of the running test")?;
    let directories = here.ancestors().skip(1).take(2);
    let found = directories.map(|dir| dir.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{name} is not built: run `cargo build --workspace --bins` first"))
}

/// The path of the stand-in for NVIDIA's library NVML. Workers load the stand-in, because test machines have no GPU.
pub fn fake_nvml() -> anyhow::Result<PathBuf> {
    binary("libgpubnb_fake_nvml.so").context("run `cargo build -p gpubnb-fake-nvml` first")
}

/// The path of a program that this workspace does not build: the value of the environment variable `variable`, or the
/// program `name` in `target/tools/bin` or on PATH. If the program is missing, the error shows `remedy`.
pub fn program(variable: &str, name: &str, remedy: &str) -> anyhow::Result<PathBuf> {
    if let Some(path) = env::var_os(variable) {
        return Ok(path.into());
    }
    let tools = root().join("target/tools/bin");
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = std::iter::once(tools).chain(env::split_paths(&path));
    match directories.map(|dir| dir.join(name)).find(|candidate| candidate.is_file()) {
        Some(found) => Ok(found),
        None => bail!("{name} is not installed: {remedy}"),
    }
}

/// The path of the broker's program.
pub fn nats_server() -> anyhow::Result<PathBuf> {
    program("GPUBNB_NATS_SERVER", "nats-server", "run `make setup`")
}

/// A TCP port of 127.0.0.1 that is free at this moment. It must still be free when a program listens on it a moment
/// later. So each call chooses a port at random, below the range from which the kernel gives ports to connections and
/// to listeners on port 0.
pub fn free_port() -> anyhow::Result<u16> {
    const FIRST: u16 = 10_000;
    for _ in 0..100 {
        // Each state of the standard library's hash function has random keys.
        let random = RandomState::new().hash_one(()).to_le_bytes();
        let port = FIRST + u16::from_le_bytes([random[0], random[1]]) % 22_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port is free")
}

/// Installs the cryptography that the HTTP clients of this process use for TLS.
pub fn install_crypto_provider() {
    // An error means that a provider is installed already. That provider is good too.
    drop(rustls::crypto::ring::default_provider().install_default());
}
