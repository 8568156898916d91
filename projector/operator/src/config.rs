//! The options of `gpubnb-projector`: of its service, and of every command for operators.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use gpubnb_events::ProjectorId;
use gpubnb_log::stream::MARKET;
use gpubnb_projector::RunArgs;
use gpubnb_query::request::Point;
use gpubnb_runtime::nats::NatsArgs;

/// What `--help` says at the end: examples, and what the exit codes mean.
mod help {
    pub(crate) const ALL: &str = "\
Every command but `run` only looks, or asks the projector that runs to work beside its live models: none disturbs the market.
They use the credential `operator.creds`: name its directory with --nats-creds before the command, or GPUBNB_NATS_CREDS.
Long work says how far it is on standard error; Ctrl-C ends a command at any moment, and leaves nothing half done.

Exit codes: 0 done, and clean; 1 not, and standard error says why; 2 an option or argument is missing or unknown.

Examples:
  gpubnb-projector tail                                    the events as they are written
  gpubnb-projector show job <id> --at 2026-01-31T12:00:00Z a job as it was
  gpubnb-projector verify --json                           the log and every row, for a monitoring job";
    pub(crate) const TAIL: &str = "\
Examples:
  gpubnb-projector tail --type Settled             the bills, as they are made
  gpubnb-projector tail --job <id> -n 0            what happens to a job from now on
  gpubnb-projector tail OUTPUT --id <job> -n 100   what a job prints, from a hundred messages back

--kind, --type and --job tell events of MARKET apart; of another stream, --id is looked for in the subject.
Ctrl-C ends it.";
    pub(crate) const REPLAY: &str = "\
Examples:
  gpubnb-projector replay --from 2026-01-31T00:00:00Z --to 2026-02-01T00:00:00Z --type Settled --json
  gpubnb-projector replay --job <id> --speed 10    a job's events, ten times faster than they came
  gpubnb-projector replay TELEMETRY --id <machine> what a machine said of itself in the last hour";
    pub(crate) const SHOW: &str = "\
Examples:
  gpubnb-projector show job <id>                             now
  gpubnb-projector show machine <id> --at 48211              after that event
  gpubnb-projector show account <id> --at 48210 --with 48211 what that event changed
  gpubnb-projector show market --at 2026-01-31T12:00:00Z     figures, ledger and machines

The projector that runs answers, from the thing's own trail; the market is folded from the nearest of its snapshots.
--from-log asks nobody: it folds the log from its first event, and owes nothing to the read models.";
    pub(crate) const REBUILD: &str = "\
Examples:
  gpubnb-projector rebuild jobs

The model that answers goes on answering; the new one takes its place in one step when it has caught up. Ctrl-C ends the
waiting, not the rebuild; a rebuild that was cut off with the projector goes on at its next start.";
    pub(crate) const VERIFY: &str = "\
Examples:
  gpubnb-projector verify
  gpubnb-projector verify --archive archive/ --key U…   an archive, and only heads of that key

Not clean is: a row that differs, a broken invariant, an event that is not what was signed, missing or moved.";
    pub(crate) const LAG: &str = "\
Examples:
  gpubnb-projector lag          what each stream holds and may grow to; how far each model is behind
  gpubnb-projector lag --json   the same for programs, with the progress of rebuilds and the last verification";
    pub(crate) const STUCK: &str = "\
Examples:
  gpubnb-projector stuck || notify   fails (exit code 1) where there is any";
    pub(crate) const AUDIT: &str = "\
Examples:
  gpubnb-projector audit                            every account, and that everything together is nothing
  gpubnb-projector audit --at 2026-01-31T00:00:00Z  as it was
  gpubnb-projector audit --archive archive/ --json  of an archive, without a broker

It reads events alone, and owes nothing to the read models. Fails where the ledger breaks a rule at any event.";
    pub(crate) const DOCTOR: &str = "\
Examples:
  gpubnb-projector doctor
  gpubnb-projector doctor --nats-conf keys/nats.conf   on the broker's machine: how it syncs to its disk, and what room it has

Fails where something is to be changed, and says how. What could not be looked at is said, and is no failure.";
    pub(crate) const PROVE: &str = "\
Examples:
  gpubnb-projector prove 48211 > proof.json
  gpubnb-projector check-proof proof.json --key U…   by anyone, anywhere

The proof holds the event, its path in the log's Merkle tree (RFC 6962), and the head that was signed.";
    pub(crate) const EXPORT: &str = "\
Examples:
  gpubnb-projector export archive/ && gpubnb-projector verify --archive archive/

Cut off, say the same again: whole parts of 50,000 events are kept.";
}

