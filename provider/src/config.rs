//! The options of `gpubnb-provider`. An option on the command line goes before one in the environment, and that before
//! one in the file of `--config`.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum, value_parser};
use gpubnb_events::MicroUsd;

use crate::owner::Hours;

/// Shares this machine on a GPUbnb market: lists it, and runs jobs on it in hardened containers while it is spare.
///
/// First `enroll` the machine, then check with `self-test` that it is fit, then `run` the worker, or let systemd run it
/// (deploy/gpubnb-provider.service). Each option of `run` can also stand in the file of --config, by its long name:
/// `price = "0.10"`.
#[derive(Debug, Clone, Parser)]
#[command(name = "gpubnb-provider", version)]
pub struct Cli {
    /// The worker's directory: it holds the machine's id and keys, and the output of jobs while they run. Docker must
    /// see it under the same path.
    #[arg(long, global = true, env = "GPUBNB_STATE", default_value = "/var/lib/gpubnb", value_name = "DIR")]
    pub state: PathBuf,
    /// A file with options (TOML). Options on the command line and in the environment go before those in the file.
    #[arg(long, global = true, env = "GPUBNB_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Enrolls this machine on a market with a one-time code. The machine's private key never leaves it.
    Enroll(EnrollArgs),
    /// Lists the machine on the market and runs jobs until the worker is stopped. Jobs that run then go on, and the
    /// next start takes them up again.
    Run(Box<RunArgs>),
    /// Checks whether the machine is fit, and tells what to do where it is not. Changes nothing.
    SelfTest(SelfTestArgs),
    /// Shows how the worker is, for people or as JSON.
    Status(OutputArgs),
    /// Takes no new jobs. The jobs that run go on.
    Pause,
    /// Takes jobs again.
    Resume,
    /// Takes no new jobs and waits until those that run have ended.
    Drain(DrainArgs),
    /// Shows the worker's log.
    Logs(LogsArgs),
}

/// Options of `enroll`.
#[derive(Debug, Clone, Args)]
pub struct EnrollArgs {
    /// The one-time code from the market's page "My machines".
    #[arg(env = "GPUBNB_ENROLL_CODE")]
    pub code: String,
    /// Address of the market.
    #[arg(long, env = "GPUBNB_MARKET", value_name = "URL")]
    pub market: String,
    /// Certificate (PEM) of the authority that signed the market's, where that authority is not a public one.
    #[arg(long, env = "GPUBNB_MARKET_CA", value_name = "FILE")]
    pub market_ca: Option<PathBuf>,
}

