//! The options of `gpubnb-services`.

use std::{path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Parser, Subcommand};
use gpubnb_domain::Settings;
use gpubnb_events::Millis;
use gpubnb_log::stream::{Retention, StreamOptions};
use gpubnb_runtime::{monitor::MonitorArgs, nats::NatsArgs};

use crate::{backup::BackupArgs, whatif::WhatIfArgs};

/// The ends of the help texts: examples and notes.
mod help {
    pub(super) const BACKUP: &str = "\
Examples:
  gpubnb-services backup /backups/2026-01-31 --nats-creds keys/services

The market keeps running. If the backup is interrupted, repeat the command within six hours: complete streams
are skipped.
Exit codes: 0 the backup is complete; 1 it is not, and standard error says why; 2 the command line is wrong.";
    pub(super) const RESTORE: &str = "\
Examples:
  gpubnb-services restore /backups/2026-01-31 --nats-creds keys/services --replicas 3

Existing streams are never overwritten. Give the same rules (--fee-basis-points and so on) as to run.
Afterwards: gpubnb-projector verify. All steps: docs/operating.md.";
    pub(super) const WHAT_IF: &str = "\
Examples:
  gpubnb-services what-if archive/ --fee 300                  a fee of three percent
  gpubnb-services what-if archive/ --price 90 --placement fastest --json

gpubnb-projector export makes the archive. The log is not changed.";
}

/// Decides what happens on the market: command endpoints, scheduler, settlement, watchdog.
#[derive(Debug, Clone, Parser)]
#[command(name = "gpubnb-services", version)]
pub struct Cli {
    #[command(subcommand)]
    #[allow(missing_docs)]
    pub command: Operation,
}

/// The subcommands.
#[derive(Debug, Clone, Subcommand)]
pub enum Operation {
    /// Runs one replica. Any number may run at once: the guards of the log keep them from contradicting each other.
    Run(Config),
    /// Makes the keys and credentials of a new market, and the configuration of its broker.
    Bootstrap(BootstrapArgs),
    /// Saves every stream of a running market.
    #[command(after_long_help = help::BACKUP)]
    Backup(BackupArgs),
    /// Restores a backup into a broker that has no streams.
    #[command(after_long_help = help::RESTORE)]
    Restore(RestoreArgs),
    /// Computes from an archive how the market would have differed with other prices, another fee or another placement.
    #[command(after_long_help = help::WHAT_IF)]
    WhatIf(WhatIfArgs),
}

/// Options of `bootstrap`.
#[derive(Debug, Clone, Args)]
pub struct BootstrapArgs {
    /// Directory for the keys and the configuration. If the directory has a `nats.conf`, nothing is changed.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Address on which the broker listens.
    #[arg(long, default_value = "127.0.0.1:4222", value_name = "ADDRESS")]
    pub listen: String,
    /// Directory in which the broker keeps its streams.
    #[arg(long, default_value = "/data", value_name = "DIR")]
    pub store: PathBuf,
    /// Address of the broker's own monitoring, for a supervisor on the same machine (deploy/broker.sh), such as
    /// `127.0.0.1:8222`. Without it, the broker has none.
    #[arg(long, value_name = "ADDRESS")]
    pub monitor: Option<String>,
    /// The broker's certificate (PEM): its path on the broker's machine.
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's key (PEM): its path on the broker's machine.
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Certificate (PEM) of the authority that signed the brokers' certificates. With it, the brokers of a cluster
    /// encrypt the lines between them, and accept only each other.
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// The brokers of a cluster, with the addresses at which they reach each other, such as
    /// `n1=10.0.0.1:6222,n2=10.0.0.2:6222,n3=10.0.0.3:6222`. Each broker gets a configuration of its own,
    /// `nats-n1.conf`.
    #[arg(long, value_delimiter = ',', value_name = "NAME=ADDRESS")]
    pub cluster: Vec<ClusterMember>,
}

/// A broker of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterMember {
    /// The name of the broker: letters, digits and `-`.
    pub name: String,
    /// The address at which the other brokers reach this one.
    pub address: String,
}

impl FromStr for ClusterMember {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("`{text}` is not NAME=HOST:PORT, such as n1=10.0.0.1:6222");
        let (name, address) = text.trim().split_once('=').ok_or_else(form)?;
        let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let (host, port) = address.rsplit_once(':').ok_or_else(form)?;
        // The text goes into the broker's configuration.
        let is_host = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b));
        if !is_name || !is_host || port.parse::<u16>().is_err() {
            return Err(form());
        }
        Ok(Self { name: name.to_owned(), address: address.to_owned() })
    }
}

/// Options of `restore`.
#[derive(Debug, Clone, Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub backup: BackupArgs,
    /// Copies of each message in the restored streams.
    #[arg(long, env = "GPUBNB_REPLICAS", default_value_t = 1)]
    pub replicas: usize,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub rules: RuleArgs,
}

