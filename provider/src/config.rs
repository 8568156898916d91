//! The options of `gpubnb-provider`. The command line overrides the environment, and the environment overrides the
//! file of `--config`.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum, value_parser};
use gpubnb_dialer::Mirror;
use gpubnb_events::{
    Clock as _, MicroUsd, SystemClock, Timestamp,
    spec::{Egress, Hours, Setting, WELL_KNOWN_REGISTRIES},
};

use gpubnb_registry::PrivateRegistry;

use crate::owner::next_local_time;

/// The worker's directory, unless `--state` names another.
pub(crate) const DEFAULT_STATE: &str = "/var/lib/gpubnb";

/// Shares this machine on a GPUbnb market: lists it, and runs jobs on it in hardened containers while it is spare.
///
/// First `enroll` the machine, then check with `self-test` that the machine is fit, then `run` the worker, or let
/// systemd run it (deploy/gpubnb-provider.service). Each option of `run` can also be set in the file of --config by its
/// long name: `price = "0.10"`.
#[derive(Debug, Clone, Parser)]
#[command(name = "gpubnb-provider", version)]
pub struct Cli {
    /// The worker's directory: it holds the machine's id and keys, and the output of jobs while they run. Docker must
    /// see it under the same path.
    #[arg(long, global = true, env = "GPUBNB_STATE", default_value = DEFAULT_STATE, value_name = "DIR")]
    pub state: PathBuf,
    /// A file with options (TOML). The command line and the environment override the file.
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
    /// Lists the machine on the market and runs jobs until the worker is stopped. Running jobs then go on, and
    /// the worker resumes them at its next start.
    Run(Box<RunArgs>),
    /// Checks whether the machine is fit, and says how to fix problems. Changes nothing.
    SelfTest(SelfTestArgs),
    /// Shows the worker's status, for people or as JSON.
    Status(OutputArgs),
    /// Opens the page of the worker in the browser: state, earnings, jobs, self-test and log, and the buttons to pause
    /// the machine and to take it back.
    Open(OpenArgs),
    /// Adds the page of the worker to the desktop's menu of programs, for this user.
    DesktopEntry(DesktopEntryArgs),
    /// Lets the machine take no new jobs. Running jobs go on, unless you take the machine back with --stop-jobs.
    Pause(PauseArgs),
    /// Lets the machine take jobs after `pause` or `drain`.
    Resume,
    /// Lets the machine take no new jobs, and waits until the running jobs have ended.
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
    /// Certificate (PEM) of the authority that signed the market's certificate, if that authority is not a public one.
    #[arg(long, env = "GPUBNB_MARKET_CA", value_name = "FILE")]
    pub market_ca: Option<PathBuf>,
}

