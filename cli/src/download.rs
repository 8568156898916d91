//! `gpubnb fetch`, and the end of `gpubnb run`: downloads the files of a job.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use gpubnb_events::{
    CommandId,
    spec::LeftOut,
    text::{is_plain_path, make_plain},
};
use reqwest::Method;
use serde_json::Value;

use crate::{api::Api, stream, verify::size_and_hash};

/// Downloads the files of a job that has ended.
pub(crate) async fn fetch(api: &Api, job: &str, directory: Option<PathBuf>, json: bool) -> anyhow::Result<u8> {
    let row = api.get(&format!("/jobs/{job}")).await?;
    ensure!(row["ended_at"].is_string(), "the job has not ended yet: its files can be downloaded after it has ended");
    let directory = directory.unwrap_or_else(|| PathBuf::from(job));
    save_all(api, job, &row, &directory).await?;
    if json {
        outln!("{}", row["outputs"]);
    }
    Ok(0)
}

/// Saves all files. A file that cannot be saved does not keep the others from being saved. Each failure is printed; the
/// returned error says how many files failed.
pub(crate) async fn save_all(api: &Api, job: &str, row: &Value, directory: &Path) -> anyhow::Result<()> {
    let (saved, failed) = save_files(api, job, row, directory).await?;
    if saved > 0 {
        errln!("{saved} files are in {}", directory.display());
    }
    ensure!(failed == 0, "{failed} of {} files were not saved. Try again: gpubnb fetch {job}", saved + failed);
    Ok(())
}

/// Saves all files of a job, and returns how many were saved and how many were not. Each failure is printed.
pub(crate) async fn save_files(api: &Api, job: &str, row: &Value, directory: &Path) -> anyhow::Result<(usize, usize)> {
    let files = row["outputs"].as_array().cloned().unwrap_or_default();
    let (mut saved, mut failed) = (0, 0);
    for file in &files {
        match save(api, job, file, directory).await {
            Ok(()) => saved += 1,
            Err(e) => {
                errln!("gpubnb: {e:#}");
                failed += 1;
            }
        }
    }
    for left_out in serde_json::from_value::<Vec<LeftOut>>(row["left_out"].clone()).unwrap_or_default() {
        let (reason, example) = (left_out.reason.describe(), make_plain(&left_out.example));
        errln!("{} entries of /output were not kept, such as {example}: {reason}", left_out.entries);
    }
    Ok((saved, failed))
}

/// Saves one file, whole or not at all. The job chose the name of the file, so the name is not trusted: no file is
/// written outside the directory, and no link below the directory is followed.
async fn save(api: &Api, job: &str, file: &Value, directory: &Path) -> anyhow::Result<()> {
    let path = file["path"].as_str().unwrap_or_default();
    // Some systems take a backslash as the separator of directories.
    ensure!(is_plain_path(path) && !path.contains('\\'), "the name {path:?} is not safe: the file is not downloaded");
    let target = directory.join(path);
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    let parents = path.match_indices('/').map(|(end, _)| directory.join(&path[..end]));
    for part in parents.chain([target.clone()]) {
        let is_link = fs::symlink_metadata(&part).is_ok_and(|metadata| metadata.is_symlink());
        ensure!(!is_link, "{} is a link: no file is written through a link", part.display());
        if part != target && !part.is_dir() {
            fs::create_dir(&part).with_context(|| format!("creating {}", part.display()))?;
        }
    }
    match fs::symlink_metadata(&target) {
        Ok(metadata) if metadata.is_file() => {
            let (bytes, hash) = size_and_hash(&target).with_context(|| format!("reading {}", target.display()))?;
            if file["bytes"] == bytes && file["sha256"] == hash.as_str() {
                return Ok(());
            }
            errln!("{} is replaced: it differs from the file of the job", target.display());
        }
        _ => {}
    }
    // This URL only serves to escape the names: its own path is replaced, and `api.request` adds the address.
    let mut url = reqwest::Url::parse(&format!("{}/x", api.url))?;
    let segments = url.path_segments_mut().map_err(|()| anyhow::anyhow!("the market's address has no path"));
    segments?.clear().extend(["jobs", job, "artifacts"]).extend(path.split('/'));
    let response = api.send_repeatedly(|| api.request(Method::GET, url.path())).await;
    let response = response.with_context(|| format!("fetching {path}"))?;
    let partial = target.with_file_name(format!(".gpubnb-{}.partial", CommandId::generate()));
    let saved = async {
        let (hash, bytes) = stream::save(response, &partial).await.with_context(|| format!("fetching {path}"))?;
        ensure!(file["sha256"] == hash.as_str() && file["bytes"] == bytes, "{path} arrived damaged: fetch it again");
        fs::rename(&partial, &target).with_context(|| format!("writing {}", target.display()))
    };
    let saved = saved.await;
    if saved.is_err() {
        // An error of the removal is ignored: the file may not exist, and the user needs the first error.
        drop(fs::remove_file(&partial));
    }
    saved
}
