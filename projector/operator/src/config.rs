//! The options of `gpubnb-projector`, for the service and for the operator's commands.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use gpubnb_events::ProjectorId;
use gpubnb_log::stream::MARKET;
use gpubnb_projector::RunArgs;
use gpubnb_query::request::LogPoint;
use gpubnb_runtime::nats::NatsArgs;

/// The end of each `--help`: examples, and the meaning of the exit codes.
mod help {
    pub(crate) const ALL: &str = "\
The commands other than `run` only read, or ask the running projector to work in the background.
They use the credential `operator.creds`: name its directory with --nats-creds before the command, or GPUBNB_NATS_CREDS.
Long commands show their progress on standard error. Ctrl-C ends a command at any moment without harm.

Exit codes: 0 done and clean; 1 failed or not clean, see standard error; 2 an option or argument is missing or unknown;
3 an archive or proof is consistent, but you named no key of the market that vouches for all of it.

Examples:
  gpubnb-projector tail                                    the events as they are written
  gpubnb-projector show job <id> --at 2026-01-31T12:00:00Z a job as it was
  gpubnb-projector verify --json                           check the log and every row, for a monitoring job";
    pub(crate) const TAIL: &str = "\
Examples:
  gpubnb-projector tail --type Settled             the bills of jobs, as they are written
  gpubnb-projector tail --job <id> -n 0            what happens to a job from now on
  gpubnb-projector tail OUTPUT --id <job> -n 100   the output of a job, starting 100 messages back

--kind, --type and --job select events of MARKET. In other streams, --id selects messages with this id in their subject.
Ctrl-C ends the command.";
    pub(crate) const REPLAY: &str = "\
Examples:
  gpubnb-projector replay --from 2026-01-31T00:00:00Z --to 2026-02-01T00:00:00Z --type Settled --json
  gpubnb-projector replay --job <id> --speed 10    a job's events, ten times faster than they were written
  gpubnb-projector replay TELEMETRY --id <machine> the heartbeats of a machine in the last hour";
    pub(crate) const SHOW: &str = "\
Examples:
  gpubnb-projector show job <id>                             now
  gpubnb-projector show machine <id> --at 48211              after event 48211
  gpubnb-projector show account <id> --at 48210 --with 48211 the changes by event 48211
  gpubnb-projector show market --at 2026-01-31T12:00:00Z     figures, ledger and machines

The running projector answers. It folds a job, machine or account from its own trail, and the market from the nearest
snapshot. With --from-log, this command folds the log itself, from the first event.";
    pub(crate) const REBUILD: &str = "\
Examples:
  gpubnb-projector rebuild jobs

The old model answers until the new one has caught up and takes its place in one step. Ctrl-C stops only the
waiting. If the projector stops during a rebuild, the rebuild continues at the next start.";
    pub(crate) const VERIFY: &str = "\
Examples:
  gpubnb-projector verify
  gpubnb-projector verify --archive archive/ --key U…   an archive, trusting only heads signed by that key

The market publishes its keys at /.well-known/gpubnb.json. Get them from a place that the sender of the archive does not
control. Without --key, the archive can only be consistent with itself (exit code 3): anybody can sign their own log.
Not clean: a row differs, an invariant is broken, or an event was changed, removed or moved after it was signed.";
    pub(crate) const LAG: &str = "\
Examples:
  gpubnb-projector lag          the size and the limit of each stream; how far each model is behind
  gpubnb-projector lag --json   the same for programs, with the progress of rebuilds and the last verification";
    pub(crate) const STUCK: &str = "\
Examples:
  gpubnb-projector stuck || notify   fails (exit code 1) if any job is stuck";
    pub(crate) const AUDIT: &str = "\
Examples:
  gpubnb-projector audit                            every account, and the total, which must be zero
  gpubnb-projector audit --at 2026-01-31T00:00:00Z  the ledger as it was
  gpubnb-projector audit --archive archive/ --json  the ledger of an archive, without a broker

The audit reads events only, never the read models. Fails if the ledger breaks a rule at any event.";
    pub(crate) const DOCTOR: &str = "\
Examples:
  gpubnb-projector doctor
  gpubnb-projector doctor --nats-conf keys/nats.conf   on the broker's machine: also its disk and how it syncs

Fails if something must be changed, and says how. A check that could not be made is listed, but is no failure.";
    pub(crate) const PROVE: &str = "\
Examples:
  gpubnb-projector prove 48211 > proof.json
  gpubnb-projector check-proof proof.json --key U…   needs no broker: anyone can check the proof

The proof contains the event, its path in the log's Merkle tree (RFC 6962), and the signed head.";
    pub(crate) const EXPORT: &str = "\
Examples:
  gpubnb-projector export archive/ && gpubnb-projector verify --archive archive/

If the export was interrupted, run the same command again: finished parts of 50,000 events are kept.";
}

