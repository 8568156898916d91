//! `gpubnb run`: uploads the input files, submits the job, follows the job to its end, and downloads its output files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use gpubnb_events::{CommandId, job_request::InputRequest};
use reqwest::Method;
use serde_json::Value;
use tokio_util::io::ReaderStream;

use crate::{api::Api, args::RunArgs, follow, stream};

pub(crate) async fn run(api: &Api, run: RunArgs, json: bool) -> anyhow::Result<u8> {
    let mut inputs = Vec::new();
    for input in &run.inputs {
        inputs.push(upload(api, input).await?);
    }
    let request = run.request(inputs)?;
    let submitted = api.post("/jobs", &serde_json::to_value(&request)?).await?;
    let job = submitted["job"].as_str().context("the market's answer names no job")?.to_owned();
    if run.detach {
        outln!("{}", if json { submitted.to_string() } else { job });
        return Ok(0);
    }
    eprintln!("Job {job}: {}/jobs/{job}", api.url);
    let ended = follow::follow_until_settled(api, &job, json, true).await?;
    if !run.no_download {
        let directory = run.output.clone().unwrap_or_else(|| PathBuf::from(&job));
        download(api, &job, &ended, &directory).await?;
    }
    if json {
        outln!("{ended}");
    } else {
        eprintln!("{}", ended["summary"].as_str().unwrap_or_default());
    }
    Ok(follow::exit_code(&ended))
}

/// Uploads an input file. `argument` is `FILE`, or `FILE:PATH` with the path below `/input` at which the job finds the
/// file.
async fn upload(api: &Api, argument: &str) -> anyhow::Result<InputRequest> {
    let (file, path) = match argument.rsplit_once(':') {
        Some((file, path)) if !path.is_empty() => (PathBuf::from(file), path.to_owned()),
        _ => {
            let file = PathBuf::from(argument);
            let name = file.file_name().and_then(|name| name.to_str()).context("a file without a name")?.to_owned();
            (file, name)
        }
    };
    let content = tokio::fs::File::open(&file).await.with_context(|| format!("reading {}", file.display()))?;
    let bytes = content.metadata().await?.len();
    let input = CommandId::generate();
    let content = reqwest::Body::wrap_stream(ReaderStream::new(content));
    let request = api.request(Method::PUT, &format!("/inputs/{input}")).header("content-length", bytes).body(content);
    api.send(request).await.with_context(|| format!("uploading {}", file.display()))?;
    Ok(InputRequest { input, path })
}

/// Downloads the output files of a job. The job chose the names of the files, so they are not trusted: no file is
/// written outside the directory, and no link is followed.
async fn download(api: &Api, job: &str, ended: &Value, directory: &Path) -> anyhow::Result<()> {
    let files = ended["outputs"].as_array().cloned().unwrap_or_default();
    for file in &files {
        let path = file["path"].as_str().unwrap_or_default();
        let stays_inside = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\\');
        let is_safe = path.split('/').all(stays_inside) && !path.chars().any(char::is_control);
        ensure!(is_safe, "the name {path:?} is not safe: the file is not downloaded");
        let target = directory.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        }
        if fs::symlink_metadata(&target).is_ok_and(|metadata| metadata.is_symlink()) {
            bail!("{} is a link: no file is written through a link", target.display());
        }
        // Only the path of this URL is used. `extend` escapes the characters of the file's name.
        let mut url = reqwest::Url::parse(&format!("{}/x", api.url))?;
        let segments = url.path_segments_mut().map_err(|()| anyhow::anyhow!("the market's address has no path"));
        segments?.clear().extend(["jobs", job, "artifacts"]).extend(path.split('/'));
        let response = api.send(api.request(Method::GET, url.path())).await?;
        let (hash, bytes) = stream::save(response, &target).await.with_context(|| format!("fetching {path}"))?;
        ensure!(file["sha256"] == hash.as_str() && file["bytes"] == bytes, "{path} arrived damaged: fetch it again");
    }
    if !files.is_empty() {
        eprintln!("{} files were saved in {}", files.len(), directory.display());
    }
    Ok(())
}
