//! The options of `gpubnb-projector`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use gpubnb_events::{monitor::MonitorArgs, nats::NatsArgs};

use crate::client::Point;

/// Folds the log into read models, answers queries, and lets operators look at the event streams.
#[derive(Debug, Clone, Parser)]
#[command(name = "gpubnb-projector", version)]
pub struct Cli {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub nats: NatsArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Folds and answers until it is stopped.
    Run(RunArgs),
    /// Shows events as they are written.
    Tail(TailArgs),
    /// Shows the events of a range again, at the pace they came or as fast as possible.
    Replay(ReplayArgs),
    /// Shows one job, machine or account, and its event trail.
    Show(ShowArgs),
    /// How far each read model is behind the log, and how large the streams are.
    Lag(AskArgs),
    /// Has a read model rebuilt beside the one that answers, and swapped in.
    Rebuild(RebuildArgs),
    /// Has the log replayed, its invariants looked at, and every row compared. Fails where something differs.
    Verify(VerifyArgs),
    /// Sums the ledger of the log, account by account, and proves that it balances.
    Audit(AuditArgs),
    /// Looks at the whole deployment, and says what to change. Fails where something is to be changed.
    Doctor(DoctorArgs),
    /// Writes the log as an archive: compressed JSON lines, the hash of each event, and the signed heads.
    Export(ExportArgs),
    /// Prints the proof that an event is in the log, with the head that was signed: to keep, or to show to others.
    Prove(ProveArgs),
    /// Checks such a proof. Needs nothing else, and no broker.
    CheckProof(CheckProofArgs),
}

/// Options of what asks the projector.
#[derive(Debug, Clone, Args)]
pub struct AskArgs {
    /// One JSON object, for programs.
    #[arg(long)]
    pub json: bool,
}

/// Options of `verify`.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// Verifies this archive, where it lies: no broker is asked.
    #[arg(long, value_name = "DIR")]
    pub archive: Option<PathBuf>,
    /// Believes only heads signed by this public key.
    #[arg(long, value_name = "KEY", requires = "archive")]
    pub key: Option<String>,
    /// One JSON object, for programs.
    #[arg(long)]
    pub json: bool,
}

/// Options of `doctor`.
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    /// Looks at the broker's own configuration as well, where this is its machine.
    #[arg(long, value_name = "FILE")]
    pub nats_conf: Option<PathBuf>,
    /// One JSON list, for programs.
    #[arg(long)]
    pub json: bool,
}

/// Options of `audit`.
#[derive(Debug, Clone, Args)]
pub struct AuditArgs {
    /// As it was after this sequence, or at this time (such as 2026-01-31T12:00:00Z).
    #[arg(long, value_name = "SEQ|TIME")]
    pub at: Option<Point>,
    /// Reads this archive, and asks no broker.
    #[arg(long, value_name = "DIR")]
    pub archive: Option<PathBuf>,
    /// One JSON object, for programs.
    #[arg(long)]
    pub json: bool,
}

/// Options of `export`.
#[derive(Debug, Clone, Args)]
pub struct ExportArgs {
    /// The directory to make.
    #[arg(value_name = "DIR")]
    pub to: PathBuf,
    /// Prints the manifest as JSON, for programs.
    #[arg(long)]
    pub json: bool,
}

/// Options of `prove`.
#[derive(Debug, Clone, Args)]
pub struct ProveArgs {
    /// The event's sequence.
    pub seq: u64,
}

/// Options of `check-proof`.
#[derive(Debug, Clone, Args)]
pub struct CheckProofArgs {
    /// The file.
    pub file: PathBuf,
    /// Believes only a head signed by this public key.
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
}

/// Options of `rebuild`.
#[derive(Debug, Clone, Args)]
pub struct RebuildArgs {
    /// The model: jobs, machines, timeline, ledger, figures or merkle.
    pub model: String,
}

/// Options of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub monitor: MonitorArgs,
    /// Where the read models are kept. They can be deleted: they come back by replay.
    #[arg(long, env = "GPUBNB_PROJECTOR_DATA", default_value = "data/projector", value_name = "DIR")]
    pub data: PathBuf,
    /// Another key whose signed heads are believed: the one that this projector's credential had before. May be repeated.
    #[arg(long, value_name = "KEY")]
    pub head_key: Vec<String>,
    /// Memory for sled's cache, MiB.
    #[arg(long, default_value_t = 256)]
    pub cache_mib: u64,
    /// Events after which each model is kept anew in SNAPSHOTS, for a projector that starts without rows; 0: none
    /// is kept, and none is taken up.
    #[arg(long, env = "GPUBNB_SNAPSHOT_EVERY", default_value_t = 100_000, value_name = "EVENTS")]
    pub snapshot_every: u64,
}

/// Which events.
#[derive(Debug, Clone, Default, Args)]
pub struct Filter {
    /// Only this kind of aggregate: account, machine or job.
    #[arg(long)]
    pub kind: Option<String>,
    /// Only the aggregate with this id.
    #[arg(long)]
    pub id: Option<String>,
    /// Only this event, such as `JobAssigned`.
    #[arg(long = "type")]
    pub event: Option<String>,
    /// Only events about this job, whatever they belong to.
    #[arg(long)]
    pub job: Option<String>,
    /// One JSON object per line, for programs.
    #[arg(long)]
    pub json: bool,
}

/// Options of `tail`.
#[derive(Debug, Clone, Args)]
pub struct TailArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub filter: Filter,
    /// Begin this many events back.
    #[arg(short = 'n', long, default_value_t = 10)]
    pub lines: u64,
}

/// Options of `replay`.
#[derive(Debug, Clone, Args)]
pub struct ReplayArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub filter: Filter,
    /// First sequence.
    #[arg(long, default_value_t = 1)]
    pub from: u64,
    /// Last sequence; the end of the log if not given.
    #[arg(long)]
    pub to: Option<u64>,
    /// How many times faster than it happened; 0 = as fast as possible.
    #[arg(long, default_value_t = 0.0)]
    pub speed: f64,
}

/// Options of `show`.
#[derive(Debug, Clone, Args)]
pub struct ShowArgs {
    /// `job`, `machine` or `account`.
    pub kind: String,
    /// Its id.
    pub id: String,
    /// One JSON object, for programs.
    #[arg(long)]
    pub json: bool,
    /// As it was after this sequence, or at this time (such as 2026-01-31T12:00:00Z).
    #[arg(long, value_name = "SEQ|TIME")]
    pub at: Option<Point>,
}
