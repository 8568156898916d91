//! The options of `gpubnb-provider`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use gpubnb_events::MicroUsd;

/// Lists this machine on the market and runs jobs on it, in hardened containers.
#[derive(Debug, Clone, Parser)]
#[command(name = "gpubnb-provider", version)]
pub struct Cli {
    /// Directory of the worker: the machine's id and keys, and the output of jobs while they run. Docker must see
    /// it under the same path.
    #[arg(long, global = true, env = "GPUBNB_STATE", default_value = "/var/lib/gpubnb", value_name = "DIR")]
    pub state: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Trades a one-time code for this machine's right to work on a market. The key that it makes stays here.
    Enroll(EnrollArgs),
    /// Lists the machine and works until it is stopped. Jobs that run then go on, and are taken up again
    /// at the next start.
    Run(RunArgs),
}

/// Options of `enroll`.
#[derive(Debug, Clone, Args)]
pub struct EnrollArgs {
    /// The code, from the market's page "My machines".
    #[arg(env = "GPUBNB_ENROLL_CODE")]
    pub code: String,
    /// Address of the market.
    #[arg(long, env = "GPUBNB_MARKET", value_name = "URL")]
    pub market: String,
    /// Certificate of the authority that signed the market's, if it is not a public one (PEM).
    #[arg(long, env = "GPUBNB_MARKET_CA", value_name = "FILE")]
    pub market_ca: Option<PathBuf>,
}

/// Options of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Name of the machine on the market.
    #[arg(long, env = "GPUBNB_NAME", default_value = "spare machine")]
    pub name: String,
    /// Where it stands.
    #[arg(long, env = "GPUBNB_REGION", default_value = "unknown")]
    pub region: String,
    /// Price per hour and slot, dollars.
    #[arg(long, env = "GPUBNB_PRICE", default_value = "0.10", value_name = "USD")]
    pub price: MicroUsd,
    /// Jobs it runs at once.
    #[arg(long, env = "GPUBNB_SLOTS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub slots: u32,
    /// Pretends to have this many GPUs, which the market marks as simulated. They compute nothing.
    #[arg(long, env = "GPUBNB_SIMULATE_GPUS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=16))]
    pub simulate_gpus: u32,
    /// Loads NVML from this file instead of the driver's own place.
    #[arg(long, value_name = "FILE")]
    pub nvml: Option<PathBuf>,
    /// Lets jobs that ask for it use the network.
    #[arg(long, env = "GPUBNB_ALLOW_EGRESS")]
    pub allow_egress: bool,
    /// Container runtime for jobs, such as `runsc`, if not Docker's default.
    #[arg(long, env = "GPUBNB_RUNTIME")]
    pub runtime: Option<String>,
    /// Seconds between heartbeats.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub heartbeat: u64,
    /// Log a job may write, MiB.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub max_log_mib: u64,
}
