//! The commands and options that a person types.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use gpubnb_events::{
    JobId, MachineId,
    command::Secret,
    job_request::{InputRequest, JobRequest},
    spec::Strategy,
};

/// Runs jobs on spare GPU machines.
#[derive(Debug, Parser)]
#[command(name = "gpubnb", version)]
pub struct Cli {
    /// Address of the market; else the one that you logged in to.
    #[arg(long, global = true, env = "GPUBNB_URL", value_name = "URL")]
    pub(crate) url: Option<String>,
    /// Token; else the one that `login` keeps.
    #[arg(long, global = true, env = "GPUBNB_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub(crate) token: Option<String>,
    /// Certificate of the authority that signed the market's, if it is not a public one (PEM).
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
    /// Makes an account.
    SignUp(Who),
    /// Trades your password for a token, which is kept in your configuration directory.
    Login(Login),
    /// Forgets the token. Revoke it on your account page.
    Logout,
    /// Prints a one-time code for one more machine of yours.
    EnrollCode,
    /// Lists the machines on the market, cheapest first.
    Machines,
    /// Submits a job, shows what it says, fetches what it leaves, and exits with its code. Ctrl-C asks it to stop.
    Run(Box<Run>),
    /// Lists your jobs, newest first.
    Jobs {
        /// Only those in this state, such as Running.
        #[arg(long)]
        state: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// Prints what a job said.
    Logs {
        /// The job.
        job: String,
        /// Goes on until the job has ended.
        #[arg(short, long)]
        follow: bool,
    },
    /// Asks a job to stop.
    Cancel {
        /// The job.
        job: String,
    },
    /// Prints a job's bill.
    Receipt {
        /// The job.
        job: String,
    },
    /// Checks what a job left: that its machine has signed the list, and that the files are those of the list.
    Verify {
        /// The job.
        job: String,
        /// Where its files are; else only the list is checked.
        directory: Option<PathBuf>,
    },
    /// Checks the proof that an event is in the market's log, as its page gives it. Asks nobody.
    CheckProof {
        /// The file.
        file: PathBuf,
        /// Believes only a head signed by this public key.
        #[arg(long, value_name = "KEY")]
        key: Option<String>,
    },
    /// Prints a completion script for a shell.
    Completions {
        /// Which.
        shell: clap_complete::Shell,
    },
}

/// Who.
#[derive(Debug, Args)]
pub(crate) struct Who {
    /// E-mail address.
    pub(crate) email: String,
    /// Reads the password from the first line of this file, instead of asking for it.
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
}

/// Who, and for what.
#[derive(Debug, Args)]
pub(crate) struct Login {
    #[command(flatten)]
    pub(crate) who: Who,
    /// The name of the token on your account page.
    #[arg(long, default_value = "gpubnb command line")]
    pub(crate) label: String,
    /// How long it lives, days.
    #[arg(long, default_value_t = 90)]
    pub(crate) days: u32,
}

/// Which machine a job runs on.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// On this machine, and no other.
    #[arg(long)]
    machine: Option<MachineId>,
    /// How the market chooses a machine: the cheapest, if missing.
    #[arg(long, conflicts_with = "machine", value_name = "cheapest|fastest|most_reliable")]
    strategy: Option<Strategy>,
    /// Only on a machine of whose attempts at least so many percent ended without its fault.
    #[arg(long, conflicts_with = "machine", value_name = "PERCENT")]
    min_reliability: Option<u32>,
    /// Only on a machine that passed every check of its self-test.
    #[arg(long, conflicts_with = "machine")]
    verified: bool,
    /// Only on a machine with a GPU that has this in its model's name.
    #[arg(long, conflicts_with = "machine", value_name = "MODEL")]
    gpu_model: Option<String>,
    /// Only on a machine in this region.
    #[arg(long, conflicts_with = "machine")]
    region: Option<String>,
    /// Also on a machine whose GPUs are simulated: they compute nothing.
    #[arg(long, conflicts_with = "machine")]
    allow_simulated: bool,
}

/// The resources that a job may use.
#[derive(Debug, Args)]
pub(crate) struct Sizes {
    /// CPU, thousandths of a core.
    #[arg(long, value_name = "MILLIS")]
    cpu_millis: Option<u32>,
    /// Memory, MiB.
    #[arg(long = "memory-mib", visible_alias = "memory", value_name = "MIB")]
    memory_mib: Option<u64>,
    /// Size of `/dev/shm`, MiB, which counts as memory.
    #[arg(long, value_name = "MIB")]
    shm_mib: Option<u64>,
    /// Room for what the job leaves, MiB.
    #[arg(long, value_name = "MIB")]
    output_mib: Option<u64>,
    /// GPUs.
    #[arg(long)]
    gpus: Option<u32>,
    /// Memory of each GPU, MiB.
    #[arg(long = "vram-mib", visible_alias = "vram", value_name = "MIB")]
    vram_mib: Option<u64>,
    /// Needs the network.
    #[arg(long)]
    egress: bool,
}

