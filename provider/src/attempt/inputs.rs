//! The files a job is given: fetched with a permit for each, checked against their hashes, and nobody's to change.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::StreamExt as _;
use gpubnb_events::{command::Grant, event::Reason, spec::Input};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;
use tracing::warn;

use super::{Problem, Tools};

const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);
const ONE_FILE: Duration = Duration::from_secs(600);

/// Fetches them all into a directory; `None` where there are none.
pub(super) async fn fetch(tools: &Tools, grant: &Grant, dir: &Path) -> Result<Option<PathBuf>, Problem> {
    if grant.spec.inputs.is_empty() {
        return Ok(None);
    }
    let root = dir.join("input");
    if grant.inputs.len() != grant.spec.inputs.len() {
        return Err(Problem::new(Reason::BadInput, "the market keeps no files"));
    }
    for (input, url) in grant.spec.inputs.iter().zip(&grant.inputs) {
        let path = plain(&root, &input.path)?;
        let mut tries = 0;
        while let Err(e) = get(tools, url, &path, input).await {
            tries += 1;
            if tries == TRIES {
                return Err(Problem::new(Reason::BadInput, format!("{}: {e:#}", input.path)));
            }
            warn!(path = input.path, error = format!("{e:#}"), "fetching a file again");
            tokio::time::sleep(PAUSE * tries).await;
        }
    }
    Ok(Some(root))
}

/// A path below the root. The market has checked it; this machine does not rely on that.
fn plain(root: &Path, path: &str) -> Result<PathBuf, Problem> {
    let all_plain = path.split('/').all(|part| !part.is_empty() && part != "." && part != ".." && !part.contains('\0'));
    if all_plain { Ok(root.join(path)) } else { Err(Problem::new(Reason::BadInput, "a path that leads elsewhere")) }
}

async fn get(tools: &Tools, url: &str, path: &Path, input: &Input) -> anyhow::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let response = tools.http.get(url).timeout(ONE_FILE).send().await.map_err(reqwest::Error::without_url)?;
    let response = response.error_for_status().map_err(reqwest::Error::without_url)?;
    let mut file = tokio::fs::File::create(path).await?;
    let (mut hash, mut bytes) = (Sha256::new(), 0_u64);
    let mut body = response.bytes_stream();
    while let Some(piece) = body.next().await {
        let piece = piece?;
        bytes += piece.len() as u64;
        anyhow::ensure!(bytes <= input.bytes, "it is larger than it was said to be");
        hash.update(&piece);
        file.write_all(&piece).await?;
    }
    file.flush().await?;
    anyhow::ensure!(bytes == input.bytes, "it has {bytes} bytes, and not {}", input.bytes);
    anyhow::ensure!(gpubnb_events::hex(hash.finalize()) == input.sha256, "its hash is another");
    fs::set_permissions(path, fs::Permissions::from_mode(0o444))?;
    Ok(())
}
