//! The options that describe a job. Each is a field of the market's `JobRequest`.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::Context as _;
use clap::Args;
use gpubnb_events::{
    MachineId,
    command::Secret,
    job_request::{DatasetRequest, JobRequest},
    spec::{Egress, Strategy},
};

/// Options that choose the machine of a job.
#[derive(Debug, Args)]
pub(crate) struct PlacementArgs {
    /// Runs the job on this machine only.
    #[arg(long)]
    machine: Option<MachineId>,
    /// Strategy by which the market chooses a machine. Default: cheapest.
    #[arg(long, conflicts_with = "machine", value_name = "cheapest|fastest|most_reliable")]
    strategy: Option<Strategy>,
    /// The lowest reliability of the machine, percent: the share of attempts that ended without a fault of the machine.
    #[arg(long, conflicts_with = "machine", value_name = "PERCENT")]
    min_reliability: Option<u32>,
    /// Requires a machine that passed its self-test.
    #[arg(long, conflicts_with = "machine", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) verified: Option<bool>,
    /// Requires a GPU whose model name contains this text.
    #[arg(long, conflicts_with = "machine", value_name = "MODEL")]
    gpu_model: Option<String>,
    /// The oldest CUDA version that the machine's driver must support, such as 12.4.
    #[arg(long, conflicts_with = "machine", value_name = "VERSION")]
    min_cuda: Option<String>,
    /// Requires a machine in this region.
    #[arg(long, conflicts_with = "machine")]
    region: Option<String>,
    /// Allows machines with simulated GPUs, which compute nothing.
    #[arg(long, conflicts_with = "machine", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) allow_simulated: Option<bool>,
}

/// The resources that a job may use.
#[derive(Debug, Args)]
pub(crate) struct ResourceArgs {
    /// CPU, thousandths of a core.
    #[arg(long, value_name = "MILLIS")]
    cpu_millis: Option<u32>,
    /// Memory, MiB.
    #[arg(long = "memory-mib", visible_alias = "memory", value_name = "MIB")]
    memory_mib: Option<u64>,
    /// Size of `/dev/shm`, MiB. This counts as memory.
    #[arg(long, value_name = "MIB")]
    shm_mib: Option<u64>,
    /// The most that is kept of the output files, MiB.
    #[arg(long, value_name = "MIB")]
    output_mib: Option<u64>,
    /// Size of the job's disk, MiB, with `/output`, `/scratch` and the image's volumes. Default: 256 more than the
    /// output.
    #[arg(long, value_name = "MIB")]
    disk_mib: Option<u64>,
    /// The most processes and threads. Default: 512.
    #[arg(long, value_name = "NUMBER")]
    pids: Option<u32>,
    /// The most open files of each process. Default: 4096.
    #[arg(long, value_name = "NUMBER")]
    open_files: Option<u32>,
    /// Number of GPUs.
    #[arg(long)]
    gpus: Option<u32>,
    /// Memory of each GPU, MiB.
    #[arg(long = "vram-mib", visible_alias = "vram", value_name = "MIB")]
    vram_mib: Option<u64>,
    /// The hosts of the internet that the job may reach, with commas between them: `pypi.org`, `*.pypi.org` for all
    /// names below it too, `any` for every public host, `none` for no host.
    #[arg(long, value_name = "HOSTS")]
    pub(crate) egress: Option<Egress>,
}

/// The limits of a job.
#[derive(Debug, Args)]
pub(crate) struct LimitArgs {
    /// The highest price per hour, dollars.
    #[arg(long, value_name = "USD")]
    price_cap: Option<String>,
    /// The highest total cost, dollars.
    #[arg(long, value_name = "USD")]
    budget: Option<String>,
    /// The longest run time, seconds.
    #[arg(long = "time-seconds", visible_alias = "time", value_name = "SECONDS")]
    time_seconds: Option<u64>,
    /// The longest wait for a machine, seconds.
    #[arg(long, value_name = "SECONDS")]
    queue_seconds: Option<u64>,
    /// Number of attempts at most. Another attempt is made only if a machine fails.
    #[arg(long, value_name = "NUMBER")]
    max_attempts: Option<u32>,
    /// Starts the job at most once, even if a machine fails.
    #[arg(long, conflicts_with = "max_attempts")]
    once: bool,
}

