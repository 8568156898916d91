//! The commands and options of the command line.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use gpubnb_events::{
    JobId, MachineId,
    command::Secret,
    job_request::{InputRequest, JobRequest},
    spec::{Egress, Strategy},
};

/// Runs jobs on spare GPU machines.
#[derive(Debug, Parser)]
#[command(name = "gpubnb", version)]
pub struct Cli {
    /// Address of the market. Default: the market that you logged in to.
    #[arg(long, global = true, env = "GPUBNB_URL", value_name = "URL")]
    pub(crate) url: Option<String>,
    /// Token. Default: the token that `login` saved.
    #[arg(long, global = true, env = "GPUBNB_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub(crate) token: Option<String>,
    /// Certificate (PEM) of a private certificate authority that the client trusts as well.
    #[arg(long, global = true, env = "GPUBNB_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Prints JSON, for programs.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// The command.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Creates an account.
    SignUp(CredentialArgs),
    /// Exchanges your password for a token, which is saved in your configuration directory.
    Login(LoginArgs),
    /// Deletes the saved token. The token stays valid until you revoke it on your account page.
    Logout,
    /// Prints a one-time code with which you enroll one more machine.
    EnrollCode,
    /// Lists the machines on the market, cheapest first.
    Machines,
    /// Submits a job, shows its output, downloads its files, and exits with its exit code. Ctrl-C or SIGTERM cancels
    /// the job.
    Run(Box<RunArgs>),
    /// Lists your jobs, newest first.
    Jobs {
        /// Lists only jobs in this state, such as Running.
        #[arg(long)]
        state: Option<String>,
        /// Number of jobs to list at most.
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Prints the output of a job.
    Logs {
        /// The job: its id, or the end of its id, as pages show it.
        job: String,
        /// Also prints new output, until the job is settled.
        #[arg(short, long)]
        follow: bool,
    },
    /// Downloads the files of a job. Files that are there already, and are the same, are kept.
    Fetch {
        /// The job: its id, or the end of its id, as pages show it.
        job: String,
        /// Directory for the files. Default: a directory with the id of the job.
        directory: Option<PathBuf>,
    },
    /// Cancels a job.
    Cancel {
        /// The job: its id, or the end of its id, as pages show it.
        job: String,
    },
    /// Prints a job's bill.
    Receipt {
        /// The job: its id, or the end of its id, as pages show it.
        job: String,
    },
    /// Checks the files and the log of a job: the machine's signatures, the hash of each file, and every line.
    Verify {
        /// The job: its id, or the end of its id, as pages show it.
        job: String,
        /// Directory of the downloaded files. Without it, only the list is checked.
        directory: Option<PathBuf>,
    },
    /// Checks the proof that an event is in the market's log. The event's page offers the proof. Needs no network.
    CheckProof {
        /// The file with the proof.
        file: PathBuf,
        /// A public key of the market, which signs its log. Can be repeated. Without this option, the keys are those
        /// that the market published at the first login.
        #[arg(long = "key", value_name = "KEY")]
        keys: Vec<String>,
    },
    /// Prints a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// The credentials of an account.
#[derive(Debug, Args)]
pub(crate) struct CredentialArgs {
    /// E-mail address.
    pub(crate) email: String,
    /// Reads the password from the first line of this file, instead of asking for it.
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// Reads the password from the first line of the standard input, instead of asking for it.
    #[arg(long, conflicts_with = "password_file")]
    pub(crate) password_stdin: bool,
}

/// Options of `login`.
#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    #[command(flatten)]
    pub(crate) credentials: CredentialArgs,
    /// The name of the token on your account page.
    #[arg(long, default_value = "gpubnb command line")]
    pub(crate) label: String,
    /// Lifetime of the token, days.
    #[arg(long, default_value_t = 90)]
    pub(crate) days: u32,
}

/// Options that choose the machine of a job.
#[derive(Debug, Args)]
pub(crate) struct PlacementArgs {
    /// Runs the job on this machine only.
    #[arg(long)]
    machine: Option<MachineId>,
    /// Strategy by which the market chooses a machine. Default: cheapest.
    #[arg(long, conflicts_with = "machine", value_name = "cheapest|fastest|most_reliable")]
    strategy: Option<Strategy>,
    /// Requires a machine with at least this percentage of attempts that ended without a fault of the machine.
    #[arg(long, conflicts_with = "machine", value_name = "PERCENT")]
    min_reliability: Option<u32>,
    /// Requires a machine that passed its self-test.
    #[arg(long, conflicts_with = "machine")]
    verified: bool,
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
    #[arg(long, conflicts_with = "machine")]
    allow_simulated: bool,
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
    /// names below it too, `any` for every public host.
    #[arg(long, value_name = "HOSTS", default_value = "none", hide_default_value = true)]
    egress: Egress,
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

/// Options of `run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// An approved template, such as `train`.
    #[arg(long, conflicts_with = "image", required_unless_present = "image")]
    template: Option<String>,
    /// A custom image, pinned by its digest: name@sha256:…
    #[arg(long)]
    image: Option<String>,
    /// A parameter of the template: name=value.
    #[arg(short, long = "param", value_name = "NAME=VALUE", value_parser = parse_pair)]
    params: Vec<(String, String)>,
    /// The absolute path of the directory in which the command starts. Default: `/output`.
    #[arg(long, value_name = "PATH")]
    workdir: Option<String>,
    /// A secret variable for the job: NAME=value, or NAME alone to pass on the value from your own environment.
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// An input file: `FILE`, or `FILE:path` for another path below `/input`.
    #[arg(short, long = "input", value_name = "FILE[:PATH]")]
    pub(crate) inputs: Vec<String>,
    /// The name of the job on pages and in lists.
    #[arg(long)]
    name: Option<String>,
    /// The id of the job, a UUID of version 7. To repeat a submission safely, give the same id.
    #[arg(long)]
    pub(crate) id: Option<JobId>,
    #[command(flatten)]
    placement: PlacementArgs,
    #[command(flatten)]
    resources: ResourceArgs,
    #[command(flatten)]
    limits: LimitArgs,
    /// Prints the job's id and does not wait for the job.
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Directory for the output files. Default: a new directory named after the job's id.
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
    /// Downloads no files.
    #[arg(long, conflicts_with = "output")]
    pub(crate) no_download: bool,
    /// Arguments for a custom image.
    #[arg(last = true)]
    command: Vec<String>,
}

impl RunArgs {
    /// The request for the job. `inputs` are the uploaded files.
    pub(crate) fn request(&self, inputs: Vec<InputRequest>) -> anyhow::Result<JobRequest> {
        let mut env = BTreeMap::new();
        for given in &self.env {
            let (name, value) = match given.split_once('=') {
                Some((name, value)) => (name.to_owned(), value.to_owned()),
                None => (given.clone(), std::env::var(given).with_context(|| format!("{given} is not set here"))?),
            };
            env.insert(name, Secret(value));
        }
        let Self { placement, resources, limits, .. } = self;
        Ok(JobRequest {
            job: self.id,
            name: self.name.clone(),
            template: self.template.clone(),
            parameters: self.params.iter().cloned().collect(),
            image: self.image.clone(),
            command: self.command.clone(),
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
            egress: resources.egress.clone(),
            machine: placement.machine,
            price_cap_usd: limits.price_cap.clone(),
            gpu_model: placement.gpu_model.clone(),
            region: placement.region.clone(),
            min_cuda: placement.min_cuda.clone(),
            strategy: placement.strategy,
            min_reliability: placement.min_reliability,
            verified: placement.verified,
            allow_simulated: placement.allow_simulated,
            time_seconds: limits.time_seconds,
            budget_usd: limits.budget.clone(),
            max_attempts: if limits.once { Some(1) } else { limits.max_attempts },
            queue_seconds: limits.queue_seconds,
            env,
            inputs,
        })
    }
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as name=value")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_of_run_is_a_field_of_the_request() {
        let all = "gpubnb run --image a@sha256:00 --name n --cpu-millis 500 --memory 64 --output-mib 1 \
            --disk-mib 40 --pids 600 --open-files 5000 --min-cuda 12.4 --shm-mib 32 --workdir /app --gpus 1 \
            --vram 8 --egress *.pypi.org,github.com --strategy most-reliable --min-reliability 90 --verified \
            --gpu-model 4090 \
            --region eu --allow-simulated --price-cap 1.5 --budget 2 --time 10 --queue-seconds 61 \
            --max-attempts 2 -e A=b -- python train.py";
        let Command::Run(run) = Cli::try_parse_from(all.split_whitespace()).unwrap().command else { panic!("run") };
        let text = |text: &str| Some(text.to_owned());
        let request = run.request(Vec::new()).unwrap();
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
            // `--template` excludes `--image`, and `--machine` excludes the other options of placement.
            template: None,
            parameters: BTreeMap::new(),
            machine: None,
            inputs: Vec::new(),
        };
        assert_eq!(request, expected);
    }

    #[test]
    fn the_options_are_consistent_and_machine_excludes_other_placement() {
        let command = <Cli as clap::CommandFactory>::command;
        command().debug_assert();
        let named = "gpubnb run --template noop --machine 01900000-0000-7000-8000-000000000001 --verified";
        assert!(command().try_get_matches_from(named.split_whitespace()).is_err());
    }
}
