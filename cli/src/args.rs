//! What a person types.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

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
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
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
    /// What the token is called on your account page.
    #[arg(long, default_value = "gpubnb command line")]
    pub(crate) label: String,
    /// How long it lives, days.
    #[arg(long, default_value_t = 90)]
    pub(crate) days: u32,
}

/// Which machine.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// On this machine, and no other.
    #[arg(long)]
    pub(crate) machine: Option<String>,
    /// How the market chooses a machine: the cheapest, if missing.
    #[arg(long, conflicts_with = "machine", value_parser = ["cheapest", "fastest", "most_reliable"])]
    pub(crate) strategy: Option<String>,
    /// Only on a machine of whose attempts at least so many percent ended without its fault.
    #[arg(long, conflicts_with = "machine", value_name = "PERCENT")]
    pub(crate) min_reliability: Option<u32>,
    /// Only on a machine that passed every check of its self-test.
    #[arg(long, conflicts_with = "machine")]
    pub(crate) verified: bool,
}

/// A job.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// An approved template, such as `train`.
    #[arg(long, conflicts_with = "image", required_unless_present = "image")]
    pub(crate) template: Option<String>,
    /// A custom image, pinned by its digest: name@sha256:…
    #[arg(long)]
    pub(crate) image: Option<String>,
    /// A choice of the template: name=value.
    #[arg(short, long = "param", value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) params: Vec<(String, String)>,
    /// A secret for the job: NAME=value, or NAME alone to pass on yours.
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// A file for the job, found below `/input`: `FILE`, or `FILE:path`.
    #[arg(short, long = "input", value_name = "FILE[:PATH]")]
    pub(crate) inputs: Vec<String>,
    /// A name for people.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Its id, a UUID of version 7. The same id again is the same job.
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// Where it runs.
    #[command(flatten)]
    pub(crate) place: Place,
    /// Most it may cost per hour, dollars.
    #[arg(long, value_name = "USD")]
    pub(crate) price_cap: Option<String>,
    /// Most it may cost in all, dollars.
    #[arg(long, value_name = "USD")]
    pub(crate) budget: Option<String>,
    /// GPUs.
    #[arg(long)]
    pub(crate) gpus: Option<u32>,
    /// Memory of each GPU, MiB.
    #[arg(long)]
    pub(crate) vram: Option<u64>,
    /// Memory, MiB.
    #[arg(long)]
    pub(crate) memory: Option<u64>,
    /// Wall-clock limit, seconds.
    #[arg(long)]
    pub(crate) time: Option<u64>,
    /// Starts it at most once, also where a machine fails.
    #[arg(long)]
    pub(crate) once: bool,
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
    pub(crate) command: Vec<String>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as name=value")?;
    Ok((name.to_owned(), value.to_owned()))
}
