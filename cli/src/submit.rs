//! `gpubnb run`: uploads the directory and the input files, submits the job, follows the job to its end, and downloads
//! its output files.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use gpubnb_events::{
    CommandId, JobId,
    job_request::{DatasetRequest, InputRequest, JobRequest},
    spec::Egress,
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio_util::io::ReaderStream;

use crate::{
    api::{Api, REQUEST_TIMEOUT},
    args::RunArgs,
    batch, datasets,
    directory::Directory,
    download, follow,
    job_args::{JobArgs, JobOptions, read_env},
    project::{self, Project},
    show,
    signal::StopSignal,
};

pub(crate) async fn run(api: &Api, run: RunArgs, json: bool) -> anyhow::Result<u8> {
    if run.tasks.are_named() {
        return batch::run(api, batch::Submission::from_run(run)?, json).await;
    }
    let mut stop = StopSignal::new()?;
    let request = tokio::select! {
        request = prepare(api, &run.job) => request?,
        () = stop.received() => bail!("stopped before the job was submitted"),
    };
    // The client makes the id, so that a request whose answer was lost can be repeated without a second job.
    let id = run.id.unwrap_or_else(JobId::generate);
    let job = id.to_string();
    let request = serde_json::to_value(JobRequest { job: Some(id), ..request })?;
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
    if run.end.detach {
        outln!("{}", if json { submitted.to_string() } else { job });
        return Ok(0);
    }
    errln!("Job {job}: {}/jobs/{job}", api.url);
    let ended = follow::follow_until_settled(api, &job, json, Some(&mut stop)).await?;
    let code = follow::exit_code(&ended);
    if json {
        outln!("{ended}");
    } else {
        errln!("{}", ended["summary"].as_str().unwrap_or_default());
    }
    if !run.end.no_download {
        let directory = run.end.output.clone().unwrap_or_else(|| PathBuf::from(&job));
        tokio::select! {
            saved = download::save_all(api, &job, &ended, &directory) => saved?,
            () = stop.received() => bail!("stopped; the rest of the files: gpubnb fetch {job}"),
        }
    }
    Ok(code)
}

/// The name of the directory in `/scratch` that has the copy of the code.
const CODE: &str = "code";

/// The job that a person describes: the directory with the code, the options and the command.
#[derive(Clone, Copy)]
pub(crate) struct Described<'a> {
    pub(crate) directory: Option<&'a Path>,
    pub(crate) options: &'a JobOptions,
    pub(crate) command: &'a [String],
}

impl<'a> From<&'a JobArgs> for Described<'a> {
    fn from(args: &'a JobArgs) -> Self {
        let JobArgs { directory, options, command } = args;
        Self { directory: directory.as_deref(), options, command }
    }
}

/// The request for a job, from the options and from `gpubnb.toml`, and the paths of the input files on this computer.
pub(crate) fn describe(job: Described<'_>) -> anyhow::Result<(JobRequest, Vec<String>)> {
    let args = job.options;
    if let Some(directory) = job.directory {
        let example = "a command stands after `--`, as in `gpubnb run . -- python train.py`";
        ensure!(directory.is_dir(), "{} is not a directory; {example}", directory.display());
        let is_template = args.template.is_some();
        ensure!(!is_template, "a template runs its own program: leave the directory out, or name an image instead");
    }
    let Project { request: mut file, mut inputs, mut env } =
        job.directory.map(Project::read).transpose()?.flatten().unwrap_or_default();
    let mut options = args.request(job.command)?;
    if args.resources.egress.is_some() {
        file.egress = Egress::default();
    }
    file.verified &= args.placement.verified != Some(false);
    file.allow_simulated &= args.placement.allow_simulated != Some(false);
    // A variable has one value: the value of an option wins.
    env.retain(|name| !options.env.contains_key(name) && !options.secrets.contains(name));
    file.secrets.retain(|name| !options.env.contains_key(name) && !options.secrets.contains(name));
    options.env.extend(read_env(&env)?);
    let request = project::merge(file, options)?;
    if request.image.is_none() && request.template.is_none() {
        bail!(
            "the job has no program: name an image (--image python:3.12), a template (--template noop), or a directory \
             with a gpubnb.toml (gpubnb run .), which `gpubnb init` writes"
        );
    }
    inputs.extend(args.inputs.iter().cloned());
    Ok((request, inputs))
}

/// Uploads the files of a job, and returns the request that names them. The market is asked first whether it would take
/// the job, so that a wrong name does not cost the time of an upload.
async fn prepare(api: &Api, args: &JobArgs) -> anyhow::Result<JobRequest> {
    let (request, inputs) = describe(args.into())?;
    if args.directory.is_some() || !inputs.is_empty() {
        let quote = api.post("/quote", &serde_json::to_value(&request)?).await?;
        check_funds(&quote["hold"], &quote["available"])?;
    }
    upload_files(api, request, args.directory.as_deref(), &inputs).await
}

/// Refuses what may cost more than the account has, before files are uploaded.
pub(crate) fn check_funds(hold: &Value, available: &Value) -> anyhow::Result<()> {
    ensure!(
        hold.as_i64() <= available.as_i64(),
        "this needs {}, and {} is available: add funds on the page Wallet, or name a smaller --budget",
        show::dollars(hold),
        show::dollars(available)
    );
    Ok(())
}

/// Uploads the files of a job, and returns the request that names them.
pub(crate) async fn upload_files(
    api: &Api,
    mut request: JobRequest,
    directory: Option<&Path>,
    inputs: &[String],
) -> anyhow::Result<JobRequest> {
    for input in inputs {
        request.inputs.push(upload(api, input).await?);
    }
    // A template runs its own program.
    if let Some(directory) = directory.map(Path::to_owned).filter(|_| request.template.is_none()) {
        let directory = tokio::task::spawn_blocking(move || Directory::of_code(&directory)).await??;
        let stored = datasets::push(api, directory, None).await?;
        let dataset = stored["dataset"].as_str().unwrap_or_default().to_owned();
        request.datasets.push(DatasetRequest { dataset, directory: Some(CODE.to_owned()), writable: true });
        request.workdir.get_or_insert_with(|| format!("/scratch/{CODE}"));
    }
    Ok(request)
}

/// `gpubnb quote`: what a job would cost at most. The files of the job are not needed for that, and their room on the
/// job's disk is not counted.
pub(crate) async fn quote(api: &Api, args: &JobArgs, json: bool) -> anyhow::Result<u8> {
    let (request, _) = describe(args.into())?;
    let quote = api.post("/quote", &serde_json::to_value(request)?).await?;
    if json {
        outln!("{quote}");
    } else {
        show::quote(&quote);
    }
    Ok(0)
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