/// Folds the log into read models, answers queries, and lets operators look at the event streams.
#[derive(Debug, Clone, Parser)]
#[command(name = "gpubnb-projector", version, after_long_help = help::ALL)]
pub struct Cli {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub nats: NatsArgs,
    /// The command to run.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Runs the service: folds the log and answers queries until it is stopped.
    Run(RunArgs),
    /// Shows events as they are written.
    #[command(after_long_help = help::TAIL)]
    Tail(TailArgs),
    /// Shows past events again, at the speed at which they were written or as fast as possible.
    #[command(after_long_help = help::REPLAY)]
    Replay(ReplayArgs),
    /// Shows a job, machine or account with its events, or the whole market: now, at an earlier time, or the changes
    /// between two times.
    #[command(after_long_help = help::SHOW)]
    Show(ShowArgs),
    /// Shows how far each read model is behind the log, and how large the streams are.
    #[command(after_long_help = help::LAG)]
    Lag(LagArgs),
    /// Lists jobs that have been in one state for too long, with the likely cause and remedy. Fails if there are any.
    #[command(after_long_help = help::STUCK)]
    Stuck(AskArgs),
    /// Rebuilds a read model from the log beside the one that answers, and swaps it in.
    #[command(after_long_help = help::REBUILD)]
    Rebuild(RebuildArgs),
    /// Replays the log, checks its invariants, and compares every row. Fails if something differs.
    #[command(after_long_help = help::VERIFY)]
    Verify(VerifyArgs),
    /// Sums the ledger of the log, account by account, and proves that it balances.
    #[command(after_long_help = help::AUDIT)]
    Audit(AuditArgs),
    /// Checks the whole deployment and says what to change. Fails if something must be changed.
    #[command(after_long_help = help::DOCTOR)]
    Doctor(DoctorArgs),
    /// Writes the log as an archive: compressed JSON lines, the hash of each event, and the signed heads.
    #[command(after_long_help = help::EXPORT)]
    Export(ExportArgs),
    /// Prints a proof that an event is in the signed log, to keep or to show to others.
    #[command(after_long_help = help::PROVE)]
    Prove(ProveArgs),
    /// Checks a proof that `prove` printed. Needs no broker.
    #[command(after_long_help = help::PROVE)]
    CheckProof(CheckProofArgs),
}

/// Options of `stuck`.
#[derive(Debug, Clone, Args)]
pub struct AskArgs {
    /// Prints JSON, for programs.
    #[arg(long)]
    pub json: bool,
}

/// Options of `lag`.
#[derive(Debug, Clone, Args)]
pub struct LagArgs {
    /// Asks this projector, if there are several. The first line names the projector that answered.
    #[arg(long, value_name = "ID")]
    pub projector: Option<ProjectorId>,
    /// Prints JSON, for programs.
    #[arg(long)]
    pub json: bool,
}

/// Options of `verify`.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// Verifies this archive instead, without a broker.
    #[arg(long, value_name = "DIR")]
    pub archive: Option<PathBuf>,
    /// A public key of the market, which signs its heads. Only heads of such keys are trusted. Can be repeated.
    #[arg(long = "key", value_name = "KEY", requires = "archive")]
    pub keys: Vec<String>,
    /// Verifies the models of this projector, if there are several (`lag` prints the id of a projector).
    #[arg(long, value_name = "ID", conflicts_with = "archive")]
    pub projector: Option<ProjectorId>,
    /// Prints one JSON object, for programs.
    #[arg(long)]
    pub json: bool,
}

/// Options of `doctor`.
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    /// Also checks the broker's configuration file; run this on the broker's machine.
    #[arg(long, value_name = "FILE")]
    pub nats_conf: Option<PathBuf>,
    /// The least free space on the disk with the broker's streams, when the streams of files and output are full.
    #[arg(long, value_name = "GIB", default_value_t = 5, value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    pub min_free_gib: u64,
    /// Prints one JSON list, for programs.
    #[arg(long)]
    pub json: bool,
}