/// Options of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Name of the machine on the market.
    #[arg(long, env = "GPUBNB_NAME", default_value = "spare machine")]
    pub name: String,
    /// Region of the machine.
    #[arg(long, env = "GPUBNB_REGION", default_value = "unknown")]
    pub region: String,
    /// Price of one job for one hour, US dollars.
    #[arg(long, env = "GPUBNB_PRICE", default_value = "0.10", value_name = "USD")]
    pub price: MicroUsd,
    /// Number of jobs that the machine runs at once.
    #[arg(long, env = "GPUBNB_SLOTS", default_value_t = 1, value_parser = value_parser!(u32).range(1..=256))]
    pub slots: u32,
    /// Accept jobs only after the GPUs have been idle for this many minutes. As soon as another process uses a GPU, the
    /// jobs are stopped and start again elsewhere.
    #[arg(long, env = "GPUBNB_IDLE_MINUTES", value_name = "MIN", value_parser = value_parser!(u32).range(0..=1_440))]
    pub idle_minutes: Option<u32>,
    /// Accept jobs only in these hours of the day, by the machine's clock, such as `22:00-08:00`. Commas separate
    /// several windows.
    #[arg(long, env = "GPUBNB_HOURS", value_name = "HH:MM-HH:MM")]
    pub hours: Option<Hours>,
    /// Seconds between SIGTERM and SIGKILL for a job that is stopped because the owner needs the machine.
    #[arg(long, env = "GPUBNB_RECLAIM_GRACE", default_value_t = 10, value_parser = value_parser!(u32).range(0..=300))]
    pub reclaim_grace: u32,
    /// Options that the market's pages may not change: price, slots, hours, idle-minutes. The newest word counts for
    /// the others: a change on the page holds until you change the option.
    #[arg(long, env = "GPUBNB_PIN", value_delimiter = ',', value_name = "OPTION")]
    pub pin: Vec<Setting>,
    /// The hosts of the internet that jobs may reach if they ask for them, with commas between: `pypi.org`,
    /// `*.pypi.org` for all names below it too, `any` (or no value) for every public host. Jobs never reach this
    /// machine's own networks.
    #[arg(long, env = "GPUBNB_ALLOW_EGRESS", value_name = "HOSTS", num_args = 0..=1)]
    #[arg(default_value = "none", default_missing_value = "any")]
    pub allow_egress: Egress,
    /// The ports that jobs may use at these hosts.
    #[arg(long, env = "GPUBNB_EGRESS_PORTS", value_delimiter = ',', value_name = "PORT", default_values_t = [80, 443])]
    pub egress_port: Vec<u16>,
    /// Most that all jobs together may exchange with the internet, Mbit/s; 0 for no limit.
    #[arg(long, env = "GPUBNB_EGRESS_MBIT", default_value_t = 100)]
    #[arg(value_parser = value_parser!(u64).range(0..=400_000))]
    pub egress_mbit: u64,
    /// Most that a job may exchange with the internet, GiB.
    #[arg(long, env = "GPUBNB_EGRESS_GIB", default_value_t = 50, value_parser = value_parser!(u64).range(1..=100_000))]
    pub egress_gib: u64,
    /// An address that answers for a host, such as `pypi.org=192.168.1.7:443` for a mirror in your network. May be
    /// given several times. The address may be private.
    #[arg(long, env = "GPUBNB_EGRESS_MIRRORS", value_delimiter = ',', value_name = "HOST=ADDRESS")]
    #[arg(value_parser = mirror)]
    pub egress_mirror: Vec<Mirror>,
    /// The images that jobs may use.
    #[arg(long, env = "GPUBNB_IMAGES", value_enum, default_value_t = ImagePolicy::Registries)]
    pub images: ImagePolicy,
    /// A registry whose images jobs may use, with `--images registries`. May be given several times. Default: the
    /// well-known public registries.
    #[arg(long, env = "GPUBNB_REGISTRIES", value_delimiter = ',', value_name = "HOST")]
    #[arg(default_values = WELL_KNOWN_REGISTRIES)]
    pub registry: Vec<String>,
    /// A registry whose images jobs may use although its address may be private, such as `http://127.0.0.1:5000`. May
    /// be given several times. The worker reaches public addresses only, except these.
    #[arg(long, env = "GPUBNB_PRIVATE_REGISTRIES", value_delimiter = ',', value_name = "URL")]
    pub private_registry: Vec<PrivateRegistry>,
    /// Largest image, GiB.
    #[arg(long, env = "GPUBNB_IMAGE_GIB", default_value_t = 20, value_parser = value_parser!(u64).range(1..=1_000))]
    pub image_gib: u64,
    /// Most disk space for images that were pulled for jobs, GiB in total. The least recently used images are removed
    /// first.
    #[arg(long, env = "GPUBNB_IMAGE_CACHE_GIB", default_value_t = 40)]
    #[arg(value_parser = value_parser!(u64).range(0..=10_000))]
    pub image_cache_gib: u64,
    /// The most space that the datasets of jobs may take on this machine, GiB. Those that were not used for the longest
    /// time are removed first, and those that were not used for 30 days.
    #[arg(long, env = "GPUBNB_DATASET_CACHE_GIB", default_value_t = 20)]
    #[arg(value_parser = value_parser!(u64).range(0..=10_000))]
    pub dataset_cache_gib: u64,
    /// Days that an image pulled for a job is kept after its last use.
    #[arg(long, env = "GPUBNB_IMAGE_DAYS", default_value_t = 30, value_parser = value_parser!(u64).range(0..=3_650))]
    pub image_days: u64,
    /// The way in which the size of a job's disk is enforced.
    #[arg(long, env = "GPUBNB_DISK_QUOTA", value_enum, default_value_t = DiskQuota::Auto)]
    pub disk_quota: DiskQuota,
    /// Container runtime for jobs, such as `runsc`, if it is not Docker's default.
    #[arg(long, env = "GPUBNB_RUNTIME")]
    pub runtime: Option<String>,
    /// Give GPUs to jobs by the Container Device Interface (CDI, Docker 25 and newer) instead of NVIDIA's runtime.
    #[arg(long, env = "GPUBNB_CDI")]
    pub cdi: bool,
    /// List the machine although its self-test failed.
    #[arg(long, env = "GPUBNB_UNFIT")]
    pub unfit: bool,
    /// Pretend to have this many GPUs. They compute nothing, and the market marks them as simulated.
    #[arg(long, env = "GPUBNB_SIMULATE_GPUS", default_value_t = 0, value_parser = value_parser!(u32).range(0..=16))]
    pub simulate_gpus: u32,
    /// Load NVML (NVIDIA's management library) from this file instead of the driver's own file.
    #[arg(long, env = "GPUBNB_NVML", value_name = "FILE")]
    pub nvml: Option<PathBuf>,
    /// Seconds between heartbeats.
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u64).range(1..=60))]
    pub heartbeat: u64,
    /// The most processes and threads that a job may ask for. Default: 8192.
    #[arg(long, value_name = "NUMBER", value_parser = value_parser!(u32).range(512..=32_768))]
    pub max_pids: Option<u32>,
    /// The most open files of a process that a job may ask for. Default: 65536.
    #[arg(long, value_name = "NUMBER", value_parser = value_parser!(u32).range(4_096..=1_048_576))]
    pub max_open_files: Option<u32>,
    /// Largest log of a job, MiB.
    #[arg(long, default_value_t = 16, value_parser = value_parser!(u64).range(1..=1024))]
    pub max_log_mib: u64,
}

