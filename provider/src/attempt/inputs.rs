//! Downloads the input files of a job, checks their sizes and hashes, and makes them read-only.

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

use super::{Problem, context::Tools};

/// Most tries to download one file.
const TRIES: u32 = 5;
/// Pause after the first failed try. After the second the pause is twice as long, and so on.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest time of one try.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(600);

/// Downloads all input files into the directory `input` below the attempt's directory `dir`. Returns the path of
/// `input`; `None` if the job has no input files.
pub(super) async fn fetch(tools: &Tools, grant: &Grant, dir: &Path) -> Result<Option<PathBuf>, Problem> {
    if grant.spec.inputs.is_empty() {
        return Ok(None);
    }
    let root = dir.join("input");
    if grant.inputs.len() != grant.spec.inputs.len() {
        return Err(Problem::new(Reason::BadInput, "the market stores no files"));
    }
    for (input, url) in grant.spec.inputs.iter().zip(&grant.inputs) {
        let path = path_below(&root, &input.path)?;
        let mut tries = 0;
        while let Err(e) = download(tools, url, &path, input).await {
            tries += 1;
            if tries == TRIES {
                return Err(Problem::caused(Reason::BadInput, e.context(input.path.clone())));
            }
            warn!(path = input.path, error = format!("{e:#}"), "a download failed: trying again");
            tokio::time::sleep(PAUSE * tries).await;
        }
    }
    Ok(Some(root))
}

/// Joins the root and a relative path. Fails if the result would not be below the root. The market has checked the
/// path, but this machine does not rely on that.
fn path_below(root: &Path, path: &str) -> Result<PathBuf, Problem> {
    let is_name = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
    if path.split('/').all(is_name) {
        Ok(root.join(path))
    } else {
        Err(Problem::new(Reason::BadInput, "a path leads out of the directory of inputs"))
    }
}

async fn download(tools: &Tools, url: &str, path: &Path, input: &Input) -> anyhow::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let response = tools.http.get(url).timeout(DOWNLOAD_TIMEOUT).send().await.map_err(reqwest::Error::without_url)?;
    let response = response.error_for_status().map_err(reqwest::Error::without_url)?;
    let mut file = tokio::fs::File::create(path).await?;
    let (mut hash, mut bytes) = (Sha256::new(), 0_u64);
    let mut body = response.bytes_stream();
    while let Some(chunk) = body.next().await {
        let chunk = chunk?;
        bytes += chunk.len() as u64;
        anyhow::ensure!(bytes <= input.bytes, "the file is larger than the job specifies");
        hash.update(&chunk);
        file.write_all(&chunk).await?;
    }
    file.flush().await?;
    anyhow::ensure!(bytes == input.bytes, "the file has {bytes} bytes instead of {}", input.bytes);
    anyhow::ensure!(
        gpubnb_events::hex(hash.finalize()) == input.sha256,
        "the file's hash is not the hash that the job specifies"
    );
    fs::set_permissions(path, fs::Permissions::from_mode(0o444))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_path_that_leads_out_of_its_directory_is_refused() {
        let root = Path::new("/lease/input");
        assert_eq!(path_below(root, "a/b.txt").unwrap(), Path::new("/lease/input/a/b.txt"));
        for path in ["", "/etc/passwd", "..", "a/../../b", "./a", "a//b", "a/", "a\0b"] {
            assert_eq!(path_below(root, path).unwrap_err().reason, Reason::BadInput, "{path:?}");
        }
    }
}
