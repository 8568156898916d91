//! `gpubnb fetch`, and the end of `gpubnb run`: downloads the files of a job.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use gpubnb_events::text::is_plain;
use reqwest::Method;
use serde_json::Value;

use crate::{api::Api, stream, verify::size_and_hash};

/// Downloads the files of a job that has ended.
pub(crate) async fn fetch(api: &Api, job: &str, directory: Option<PathBuf>, json: bool) -> anyhow::Result<u8> {
    let row = api.get(&format!("/jobs/{job}")).await?;
    ensure!(row["ended_at"].is_string(), "the job has not ended yet: its files come when it has");
    let directory = directory.unwrap_or_else(|| PathBuf::from(job));
    save_all(api, job, &row, &directory).await?;
    if json {
        outln!("{}", row["outputs"]);
    }
    Ok(0)
}

/// Saves all files. A file that cannot be saved does not keep the others from being saved; the error names the first.
pub(crate) async fn save_all(api: &Api, job: &str, row: &Value, directory: &Path) -> anyhow::Result<()> {
    let files = row["outputs"].as_array().cloned().unwrap_or_default();
    let (mut saved, mut failures) = (0, Vec::new());
    for file in &files {
        match save(api, job, file, directory).await {
            Ok(()) => saved += 1,
            Err(e) => {
                errln!("gpubnb: {e:#}");
                failures.push(e);
            }
        }
    }
    for left in row["left_out"].as_array().into_iter().flatten() {
        let text = |field: &str| left[field].as_str().unwrap_or_default().to_owned();
        errln!(
            "{} entries of /output were not kept ({}), such as {}",
            left["entries"],
            text("reason"),
            text("example")
        );
    }
    if saved > 0 {
        errln!("{saved} files were saved in {}", directory.display());
    }
    if failures.is_empty() {
        return Ok(());
    }
    bail!("{} of {} files were not saved. Try again: gpubnb fetch {job}", failures.len(), files.len());
}

/// Saves one file. The job chose the name of the file, so the name is not trusted: no file is written outside the
/// directory, and no link is followed.
async fn save(api: &Api, job: &str, file: &Value, directory: &Path) -> anyhow::Result<()> {
    let path = file["path"].as_str().unwrap_or_default();
    let stays_inside = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\\');
    let is_safe = path.split('/').all(stays_inside) && path.chars().all(is_plain);
    ensure!(is_safe, "the name {path:?} is not safe: the file is not downloaded");
    let target = directory.join(path);
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    }
    match fs::symlink_metadata(&target) {
        Ok(metadata) if metadata.is_symlink() => {
            bail!("{} is a link: no file is written through a link", target.display())
        }
        Ok(metadata) if metadata.is_file() => {
            let (bytes, hash) = size_and_hash(&target).with_context(|| format!("reading {}", target.display()))?;
            if file["bytes"] == bytes && file["sha256"] == hash.as_str() {
                return Ok(());
            }
        }
        _ => {}
    }
    // Only the path of this URL is used. `extend` escapes the characters of the file's name.
    let mut url = reqwest::Url::parse(&format!("{}/x", api.url))?;
    let segments = url.path_segments_mut().map_err(|()| anyhow::anyhow!("the market's address has no path"));
    segments?.clear().extend(["jobs", job, "artifacts"]).extend(path.split('/'));
    let response = api.send_repeatedly(|| api.request(Method::GET, url.path())).await;
    let response = response.with_context(|| format!("fetching {path}"))?;
    let (hash, bytes) = stream::save(response, &target).await.with_context(|| format!("fetching {path}"))?;
    ensure!(file["sha256"] == hash.as_str() && file["bytes"] == bytes, "{path} arrived damaged: fetch it again");
    Ok(())
}