/// A job.
#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// A directory with the code of the job, such as `.`. The command starts in a copy of the directory, without the
    /// files that `.gitignore` and `.gpubnbignore` name. Its `gpubnb.toml` has the options that are not given here.
    #[arg(value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) options: JobOptions,
    /// Arguments for a custom image: the command.
    #[arg(last = true)]
    pub(crate) command: Vec<String>,
}

/// The options of a job.
#[derive(Debug, Args)]
pub(crate) struct JobOptions {
    /// An approved template, such as `train`; `gpubnb templates` lists them.
    #[arg(long, conflicts_with = "image")]
    pub(crate) template: Option<String>,
    /// A custom image in a public registry: `python:3.12`, or `ghcr.io/team/tool@sha256:…`. The market finds the digest
    /// that a tag stands for now, and the job keeps it.
    #[arg(long)]
    image: Option<String>,
    /// A parameter of the template: name=value.
    #[arg(short, long = "param", value_name = "NAME=VALUE", value_parser = parse_pair)]
    params: Vec<(String, String)>,
    /// The absolute path of the directory in which the command starts. Default: the image's own, or `/output`.
    #[arg(long, value_name = "PATH")]
    workdir: Option<String>,
    /// A secret variable for the job: NAME=value, or NAME alone to pass on the value from your own environment.
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// The names of stored secrets that the job gets as environment variables, with commas between them.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    secrets: Vec<String>,
    /// An input file: `FILE`, or `FILE:path` for another path below `/input`.
    #[arg(short, long = "input", value_name = "FILE[:PATH]")]
    pub(crate) inputs: Vec<String>,
    /// The name of the job on pages and in lists.
    #[arg(long)]
    name: Option<String>,
    /// A dataset: `NAME`, `NAME:DIRECTORY` for another directory than `/data/NAME`, or `NAME:DIRECTORY:rw` for a copy
    /// in `/scratch/DIRECTORY`, which the job may change. Can be repeated.
    #[arg(long, value_name = "NAME[:DIRECTORY[:rw]]", value_parser = parse_data)]
    data: Vec<DatasetRequest>,
    #[command(flatten)]
    pub(crate) placement: PlacementArgs,
    #[command(flatten)]
    pub(crate) resources: ResourceArgs,
    #[command(flatten)]
    limits: LimitArgs,
}

impl JobOptions {
    /// The request for the job with this command, without the files that must be uploaded first.
    pub(crate) fn request(&self, command: &[String]) -> anyhow::Result<JobRequest> {
        let Self { placement, resources, limits, .. } = self;
        Ok(JobRequest {
            job: None,
            name: self.name.clone(),
            template: self.template.clone(),
            parameters: self.params.iter().cloned().collect(),
            image: self.image.clone(),
            command: command.to_vec(),
            workdir: self.workdir.clone(),
            cpu_millis: resources.cpu_millis,
            memory_mib: resources.memory_mib,
            shm_mib: resources.shm_mib,
            output_mib: resources.output_mib,
            disk_mib: resources.disk_mib,
            pids: resources.pids,
            open_files: resources.open_files,
            gpus: resources.gpus,
            vram_mib: resources.vram_mib,
            egress: resources.egress.clone().unwrap_or_default(),
            machine: placement.machine,
            price_cap_usd: limits.price_cap.clone(),
            gpu_model: placement.gpu_model.clone(),
            region: placement.region.clone(),
            min_cuda: placement.min_cuda.clone(),
            strategy: placement.strategy,
            min_reliability: placement.min_reliability,
            verified: placement.verified.unwrap_or_default(),
            allow_simulated: placement.allow_simulated.unwrap_or_default(),
            time_seconds: limits.time_seconds,
            budget_usd: limits.budget.clone(),
            max_attempts: if limits.once { Some(1) } else { limits.max_attempts },
            queue_seconds: limits.queue_seconds,
            env: read_env(&self.env)?,
            secrets: self.secrets.clone(),
            inputs: Vec::new(),
            datasets: self.data.clone(),
        })
    }
}