/// Folds the log into read models, answers queries, and lets operators look at the event streams.
#[derive(Debug, Clone, Parser)]
#[command(name = "gpubnb-projector", version, after_long_help = help::ALL)]
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
    #[command(after_long_help = help::TAIL)]
    Tail(TailArgs),
    /// Shows the events of a range again, at the pace they came or as fast as possible.
    #[command(after_long_help = help::REPLAY)]
    Replay(ReplayArgs),
    /// Shows one job, machine or account with its event trail, or the whole market: now, as it was, or what changed.
    #[command(after_long_help = help::SHOW)]
    Show(ShowArgs),
    /// How far each read model is behind the log, and how large the streams are.
    #[command(after_long_help = help::LAG)]
    Lag(LagArgs),
    /// Jobs that have been in one state for too long, with the likely cause and what to do. Fails where there are any.
    #[command(after_long_help = help::STUCK)]
    Stuck(AskArgs),
    /// Has a read model rebuilt beside the one that answers, and swapped in.
    #[command(after_long_help = help::REBUILD)]
    Rebuild(RebuildArgs),
    /// Has the log replayed, its invariants looked at, and every row compared. Fails where something differs.
    #[command(after_long_help = help::VERIFY)]
    Verify(VerifyArgs),
    /// Sums the ledger of the log, account by account, and proves that it balances.
    #[command(after_long_help = help::AUDIT)]
    Audit(AuditArgs),
    /// Looks at the whole deployment, and says what to change. Fails where something is to be changed.
    #[command(after_long_help = help::DOCTOR)]
    Doctor(DoctorArgs),
    /// Writes the log as an archive: compressed JSON lines, the hash of each event, and the signed heads.
    #[command(after_long_help = help::EXPORT)]
    Export(ExportArgs),
    /// Prints the proof that an event is in the log, with the head that was signed: to keep, or to show to others.
    #[command(after_long_help = help::PROVE)]
    Prove(ProveArgs),
    /// Checks such a proof. Needs nothing else, and no broker.
    #[command(after_long_help = help::PROVE)]
    CheckProof(CheckProofArgs),
}

/// Options of what asks the projector.
#[derive(Debug, Clone, Args)]
pub struct AskArgs {
    /// JSON, for programs.
    #[arg(long)]
    pub json: bool,
}

/// Options of `lag`.
#[derive(Debug, Clone, Args)]
pub struct LagArgs {
    /// Asks this projector, where there are several. Which one answered is the first line.
    #[arg(long, value_name = "ID")]
    pub projector: Option<ProjectorId>,
    /// JSON, for programs.
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
    /// The models of this projector, where there are several (`lag` says which answers).
    #[arg(long, value_name = "ID", conflicts_with = "archive")]
    pub projector: Option<ProjectorId>,
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
    /// One JSON object, for programs.
    #[arg(long)]
    pub json: bool,
}

/// Options of `rebuild`.
#[derive(Debug, Clone, Args)]
pub struct RebuildArgs {
    /// The model: jobs, machines, timeline, ledger, figures or merkle.
    pub model: String,
    /// At this projector, where there are several (`lag` says which answers).
    #[arg(long, value_name = "ID")]
    pub projector: Option<ProjectorId>,
    /// One JSON object, for programs.
    #[arg(long)]
    pub json: bool,
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
    /// MARKET, TELEMETRY or OUTPUT.
    #[arg(default_value = MARKET)]
    pub stream: String,
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
    /// MARKET, DISPATCH, TELEMETRY or OUTPUT.
    #[arg(default_value = MARKET)]
    pub stream: String,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub filter: Filter,
    /// From this sequence or time on; from the beginning, if not given.
    #[arg(long, value_name = "SEQ|TIME")]
    pub from: Option<Point>,
    /// Up to this sequence or time; up to the end, if not given.
    #[arg(long, value_name = "SEQ|TIME")]
    pub to: Option<Point>,
    /// How many times faster than it happened; 0 = as fast as possible.
    #[arg(long, default_value_t = 0.0, value_name = "TIMES")]
    pub speed: f64,
}

/// What `show` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ShowKind {
    /// A job.
    Job,
    /// A machine.
    Machine,
    /// An account.
    Account,
    /// The whole market: figures, ledger and machines.
    Market,
}

/// Options of `show`.
#[derive(Debug, Clone, Args)]
pub struct ShowArgs {
    /// What.
    pub kind: ShowKind,
    /// Its id; the market has none.
    #[arg(required_if_eq_any([("kind", "job"), ("kind", "machine"), ("kind", "account")]))]
    pub id: Option<String>,
    /// One JSON object, for programs.
    #[arg(long)]
    pub json: bool,
    /// As it was after this sequence, or at this time (such as 2026-01-31T12:00:00Z).
    #[arg(long, value_name = "SEQ|TIME")]
    pub at: Option<Point>,
    /// And what changed since, until this sequence or time.
    #[arg(long, value_name = "SEQ|TIME", requires = "at", conflicts_with = "from_log")]
    pub with: Option<Point>,
    /// Folds the log from its first event, and asks no projector.
    #[arg(long)]
    pub from_log: bool,
}