/// The bounds of a job's life.
#[derive(Debug, Args)]
pub(crate) struct Bounds {
    /// Most it may cost per hour, dollars.
    #[arg(long, value_name = "USD")]
    price_cap: Option<String>,
    /// Most it may cost in all, dollars.
    #[arg(long, value_name = "USD")]
    budget: Option<String>,
    /// Wall-clock limit, seconds.
    #[arg(long = "time-seconds", visible_alias = "time", value_name = "SECONDS")]
    time_seconds: Option<u64>,
    /// How long it may wait for a machine, seconds.
    #[arg(long, value_name = "SECONDS")]
    queue_seconds: Option<u64>,
    /// How often it may start, where a machine fails.
    #[arg(long, value_name = "NUMBER")]
    max_attempts: Option<u32>,
    /// Starts it at most once, also where a machine fails.
    #[arg(long, conflicts_with = "max_attempts")]
    once: bool,
}

/// A job.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// An approved template, such as `train`.
    #[arg(long, conflicts_with = "image", required_unless_present = "image")]
    template: Option<String>,
    /// A custom image, pinned by its digest: name@sha256:…
    #[arg(long)]
    image: Option<String>,
    /// A choice of the template: name=value.
    #[arg(short, long = "param", value_name = "NAME=VALUE", value_parser = pair)]
    params: Vec<(String, String)>,
    /// The directory that it starts in, an absolute path; `/output` if missing.
    #[arg(long, value_name = "PATH")]
    workdir: Option<String>,
    /// A secret for the job: NAME=value, or NAME alone to pass on yours.
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// A file for the job, found below `/input`: `FILE`, or `FILE:path`.
    #[arg(short, long = "input", value_name = "FILE[:PATH]")]
    pub(crate) inputs: Vec<String>,
    /// A name for people.
    #[arg(long)]
    name: Option<String>,
    /// Its id, a UUID of version 7. The same id again is the same job.
    #[arg(long)]
    id: Option<JobId>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    sizes: Sizes,
    #[command(flatten)]
    bounds: Bounds,
    /// Does not wait: prints the job's id.
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Where to put what the job leaves; a directory named after the job, if missing.
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
    /// Fetches nothing.
    #[arg(long, conflicts_with = "output")]
    pub(crate) no_download: bool,
    /// Arguments for a custom image.
    #[arg(last = true)]
    command: Vec<String>,
}

impl Run {
    /// The request for the job; `inputs` are the files that were put for it.
    pub(crate) fn request(&self, inputs: Vec<InputRequest>) -> anyhow::Result<JobRequest> {
        let mut env = BTreeMap::new();
        for given in &self.env {
            let (name, value) = match given.split_once('=') {
                Some((name, value)) => (name.to_owned(), value.to_owned()),
                None => (given.clone(), std::env::var(given).with_context(|| format!("{given} is not set here"))?),
            };
            env.insert(name, Secret(value));
        }
        let Self { place, sizes, bounds, .. } = self;
        Ok(JobRequest {
            job: Some(self.id.unwrap_or_else(JobId::generate)),
            name: self.name.clone(),
            template: self.template.clone(),
            parameters: self.params.iter().cloned().collect(),
            image: self.image.clone(),
            command: self.command.clone(),
            workdir: self.workdir.clone(),
            cpu_millis: sizes.cpu_millis,
            memory_mib: sizes.memory_mib,
            shm_mib: sizes.shm_mib,
            output_mib: sizes.output_mib,
            gpus: sizes.gpus,
            vram_mib: sizes.vram_mib,
            egress: sizes.egress,
            machine: place.machine,
            price_cap_usd: bounds.price_cap.clone(),
            gpu_model: place.gpu_model.clone(),
            region: place.region.clone(),
            strategy: place.strategy,
            min_reliability: place.min_reliability,
            verified: place.verified,
            allow_simulated: place.allow_simulated,
            time_seconds: bounds.time_seconds,
            budget_usd: bounds.budget.clone(),
            max_attempts: if bounds.once { Some(1) } else { bounds.max_attempts },
            queue_seconds: bounds.queue_seconds,
            env,
            inputs,
        })
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as name=value")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_of_run_is_a_field_of_the_request() {
        let all = "gpubnb run --image a@sha256:00 --name n --cpu-millis 500 --memory 64 --output-mib 1 --shm-mib 32 --workdir /app --gpus 1 \
            --vram 8 --egress --strategy most-reliable --min-reliability 90 --verified --gpu-model 4090 \
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
            gpus: Some(1),
            vram_mib: Some(8),
            egress: true,
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
            // A template excludes an image, and a named machine excludes wishes of any other.
            template: None,
            parameters: BTreeMap::new(),
            machine: None,
            inputs: Vec::new(),
        };
        assert_eq!(request, expected);
    }

    #[test]
    fn the_options_do_not_contradict_each_other() {
        let command = <Cli as clap::CommandFactory>::command;
        command().debug_assert();
        let named = "gpubnb run --template noop --machine 01900000-0000-7000-8000-000000000001 --verified";
        assert!(command().try_get_matches_from(named.split_whitespace()).is_err());
    }
}