/// Reads `NAME=value`, or `NAME` for the value in the environment of this process.
pub(crate) fn read_env(given: &[String]) -> anyhow::Result<BTreeMap<String, Secret>> {
    let read = |given: &String| {
        let (name, value) = match given.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => (given.clone(), std::env::var(given).with_context(|| format!("{given} is not set here"))?),
        };
        Ok((name, Secret(value)))
    };
    given.iter().map(read).collect()
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as name=value")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn parse_data(text: &str) -> Result<DatasetRequest, String> {
    let mut parts = text.split(':');
    let (dataset, directory, mode) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    let writable = mode == Some("rw");
    if dataset.is_empty() || parts.next().is_some() || (mode.is_some() && !writable) {
        return Err("write it as NAME, NAME:DIRECTORY or NAME:DIRECTORY:rw".to_owned());
    }
    let directory = directory.filter(|directory| !directory.is_empty()).map(ToOwned::to_owned);
    Ok(DatasetRequest { dataset: dataset.to_owned(), directory, writable })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser as _;

    #[test]
    fn every_option_of_run_is_a_field_of_the_request() {
        let all = "gpubnb run --image a@sha256:00 --name n --cpu-millis 500 --memory 64 --output-mib 1 \
            --disk-mib 40 --pids 600 --open-files 5000 --min-cuda 12.4 --shm-mib 32 --workdir /app --gpus 1 \
            --vram 8 --egress *.pypi.org,github.com --strategy most-reliable --min-reliability 90 --verified \
            --gpu-model 4090 \
            --region eu --allow-simulated --price-cap 1.5 --budget 2 --time 10 --queue-seconds 61 \
            --max-attempts 2 -e A=b --secrets HF_TOKEN,Z --data mnist --data abc:code:rw -- python train.py";
        let Command::Run(run) = Cli::try_parse_from(all.split_whitespace()).unwrap().command else { panic!("run") };
        let text = |text: &str| Some(text.to_owned());
        let request = run.job.options.request(&run.job.command).unwrap();
        let expected = JobRequest {
            job: request.job,
            name: text("n"),
            image: text("a@sha256:00"),
            command: vec!["python".to_owned(), "train.py".to_owned()],
            workdir: text("/app"),
            cpu_millis: Some(500),
            memory_mib: Some(64),
            shm_mib: Some(32),
            output_mib: Some(1),
            disk_mib: Some(40),
            pids: Some(600),
            open_files: Some(5_000),
            min_cuda: text("12.4"),
            gpus: Some(1),
            vram_mib: Some(8),
            egress: "*.pypi.org,github.com".parse().unwrap(),
            price_cap_usd: text("1.5"),
            gpu_model: text("4090"),
            region: text("eu"),
            strategy: Some(Strategy::MostReliable),
            min_reliability: Some(90),
            verified: true,
            allow_simulated: true,
            time_seconds: Some(10),
            budget_usd: text("2"),
            max_attempts: Some(2),
            queue_seconds: Some(61),
            env: [("A".to_owned(), Secret("b".to_owned()))].into(),
            secrets: vec!["HF_TOKEN".to_owned(), "Z".to_owned()],
            // `--template` excludes `--image`, and `--machine` excludes the other options of placement.
            template: None,
            parameters: BTreeMap::new(),
            machine: None,
            inputs: Vec::new(),
            datasets: vec![
                DatasetRequest { dataset: "mnist".to_owned(), directory: None, writable: false },
                DatasetRequest { dataset: "abc".to_owned(), directory: text("code"), writable: true },
            ],
        };
        assert_eq!(request, expected);
    }
}