/// Reads the next time at which the machine's clock shows this time of day.
fn time_of_day(text: &str) -> Result<Timestamp, String> {
    next_local_time(text, SystemClock.now()).ok_or_else(|| format!("`{text}` is no time of day: write it like 18:00"))
}

/// Reads a mirror: the host, and the address that answers for it.
fn mirror(text: &str) -> Result<Mirror, String> {
    let (host, address) = text.split_once('=').ok_or("write HOST=ADDRESS:PORT")?;
    let address = address.parse().map_err(|e| format!("{address}: {e}"))?;
    Ok(Mirror { host: host.to_owned(), address })
}

/// The images that jobs may use. In addition, the market requires that a custom image is in a public registry and is
/// named by its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ImagePolicy {
    /// Only the images of the market's templates.
    Templates,
    /// The images of the templates, and those in the registries of --registry and --private-registry.
    Registries,
    /// Any image.
    Any,
}

/// The way in which the size of a job's disk is enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DiskQuota {
    /// A file system per job where that is possible, else by measuring.
    Auto,
    /// A file system per job, on a loop device. The job cannot exceed the limit. Needs root.
    Loop,
    /// By measuring every half second. The job can exceed the limit by as much as it writes in half a second.
    Poll,
}

/// Options of `self-test`.
#[derive(Debug, Clone, Args)]
pub struct SelfTestArgs {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    /// Container runtime for jobs, such as `runsc`, if it is not Docker's default.
    #[arg(long, env = "GPUBNB_RUNTIME")]
    pub(crate) runtime: Option<String>,
    /// Give GPUs to jobs by the Container Device Interface (CDI, Docker 25 and newer) instead of NVIDIA's runtime.
    #[arg(long, env = "GPUBNB_CDI")]
    pub(crate) cdi: bool,
    /// Measure the GPUs with PyTorch. Pulls PyTorch's image (some GB) if the image is not on this machine.
    #[arg(long)]
    pub(crate) measure_gpus: bool,
    /// Load NVML (NVIDIA's management library) from this file instead of the driver's own file.
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

/// Options of `open`.
#[derive(Debug, Clone, Copy, Args)]
pub struct OpenArgs {
    /// Only print the link. The link works once, for browsers of the user who runs this command.
    #[arg(long)]
    pub(crate) print: bool,
}

/// Options of `desktop-entry`.
#[derive(Debug, Clone, Copy, Args)]
pub struct DesktopEntryArgs {
    /// Also start the worker when this user signs in to the desktop. Not needed where systemd starts the worker.
    #[arg(long)]
    pub(crate) autostart: bool,
}

/// Options of `pause`.
#[derive(Debug, Clone, Args)]
pub struct PauseArgs {
    /// End the pause at this time of day, by the machine's clock. Default: `resume` ends the pause.
    #[arg(long, value_name = "HH:MM", value_parser = time_of_day)]
    pub(crate) until: Option<Timestamp>,
    /// Take the machine back at once: running jobs stop, and start again elsewhere. Works without the market, too.
    #[arg(long)]
    pub(crate) stop_jobs: bool,
}

/// Options of `drain`.
#[derive(Debug, Clone, Copy, Args)]
pub struct DrainArgs {
    /// Stop the worker when no job runs.
    #[arg(long)]
    pub(crate) stop: bool,
}

/// Options of `logs`.
#[derive(Debug, Clone, Copy, Args)]
pub struct LogsArgs {
    /// Also print each new line, until interrupted.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Number of lines to print from the end of the log.
    #[arg(short = 'n', long, default_value_t = 100, value_parser = value_parser!(u32).range(0..=100_000))]
    pub(crate) lines: u32,
}

impl Cli {
    /// Reads the command line, the environment, and the file that `--config` or `GPUBNB_CONFIG` names.
    pub fn read() -> anyhow::Result<Self> {
        let mut command = Self::command();
        let parsed = Self::from_arg_matches(&command.clone().ignore_errors(true).get_matches()).ok();
        if let Some(path) = parsed.and_then(|cli| cli.config) {
            let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            command = with_file_defaults(command, &text).with_context(|| format!("reading {}", path.display()))?;
        }
        Ok(Self::from_arg_matches(&command.get_matches()).unwrap_or_else(|e| e.exit()))
    }
}

/// Returns the command with the values of a TOML file as the defaults of its options.
fn with_file_defaults(command: clap::Command, text: &str) -> anyhow::Result<clap::Command> {
    let table: toml::Table = text.parse()?;
    let mut values = Vec::new();
    for (name, value) in table {
        let value = match value {
            toml::Value::String(text) => text,
            toml::Value::Array(all) => {
                let text = |v: &toml::Value| match v {
                    toml::Value::Integer(number) => number.to_string(),
                    other => other.as_str().unwrap_or_default().to_owned(),
                };
                all.iter().map(text).collect::<Vec<_>>().join(",")
            }
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
        let command = with_file_defaults(Cli::command(), file)?;
        let cli = Cli::from_arg_matches(&command.try_get_matches_from(line)?)?;
        match cli.command {
            Command::Run(args) => Ok(*args),
            other => bail!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_overrides_the_file_and_the_file_overrides_the_defaults() {
        let file = "price = \"0.25\"\nslots = 3\nallow-egress = true\nregistry = [\"ghcr.io\", \"quay.io\"]\n";
        let args = run(file, &["gpubnb-provider", "run", "--slots", "2"]).unwrap();
        assert_eq!((args.slots, args.allow_egress), (2, Egress::any()));
        assert_eq!(args.price.to_string(), "$0.25");
        assert_eq!(args.registry, ["ghcr.io", "quay.io"]);
        assert_eq!(run("", &["gpubnb-provider", "run"]).unwrap().slots, 1);
    }

    #[test]
    fn the_owner_allows_no_host_every_host_or_a_list() {
        let egress = |file: &str, options: &[&str]| {
            run(file, &[&["gpubnb-provider", "run"], options].concat()).map(|args| args.allow_egress.to_string())
        };
        assert_eq!(egress("", &[]).unwrap(), "none");
        assert_eq!(egress("", &["--allow-egress"]).unwrap(), "any public host");
        assert_eq!(egress("", &["--allow-egress", "pypi.org,*.github.com"]).unwrap(), "*.github.com, pypi.org");
        let ports = run("egress-port = [80, 8443]", &["gpubnb-provider", "run"]).unwrap().egress_port;
        assert_eq!(ports, [80, 8_443]);
        assert_eq!(egress("allow-egress = [\"pypi.org\"]", &[]).unwrap(), "pypi.org");
        assert_eq!(egress("allow-egress = true", &["--allow-egress", "none"]).unwrap(), "none");
        assert!(egress("", &["--allow-egress", "http://pypi.org"]).is_err());
    }

    #[test]
    fn an_error_in_the_file_names_the_option() {
        let error = |file: &str| format!("{:#}", run(file, &["gpubnb-provider", "run"]).unwrap_err());
        assert!(error("prise = 1").contains("no option `prise`"));
        assert!(error("slots = 0").contains("slots"));
        assert!(error("hours = \"25:00-26:00\"").contains("hours"));
    }
}
