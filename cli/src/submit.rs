//! `gpubnb run`: uploads the input files, submits the job, follows the job to its end, and downloads its output files.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use gpubnb_events::{
    CommandId, JobId,
    job_request::{InputRequest, JobRequest},
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio_util::io::ReaderStream;

use crate::{
    api::{Api, REQUEST_TIMEOUT},
    args::RunArgs,
    download, follow,
    signal::StopSignal,
};

pub(crate) async fn run(api: &Api, run: RunArgs, json: bool) -> anyhow::Result<u8> {
    let mut stop = StopSignal::new()?;
    let mut inputs = Vec::new();
    for input in &run.inputs {
        tokio::select! {
            uploaded = upload(api, input) => inputs.push(uploaded?),
            () = stop.received() => bail!("stopped before the job was submitted"),
        }
    }
    // The client makes the id, so that a request whose answer was lost can be repeated without a second job.
    let id = run.id.unwrap_or_else(JobId::generate);
    let job = id.to_string();
    let request = serde_json::to_value(JobRequest { job: Some(id), ..run.request(inputs)? })?;
    if !run.detach {
        errln!("Job {job}: {}/jobs/{job}", api.url);
    }
    let submit = || api.request(Method::POST, "/jobs").timeout(REQUEST_TIMEOUT).json(&request);
    let submitted: Value = tokio::select! {
        answer = api.send_repeatedly(submit) => answer?.json().await?,
        () = stop.received() => {
            // The market may have the job already.
            let cancel = api.post(&format!("/jobs/{job}/cancel"), &json!({})).await;
            if cancel.is_ok() {
                bail!("stopped before the market answered; the job was asked to stop: gpubnb logs {job}");
            }
            bail!("stopped before the market answered; the job may run: gpubnb cancel {job}");
        }
    };
    if run.detach {
        outln!("{}", if json { submitted.to_string() } else { job });
        return Ok(0);
    }
    let ended = follow::follow_until_settled(api, &job, json, Some(&mut stop)).await?;
    let code = follow::exit_code(&ended);
    if json {
        outln!("{ended}");
    } else {
        errln!("{}", ended["summary"].as_str().unwrap_or_default());
    }
    if !run.no_download {
        let directory = run.output.clone().unwrap_or_else(|| PathBuf::from(&job));
        tokio::select! {
            saved = download::save_all(api, &job, &ended, &directory) => saved?,
            () = stop.received() => bail!("stopped; the rest of the files: gpubnb fetch {job}"),
        }
    }
    Ok(code)
}

/// Uploads an input file. `argument` is `FILE`, or `FILE:PATH` with the path below `/input` at which the job finds the
/// file.
async fn upload(api: &Api, argument: &str) -> anyhow::Result<InputRequest> {
    let (file, path) = match argument.rsplit_once(':') {
        // If there is a file whose name is the whole argument, such as `a:b`, the argument names that file.
        Some((file, path)) if !path.is_empty() && !Path::new(argument).exists() => {
            (PathBuf::from(file), path.to_owned())
        }
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