/// Options of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Name of the machine on the market.
    #[arg(long, env = "GPUBNB_NAME", default_value = "spare machine")]
    pub name: String,
    /// Region where the machine stands.
    #[arg(long, env = "GPUBNB_REGION", default_value = "unknown")]
    pub region: String,
    /// Price of an hour of one job, dollars.
    #[arg(long, env = "GPUBNB_PRICE", default_value = "0.10", value_name = "USD")]
    pub price: MicroUsd,
    /// Number of jobs that the machine runs at once.
    #[arg(long, env = "GPUBNB_SLOTS", default_value_t = 1, value_parser = value_parser!(u32).range(1..=256))]
    pub slots: u32,
    /// Accept jobs only after the GPUs have been idle for so many minutes. As soon as another process uses a GPU, the
    /// jobs are stopped and start again elsewhere.
    #[arg(long, env = "GPUBNB_IDLE_MINUTES", value_name = "MIN", value_parser = value_parser!(u32).range(0..=1_440))]
    pub idle_minutes: Option<u32>,
    /// Accept jobs only in these hours of the day, by the machine's clock: `22:00-08:00`, or several, separated by
    /// commas.
    #[arg(long, env = "GPUBNB_HOURS", value_name = "HH:MM-HH:MM")]
    pub hours: Option<Hours>,
    /// Seconds that a job has to end by itself when the owner needs the machine.
    #[arg(long, env = "GPUBNB_RECLAIM_GRACE", default_value_t = 10, value_parser = value_parser!(u32).range(0..=300))]
    pub reclaim_grace: u32,
    /// Allow internet access to jobs that ask for it.
    #[arg(long, env = "GPUBNB_ALLOW_EGRESS")]
    pub allow_egress: bool,
    /// The images that jobs may use.
    #[arg(long, env = "GPUBNB_IMAGES", value_enum, default_value_t = ImagePolicy::Any)]
    pub images: ImagePolicy,
    /// A registry whose images jobs may use, with `--images registries`. May be given several times.
    #[arg(long, env = "GPUBNB_REGISTRIES", value_delimiter = ',', value_name = "HOST")]
    pub registry: Vec<String>,
    /// Largest image, GiB.
    #[arg(long, env = "GPUBNB_IMAGE_GIB", default_value_t = 20, value_parser = value_parser!(u64).range(1..=1_000))]
    pub image_gib: u64,
    /// Size of the images of former jobs that are kept, GiB in all. The images that were used longest ago are removed
    /// first.
    #[arg(long, env = "GPUBNB_IMAGE_CACHE_GIB", default_value_t = 40)]
    #[arg(value_parser = value_parser!(u64).range(0..=10_000))]
    pub image_cache_gib: u64,
    /// Days that an image of former jobs is kept while no job uses it.
    #[arg(long, env = "GPUBNB_IMAGE_DAYS", default_value_t = 30, value_parser = value_parser!(u64).range(0..=3_650))]
    pub image_days: u64,
    /// How a job is kept to its output allowance.
    #[arg(long, env = "GPUBNB_OUTPUT_QUOTA", value_enum, default_value_t = Quota::Auto)]
    pub output_quota: Quota,
    /// Container runtime for jobs, such as `runsc`, where it is not Docker's default.
    #[arg(long, env = "GPUBNB_RUNTIME")]
    pub runtime: Option<String>,
    /// Give GPUs to jobs by CDI (Docker 25 and newer) instead of NVIDIA's runtime.
    #[arg(long, env = "GPUBNB_CDI")]
    pub cdi: bool,
    /// List the machine although its self-test failed.
    #[arg(long, env = "GPUBNB_UNFIT")]
    pub unfit: bool,
    /// Pretend to have so many GPUs. They compute nothing, and the market marks them as simulated.
    #[arg(long, env = "GPUBNB_SIMULATE_GPUS", default_value_t = 0, value_parser = value_parser!(u32).range(0..=16))]
    pub simulate_gpus: u32,
    /// Load NVML from this file instead of the driver's own.
    #[arg(long, env = "GPUBNB_NVML", value_name = "FILE")]
    pub nvml: Option<PathBuf>,
    /// Seconds between heartbeats.
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u64).range(1..=60))]
    pub heartbeat: u64,
    /// Largest log of a job, MiB.
    #[arg(long, default_value_t = 16, value_parser = value_parser!(u64).range(1..=1024))]
    pub max_log_mib: u64,
}

/// The images that jobs may use. The market itself demands that every custom image is in a public registry and is named
/// by its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ImagePolicy {
    /// Only the images of the market's approved templates.
    Templates,
    /// The images of the templates, and those in the registries of --registry.
    Registries,
    /// Any image.
    Any,
}

/// How a job is kept to its output allowance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Quota {
    /// By a file system of its own where that is possible, else by measuring.
    Auto,
    /// By a file system of its own, on a loop device. The job cannot exceed it. Needs root.
    Loop,
    /// By measuring every half second. The job can exceed the allowance by as much as it writes in that time.
    Poll,
}

/// Options of `self-test`.
#[derive(Debug, Clone, Args)]
pub struct SelfTestArgs {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    /// Container runtime for jobs, such as `runsc`, where it is not Docker's default.
    #[arg(long, env = "GPUBNB_RUNTIME")]
    pub(crate) runtime: Option<String>,
    /// Give GPUs to jobs by CDI (Docker 25 and newer) instead of NVIDIA's runtime.
    #[arg(long, env = "GPUBNB_CDI")]
    pub(crate) cdi: bool,
    /// Measure the GPUs with PyTorch. Its image has some GB, and is pulled where it is not here.
    #[arg(long)]
    pub(crate) measure_gpus: bool,
    /// Load NVML from this file instead of the driver's own.
    #[arg(long, env = "GPUBNB_NVML", value_name = "FILE")]
    pub(crate) nvml: Option<PathBuf>,
}

