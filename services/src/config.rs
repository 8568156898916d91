//! The options of `gpubnb-services`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use gpubnb_domain::Settings;
use gpubnb_events::Millis;
use gpubnb_log::stream::{Retention, StreamOptions};
use gpubnb_runtime::{monitor::MonitorArgs, nats::NatsArgs};

use crate::{backup::BackupArgs, whatif::WhatIfArgs};

/// What `--help` says at the end.
mod help {
    pub(super) const BACKUP: &str = "\
Examples:
  gpubnb-services backup /backups/2026-01-31 --nats-creds keys/services

The market goes on meanwhile. Cut off, say the same again within six hours: what is whole is not saved again.
Exit codes: 0 all of it is there; 1 not, and standard error says why; 2 the command line is wrong.";
    pub(super) const RESTORE: &str = "\
Examples:
  gpubnb-services restore /backups/2026-01-31 --nats-creds keys/services --replicas 3

Nothing that a broker has is overwritten. Afterwards: gpubnb-projector verify. The whole way: docs/operating.md.";
    pub(super) const WHAT_IF: &str = "\
Examples:
  gpubnb-services what-if archive/ --fee 300                  a fee of three percent
  gpubnb-services what-if archive/ --price 90 --placement fastest --json

The archive is made by gpubnb-projector export. Nothing is decided and nothing is written.";
}

/// Decides what happens on the market: command endpoints, scheduler, settlement, watchdog.
#[derive(Debug, Clone, Parser)]
#[command(name = "gpubnb-services", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Operation,
}

/// What to do.
#[derive(Debug, Clone, Subcommand)]
pub enum Operation {
    /// Runs one replica. Run as many as you like: the guards of the log make them safe beside each other.
    Run(Config),
    /// Makes the keys and credentials of a new market, and the broker's configuration.
    Bootstrap(BootstrapArgs),
    /// Saves every stream of a market that runs.
    #[command(after_long_help = help::BACKUP)]
    Backup(BackupArgs),
    /// Makes the streams of a broker that has none from a backup.
    #[command(after_long_help = help::RESTORE)]
    Restore(RestoreArgs),
    /// Folds an archive of the log through other prices, another fee or placement, and says what would differ.
    #[command(after_long_help = help::WHAT_IF)]
    WhatIf(WhatIfArgs),
}

/// Options of `bootstrap`.
#[derive(Debug, Clone, Args)]
pub struct BootstrapArgs {
    /// Where to write them. What is there already is kept.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Where the broker shall listen.
    #[arg(long, default_value = "127.0.0.1:4222", value_name = "ADDRESS")]
    pub listen: String,
    /// Where the broker shall keep its streams.
    #[arg(long, default_value = "/data", value_name = "DIR")]
    pub store: PathBuf,
    /// The broker's certificate, as the broker finds it (PEM).
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's key, as the broker finds it (PEM).
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
}

/// Options of `restore`.
#[derive(Debug, Clone, Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub backup: BackupArgs,
    /// Copies of each message in the streams that are made anew.
    #[arg(long, env = "GPUBNB_REPLICAS", default_value_t = 1)]
    pub replicas: usize,
}

