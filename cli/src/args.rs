//! The commands and options of the command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use gpubnb_events::{CommandId, JobId, Millis, notification::NotificationKind};
use serde::Serialize;

use crate::{
    batch_args::{BatchCommand, MapArgs, TaskArgs},
    job_args::JobArgs,
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
    /// Signs in, and saves a token in your configuration directory.
    Login(LoginArgs),
    /// Deletes the saved token. The token stays valid until you revoke it on your account page.
    Logout,
    /// Prints a one-time code with which you enroll one more machine.
    EnrollCode,
    /// Lists the templates: the jobs that the market has approved, with their usual time and cost.
    Templates,
    /// Lists the machines on the market, cheapest first.
    Machines(Box<MachineFilters>),
    /// Runs a job: streams its log, downloads its files, and exits with its exit code. Ctrl-C or SIGTERM cancels the
    /// job.
    Run(Box<RunArgs>),
    /// Runs a command once for each file: uploads the files, runs all tasks, and downloads their files. Ctrl-C cancels
    /// the rest.
    Map(Box<MapArgs>),
    /// Shows and cancels batches: many tasks that were submitted together with `map`, or with `run` and `--sweep`,
    /// `--array`, `--each-line` or `--from-json`.
    Batch {
        /// The command.
        #[command(subcommand)]
        command: BatchCommand,
    },
    /// Prints what a job would cost at most, and the machine on which it would run now. Nothing is uploaded or held.
    Quote(Box<QuoteArgs>),
    /// Writes a `gpubnb.toml` to begin with: the options of `gpubnb run` for one directory.
    Init {
        /// The directory.
        #[arg(default_value = ".")]
        directory: PathBuf,
    },
    /// Stores directories of files for your jobs.
    Data {
        /// The command.
        #[command(subcommand)]
        command: DataCommand,
    },
    /// Lists your jobs, newest first.
    Jobs {
        /// Lists only jobs in this state, such as Running.
        #[arg(long)]
        state: Option<String>,
        /// Lists only jobs with this text in their name, image or id.
        #[arg(long)]
        text: Option<String>,
        /// Number of jobs to list at most.
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Prints the output of a job.
    Logs {
        /// The job: its id, or the end of its id, as pages show it.
        job: String,
        /// Also prints new output, until the job is settled.
        #[arg(short, long)]
        follow: bool,
        #[command(flatten)]
        filter: LineFilter,
    },
    /// Downloads the files of a job. Files that are there already, and are the same, are kept.
    Fetch {
        /// The job: its id, or the end of its id, as pages show it.
        job: String,
        /// Directory for the files. Default: a directory with the id of the job.
        directory: Option<PathBuf>,
    },
    /// Shows your newest jobs and your money, and goes on showing them until Ctrl-C.
    Top,
    /// Waits until a job is settled, and exits with its exit code.
    Wait {
        /// The job: its id, or the end of its id, as pages show it.
        job: String,
    },
    /// Opens the page of a job in the browser.
    Open {
        /// The job: its id, or the end of its id, as pages show it.
        job: String,
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
    /// Stores tokens and keys once, for jobs that name them.
    Secrets {
        /// The command.
        #[command(subcommand)]
        command: SecretCommand,
    },
    /// Tells programs of yours what happens, by requests to their addresses.
    Webhooks {
        /// The command.
        #[command(subcommand)]
        command: WebhookCommand,
    },
    /// Prints the JSON schema of `gpubnb.toml`, with which editors check the file.
    Schema,
    /// Writes the manual pages of all commands into a directory.
    Man {
        /// The directory, which must exist.
        directory: PathBuf,
    },
    /// Prints a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// The machines that are listed. Each option is a filter of the page *Market*.
#[derive(Debug, Default, Args, Serialize)]
pub(crate) struct MachineFilters {
    /// A part of the machine's name or region, or of the model of its CPU or a GPU.
    #[arg(long)]
    text: Option<String>,
    /// Machines with a GPU, or without one.
    #[arg(long, value_parser = ["gpu", "cpu"])]
    kind: Option<String>,
    /// Machines that can take a job now, or that passed their self-test.
    #[arg(long, value_parser = ["free", "verified"])]
    only: Option<String>,
    /// A part of a GPU's model name.
    #[arg(long)]
    gpu: Option<String>,
    /// Number of GPUs.
    #[arg(long)]
    min_gpus: Option<u32>,
    /// Memory of the largest GPU, GiB.
    #[arg(long)]
    min_vram: Option<f64>,
    /// The region.
    #[arg(long)]
    region: Option<String>,
    /// The highest price per hour, dollars.
    #[arg(long, value_name = "USD")]
    max_price: Option<f64>,
    /// Attempts without a failure of the machine, percent.
    #[arg(long, value_name = "PERCENT")]
    min_reliability: Option<u32>,
    /// Owners who share at all hours, or who allow jobs to use the internet.
    #[arg(long, value_parser = ["finishes", "egress"])]
    owner: Option<String>,
    /// The state, such as Online.
    #[arg(long)]
    state: Option<String>,
    /// A part of the version of the driver or of CUDA, such as 12.4.
    #[arg(long)]
    driver: Option<String>,
    /// Cores of the CPU.
    #[arg(long)]
    min_cores: Option<u32>,
    /// Memory, GiB.
    #[arg(long)]
    min_ram: Option<f64>,
    /// Room on the disk, GiB.
    #[arg(long)]
    min_disk: Option<f64>,
    /// Measured download speed, Mbit/s.
    #[arg(long)]
    min_down: Option<f64>,
    /// Measured upload speed, Mbit/s.
    #[arg(long)]
    min_up: Option<f64>,
    /// Measured speed per dollar.
    #[arg(long)]
    min_score: Option<f64>,
    /// `real` for machines without simulated GPUs.
    #[arg(long, value_parser = ["real"])]
    simulated: Option<String>,
}

/// The lines of a log that are printed.
#[derive(Debug, Default, Args)]
pub(crate) struct LineFilter {
    /// Prints only lines with this text.
    #[arg(long, value_name = "TEXT")]
    pub(crate) grep: Option<String>,
    /// Prints only lines that are at most this old: 90s, 10m, 2h or 1d.
    #[arg(long, value_name = "TIME", value_parser = parse_age)]
    pub(crate) since: Option<Millis>,
}

/// Reads a time such as `10m`.
fn parse_age(text: &str) -> Result<Millis, String> {
    let wrong = || "write it as 90s, 10m, 2h or 1d".to_owned();
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let seconds = [("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400)].into_iter().find(|(name, _)| *name == unit);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    Ok(Millis(number.saturating_mul(seconds.ok_or_else(wrong)?.1 * 1_000)))
}

/// The commands about datasets.
#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Uploads a directory. Only what the market does not have is sent. What `.gitignore` and `.gpubnbignore` name is
    /// left out.
    Push {
        /// The directory.
        directory: PathBuf,
        /// A name for the dataset. A name stands for the newest dataset with this name.
        #[arg(long)]
        name: Option<String>,
    },
    /// Lists your datasets, newest first.
    #[command(visible_alias = "ls")]
    List,
    /// Lists the files of a dataset.
    Info {
        /// The name of the dataset, or the beginning of its id.
        dataset: String,
    },
    /// Deletes a dataset that no open job needs.
    #[command(visible_alias = "rm")]
    Delete {
        /// The name of the dataset, or the beginning of its id.
        dataset: String,
    },
}

/// The commands about secrets.
#[derive(Debug, Subcommand)]
pub(crate) enum SecretCommand {
    /// Lists the names of your secrets. Nobody can read their values again.
    List,
    /// Stores a value under a name, in place of an earlier value. At a terminal the value is asked for; otherwise the
    /// standard input is the value, without the line break at its end.
    Set {
        /// The name: that of the environment variable with which a job gets the value, such as `HF_TOKEN`.
        name: String,
        /// Reads the value from this text file, with its line breaks.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Deletes a secret. Jobs that have it keep it until they end.
    Delete {
        /// The name.
        name: String,
    },
}

/// The commands about webhooks.
#[derive(Debug, Subcommand)]
pub(crate) enum WebhookCommand {
    /// Lists your webhooks.
    List,
    /// Adds a webhook, and prints its id and its secret.
    Add {
        /// The address, https://…
        #[arg(value_name = "ADDRESS")]
        address: String,
        /// A kind of notification that is sent, such as job.failed. Can be repeated. Without this option, all are.
        #[arg(long = "kind", value_name = "KIND")]
        kinds: Vec<NotificationKind>,
    },
    /// Removes a webhook.
    Remove {
        /// The id of the webhook.
        webhook: CommandId,
    },
    /// Sends a test to a webhook.
    Test {
        /// The id of the webhook.
        webhook: CommandId,
    },
    /// Lists the newest tries to send you notifications.
    Deliveries,
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

/// The options for the time after the submission.
#[derive(Debug, Args)]
pub(crate) struct EndArgs {
    /// Prints the id and does not wait.
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Directory for the output files. Default: a new directory with the id as its name.
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
    /// Downloads no files.
    #[arg(long, conflicts_with = "output")]
    pub(crate) no_download: bool,
}

/// Options of `quote`.
#[derive(Debug, Args)]
pub(crate) struct QuoteArgs {
    #[command(flatten)]
    pub(crate) job: JobArgs,
    #[command(flatten)]
    pub(crate) tasks: TaskArgs,
}

/// Options of `run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) job: JobArgs,
    /// The id of the job or batch, a UUID of version 7. To repeat a submission safely, give the same id.
    #[arg(long)]
    pub(crate) id: Option<JobId>,
    #[command(flatten)]
    pub(crate) tasks: TaskArgs,
    #[command(flatten)]
    pub(crate) end: EndArgs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_a_number_and_a_unit() {
        assert_eq!(parse_age("10m"), Ok(Millis(600_000)));
        for wrong in ["", "10", "m", "-1s", "1w", "1é"] {
            assert!(parse_age(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_options_are_consistent_and_machine_excludes_other_placement() {
        let command = <Cli as clap::CommandFactory>::command;
        command().debug_assert();
        let named = "gpubnb run --template noop --machine 01900000-0000-7000-8000-000000000001 --verified";
        assert!(command().try_get_matches_from(named.split_whitespace()).is_err());
    }
}
