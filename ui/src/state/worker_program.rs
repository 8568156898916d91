//! The worker's program, which owners of machines download from this server.

use std::{
    env,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use sha2::{Digest as _, Sha256};
use tokio::sync::OnceCell;

/// The name of the program.
pub(crate) const WORKER_PROGRAM: &str = "gpubnb-provider";

/// The worker's program, if this server has it.
#[derive(Clone)]
pub(crate) struct WorkerProgram {
    path: Option<PathBuf>,
    /// The SHA-256 of the program in hex. It is computed once, at the first use.
    sha256: Arc<OnceCell<String>>,
}

impl WorkerProgram {
    /// The program at `path`, or beside this server's own program.
    pub(crate) fn new(path: Option<PathBuf>) -> Self {
        let beside = || Some(env::current_exe().ok()?.with_file_name(WORKER_PROGRAM)).filter(|path| path.is_file());
        Self { path: path.or_else(beside), sha256: Arc::default() }
    }

    /// Where the program is; `None` if this server does not have it.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The SHA-256 of the program at `path`, in hex.
    pub(crate) async fn sha256(&self, path: &Path) -> Result<&str, io::Error> {
        let path = path.to_owned();
        let hash = async || {
            tokio::task::spawn_blocking(move || {
                let (mut file, mut hasher, mut buffer) = (File::open(path)?, Sha256::new(), vec![0; 1 << 16]);
                loop {
                    match file.read(&mut buffer)? {
                        0 => return Ok(gpubnb_events::hex(hasher.finalize())),
                        count => hasher.update(&buffer[..count]),
                    }
                }
            })
            .await
            .map_err(io::Error::other)?
        };
        self.sha256.get_or_try_init(hash).await.map(String::as_str)
    }
}