/// The format of the output.
#[derive(Debug, Clone, Copy, Args)]
pub struct OutputArgs {
    /// Print JSON, for programs.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Options of `drain`.
#[derive(Debug, Clone, Copy, Args)]
pub struct DrainArgs {
    /// Stop the worker once no job runs any more.
    #[arg(long)]
    pub(crate) stop: bool,
}

/// Options of `logs`.
#[derive(Debug, Clone, Copy, Args)]
pub struct LogsArgs {
    /// Go on with new lines as they come.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Number of lines of the log to begin with.
    #[arg(short = 'n', long, default_value_t = 100, value_parser = value_parser!(u32).range(0..=100_000))]
    pub(crate) lines: u32,
}

impl Cli {
    /// Reads the command line, the environment and the file that one of them names.
    pub fn read() -> anyhow::Result<Self> {
        let mut command = Self::command();
        let named = Self::from_arg_matches(&command.clone().ignore_errors(true).get_matches()).ok();
        if let Some(path) = named.and_then(|cli| cli.config) {
            let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            command = with_file(command, &text).with_context(|| format!("reading {}", path.display()))?;
        }
        Ok(Self::from_arg_matches(&command.get_matches()).unwrap_or_else(|e| e.exit()))
    }
}

/// The command, with the values of a file as its defaults.
fn with_file(command: clap::Command, text: &str) -> anyhow::Result<clap::Command> {
    let table: toml::Table = text.parse()?;
    let mut values = Vec::new();
    for (name, value) in table {
        let value = match value {
            toml::Value::String(text) => text,
            toml::Value::Array(all) => all.iter().map(|v| v.as_str().unwrap_or_default()).collect::<Vec<_>>().join(","),
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Float(number) => number.to_string(),
            toml::Value::Boolean(yes) => yes.to_string(),
            _ => bail!("`{name}` must be a text, a number, true or false, or a list of texts"),
        };
        values.push((name, value));
    }
    let known: Vec<String> = command
        .find_subcommand("run")
        .map(|run| run.get_arguments().filter_map(|a| a.get_long().map(ToOwned::to_owned)).collect())
        .unwrap_or_default();
    if let Some((name, _)) = values.iter().find(|(name, _)| !known.contains(name)) {
        bail!("there is no option `{name}`. There are: {}", known.join(", "));
    }
    Ok(command.mut_subcommands(|sub| {
        values.iter().fold(sub, |sub, (name, value)| {
            let id = name.replace('-', "_");
            if sub.get_arguments().any(|a| a.get_id() == id.as_str()) {
                let value = clap::builder::OsStr::from(value.clone());
                sub.mut_arg(id, |arg| arg.default_value(value))
            } else {
                sub
            }
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(file: &str, line: &[&str]) -> anyhow::Result<RunArgs> {
        let command = with_file(Cli::command(), file)?;
        let cli = Cli::from_arg_matches(&command.try_get_matches_from(line)?)?;
        match cli.command {
            Command::Run(args) => Ok(*args),
            other => bail!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_goes_before_the_file_and_the_file_before_the_defaults() {
        let file = "price = \"0.25\"\nslots = 3\nallow-egress = true\nregistry = [\"ghcr.io\", \"quay.io\"]\n";
        let args = run(file, &["gpubnb-provider", "run", "--slots", "2"]).unwrap();
        assert_eq!((args.slots, args.allow_egress), (2, true));
        assert_eq!(args.price.to_string(), "$0.25");
        assert_eq!(args.registry, ["ghcr.io", "quay.io"]);
        assert_eq!(run("", &["gpubnb-provider", "run"]).unwrap().slots, 1);
    }

    #[test]
    fn an_error_in_the_file_is_named() {
        let error = |file: &str| format!("{:#}", run(file, &["gpubnb-provider", "run"]).unwrap_err());
        assert!(error("prise = 1").contains("no option `prise`"));
        assert!(error("slots = 0").contains("slots"));
        assert!(error("hours = \"25:00-26:00\"").contains("hours"));
    }
}