/// Options of `audit`.
#[derive(Debug, Clone, Args)]
pub struct AuditArgs {
    /// Sums the ledger as it was after this sequence or at this time (such as 2026-01-31T12:00:00Z).
    #[arg(long, value_name = "SEQ|TIME")]
    pub at: Option<LogPoint>,
    /// Reads this archive instead, without a broker.
    #[arg(long, value_name = "DIR")]
    pub archive: Option<PathBuf>,
    /// Prints one JSON object, for programs.
    #[arg(long)]
    pub json: bool,
}

/// Options of `export`.
#[derive(Debug, Clone, Args)]
pub struct ExportArgs {
    /// The directory of the archive.
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
    /// The file with the proof.
    pub file: PathBuf,
    /// A public key of the market, which signs its heads. Only heads of such keys are trusted. Can be repeated.
    #[arg(long = "key", value_name = "KEY")]
    pub keys: Vec<String>,
    /// Prints one JSON object, for programs.
    #[arg(long)]
    pub json: bool,
}

/// Options of `rebuild`.
#[derive(Debug, Clone, Args)]
pub struct RebuildArgs {
    /// The model: jobs, machines, timeline, ledger, figures or merkle.
    pub model: String,
    /// Rebuilds the model of this projector, if there are several (`lag` prints the id of a projector).
    #[arg(long, value_name = "ID")]
    pub projector: Option<ProjectorId>,
    /// Prints one JSON object, for programs.
    #[arg(long)]
    pub json: bool,
}

/// Options that select events.
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
    /// Only events about this job, including events of accounts.
    #[arg(long)]
    pub job: Option<String>,
    /// Prints one JSON object per line, for programs.
    #[arg(long)]
    pub json: bool,
}

/// Options of `tail`.
#[derive(Debug, Clone, Args)]
pub struct TailArgs {
    /// The stream: MARKET, TELEMETRY or OUTPUT.
    #[arg(default_value = MARKET)]
    pub stream: String,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub filter: Filter,
    /// Begins this many events back.
    #[arg(short = 'n', long, default_value_t = 10)]
    pub lines: u64,
}

/// Options of `replay`.
#[derive(Debug, Clone, Args)]
pub struct ReplayArgs {
    /// The stream: MARKET, DISPATCH, TELEMETRY or OUTPUT.
    #[arg(default_value = MARKET)]
    pub stream: String,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub filter: Filter,
    /// Begins at this sequence or time; without it, at the first event.
    #[arg(long, value_name = "SEQ|TIME")]
    pub from: Option<LogPoint>,
    /// Ends at this sequence or time; without it, at the last event.
    #[arg(long, value_name = "SEQ|TIME")]
    pub to: Option<LogPoint>,
    /// Number of times faster than the events were written; 0 = as fast as possible.
    #[arg(long, default_value_t = 0.0, value_name = "TIMES")]
    pub speed: f64,
}

/// The things that `show` can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ShowKind {
    /// A job.
    Job,
    /// A machine.
    Machine,
    /// An account.
    Account,
    /// A batch.
    Batch,
    /// The whole market: figures, ledger and machines.
    Market,
}

/// Options of `show`.
#[derive(Debug, Clone, Args)]
pub struct ShowArgs {
    /// The kind of the thing.
    pub kind: ShowKind,
    /// The id of the thing; the market has none.
    #[arg(required_if_eq_any([("kind", "job"), ("kind", "machine"), ("kind", "account"), ("kind", "batch")]))]
    pub id: Option<String>,
    /// Prints one JSON object, for programs.
    #[arg(long)]
    pub json: bool,
    /// Shows the thing as it was after this sequence or at this time (such as 2026-01-31T12:00:00Z).
    #[arg(long, value_name = "SEQ|TIME")]
    pub at: Option<LogPoint>,
    /// Shows instead the changes from --at to this sequence or time.
    #[arg(long, value_name = "SEQ|TIME", requires = "at", conflicts_with = "from_log")]
    pub with: Option<LogPoint>,
    /// Folds the log here from its first event, and asks no projector.
    #[arg(long)]
    pub from_log: bool,
}