/// The rules of a market. Every process that folds the log must be given the same rules.
#[derive(Debug, Clone, Args)]
pub struct RuleArgs {
    /// Lets accounts deposit play money themselves. For demonstrations only.
    #[arg(long, env = "GPUBNB_TEST_FUNDS")]
    pub test_funds: bool,
    /// The platform's share of each cost, in ten-thousandths.
    #[arg(
        long,
        env = "GPUBNB_FEE_BASIS_POINTS",
        default_value_t = 1_000,
        value_parser = clap::value_parser!(u32).range(0..=5_000)
    )]
    pub fee_basis_points: u32,
    /// An image that jobs may use without a digest, besides the images of the templates. May be given several times.
    #[arg(long, env = "GPUBNB_APPROVE_IMAGES", value_delimiter = ',', value_name = "IMAGE")]
    pub approve_image: Vec<String>,
    /// Seconds that a machine has to accept a job.
    #[arg(long, default_value_t = 60)]
    pub accept_within: u64,
    /// Seconds after a request to cancel a job during which the worker may still report how the job ended.
    #[arg(long, default_value_t = 30)]
    pub grace: u64,
}

impl RuleArgs {
    /// The rules, as the domain takes them.
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
    #[command(flatten)]
    #[allow(missing_docs)]
    pub rules: RuleArgs,
    /// Creates missing streams at the start. Without this flag the streams must exist.
    #[arg(long, env = "GPUBNB_PROVISION")]
    pub provision: bool,
    /// Copies of each message in the streams: 1 in development, 3 in production.
    #[arg(long, env = "GPUBNB_REPLICAS", default_value_t = 1)]
    pub replicas: usize,
    /// Milliseconds for which the broker rejects repeated message ids. Decisions do not depend on this window.
    #[arg(long, default_value_t = 120_000)]
    pub duplicate_window_ms: u64,
    /// Days for which the output of jobs is kept, if there is room. The files of jobs are kept for 30 days.
    #[arg(
        long,
        env = "GPUBNB_OUTPUT_DAYS",
        default_value_t = 30,
        value_parser = clap::value_parser!(u32).range(1..=3_650)
    )]
    pub output_days: u32,
    /// Room for the output of jobs, MiB. The oldest output is deleted first.
    #[arg(
        long,
        env = "GPUBNB_OUTPUT_MIB",
        default_value_t = 4_096,
        value_parser = clap::value_parser!(u32).range(16..)
    )]
    pub output_mib: u32,
    /// Largest log of a job, MiB. A longer log is cut with a line that says so.
    #[arg(
        long,
        env = "GPUBNB_JOB_LOG_MIB",
        default_value_t = 64,
        value_parser = clap::value_parser!(u32).range(1..=1_024)
    )]
    pub job_log_mib: u32,
    /// Room for the input files of all jobs, MiB. The web server refuses further files by name.
    #[arg(
        long,
        env = "GPUBNB_INPUTS_MIB",
        default_value_t = 8_192,
        value_parser = clap::value_parser!(u32).range(16..)
    )]
    pub inputs_mib: u32,
    /// Room for the files that jobs leave, MiB. The web server refuses further files by name.
    #[arg(
        long,
        env = "GPUBNB_ARTIFACTS_MIB",
        default_value_t = 8_192,
        value_parser = clap::value_parser!(u32).range(16..)
    )]
    pub artifacts_mib: u32,
    /// Minutes for which heartbeats of machines are kept; at most an hour.
    #[arg(
        long,
        env = "GPUBNB_TELEMETRY_MINUTES",
        default_value_t = 60,
        value_parser = clap::value_parser!(u32).range(5..=60)
    )]
    pub telemetry_minutes: u32,
    /// Room for heartbeats in the broker's memory, MiB.
    #[arg(
        long,
        env = "GPUBNB_TELEMETRY_MIB",
        default_value_t = 512,
        value_parser = clap::value_parser!(u32).range(16..=65_536)
    )]
    pub telemetry_mib: u32,
    /// Address at which workers reach the web server, to move the files of jobs. Without it, jobs have no files.
    #[arg(long, env = "GPUBNB_EDGE_URL", value_name = "URL")]
    pub edge_url: Option<String>,
    /// Writes this file once the replica answers commands, for scripts that wait for it.
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// Seconds until a machine has to renew its credential.
    #[arg(
        long,
        env = "GPUBNB_CREDENTIAL_LIFE",
        default_value_t = 3_600,
        value_parser = clap::value_parser!(u64).range(2..=86_400)
    )]
    pub credential_life: u64,
    /// Stores a snapshot of the state after this many events, for a faster start; 0: no snapshot is stored or used.
    #[arg(long, env = "GPUBNB_SERVICES_SNAPSHOT_EVERY", default_value_t = 20_000, value_name = "EVENTS")]
    pub snapshot_every: u64,
    /// Seconds of silence after which a machine gets no new jobs.
    #[arg(long, default_value_t = 15)]
    pub suspect_after: u32,
    /// Seconds of silence after which a machine counts as lost and its jobs are requeued.
    #[arg(long, default_value_t = 60)]
    pub lost_after: u32,
}

impl Config {
    /// The settings of the streams.
    pub fn streams(&self) -> StreamOptions {
        StreamOptions {
            replicas: self.replicas,
            duplicate_window: Duration::from_millis(self.duplicate_window_ms),
            output: Retention { mib: self.output_mib, age: Duration::from_secs(u64::from(self.output_days) * 86_400) },
            telemetry: Retention {
                mib: self.telemetry_mib,
                age: Duration::from_secs(u64::from(self.telemetry_minutes) * 60),
            },
            inputs_mib: self.inputs_mib,
            artifacts_mib: self.artifacts_mib,
        }
    }
}