/// Options of `run`.
#[derive(Debug, Clone, Args)]
pub struct Config {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub nats: NatsArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub monitor: MonitorArgs,
    /// Creates missing streams at the start; without it they must be there.
    #[arg(long, env = "GPUBNB_PROVISION")]
    pub provision: bool,
    /// Copies of each message in the streams: 1 in development, 3 in production.
    #[arg(long, env = "GPUBNB_REPLICAS", default_value_t = 1)]
    pub replicas: usize,
    /// The broker's window for repeated message ids, milliseconds. The domain does not depend on it.
    #[arg(long, default_value_t = 120_000)]
    pub duplicate_window_ms: u64,
    /// Days for which OUTPUT keeps what jobs print, unless its room ends before. Its files are kept for 30 days.
    #[arg(long, env = "GPUBNB_OUTPUT_DAYS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3_650))]
    pub output_days: u32,
    /// Room of OUTPUT, MiB: the oldest goes first.
    #[arg(long, env = "GPUBNB_OUTPUT_MIB", default_value_t = 4_096, value_parser = clap::value_parser!(u32).range(16..))]
    pub output_mib: u32,
    /// Minutes for which TELEMETRY keeps what machines say of themselves; an hour of heartbeats at the most.
    #[arg(long, env = "GPUBNB_TELEMETRY_MINUTES", default_value_t = 60, value_parser = clap::value_parser!(u32).range(5..=60))]
    pub telemetry_minutes: u32,
    /// Room of TELEMETRY in the broker's memory, MiB.
    #[arg(long, env = "GPUBNB_TELEMETRY_MIB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(16..=65_536))]
    pub telemetry_mib: u32,
    /// Lets accounts deposit play money by themselves. For demonstrations only.
    #[arg(long, env = "GPUBNB_TEST_FUNDS")]
    pub test_funds: bool,
    /// The platform's share of each cost, in ten-thousandths.
    #[arg(long, env = "GPUBNB_FEE_BASIS_POINTS", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(0..=5_000))]
    pub fee_basis_points: u32,
    /// Where workers get and put the files of jobs, as they reach it; without it there are none.
    #[arg(long, env = "GPUBNB_EDGE_URL", value_name = "URL")]
    pub edge_url: Option<String>,
    /// Writes this file once it answers: for whoever waits for that.
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// Seconds that a machine's credential lives before it has to be renewed.
    #[arg(long, env = "GPUBNB_CREDENTIAL_LIFE", default_value_t = 3_600, value_parser = clap::value_parser!(u64).range(2..=86_400))]
    pub credential_life: u64,
    /// An image that jobs may name as it is, without a digest, besides those of the templates. May be said several times.
    #[arg(long, env = "GPUBNB_APPROVE_IMAGES", value_delimiter = ',', value_name = "IMAGE")]
    pub approve_image: Vec<String>,
    /// Seconds a machine has to accept a job.
    #[arg(long, default_value_t = 60)]
    pub accept_within: u64,
    /// Seconds the platform waits past a limit for the worker's own word.
    #[arg(long, default_value_t = 30)]
    pub grace: u64,
    /// Events after which the world is kept anew in SNAPSHOTS, for a faster start; 0: it is not kept, and none
    /// is taken up.
    #[arg(long, env = "GPUBNB_SERVICES_SNAPSHOT_EVERY", default_value_t = 20_000, value_name = "EVENTS")]
    pub snapshot_every: u64,
    /// Seconds of silence after which new work is withheld from a machine.
    #[arg(long, default_value_t = 15)]
    pub suspect_after: u32,
    /// Seconds of silence after which a machine is given up and its jobs are requeued.
    #[arg(long, default_value_t = 60)]
    pub lost_after: u32,
}

impl Config {
    /// The rules of the domain.
    pub fn settings(&self) -> Settings {
        Settings {
            approved_images: self.approve_image.clone(),
            fee_basis_points: self.fee_basis_points,
            test_funds: self.test_funds,
            accept_within: Millis(self.accept_within.saturating_mul(1_000)),
            grace: Millis(self.grace.saturating_mul(1_000)),
            ..Settings::default()
        }
    }

    /// The shape of the streams.
    pub fn streams(&self) -> StreamOptions {
        StreamOptions {
            replicas: self.replicas,
            duplicate_window: Duration::from_millis(self.duplicate_window_ms),
            output: Retention { mib: self.output_mib, age: Duration::from_secs(u64::from(self.output_days) * 86_400) },
            telemetry: Retention {
                mib: self.telemetry_mib,
                age: Duration::from_secs(u64::from(self.telemetry_minutes) * 60),
            },
        }
    }
}
