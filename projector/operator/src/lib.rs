//! The operator's tool: shows the event streams, and asks a projector to rebuild and verify its read models. The tool
//! never changes the log.

mod archive;
mod audit;
mod config;
mod doctor;
mod messages;
mod proof;
mod show;
mod trail;
mod work;

use std::{fmt::Display, io::Write as _, process::ExitCode};

use anyhow::Context as _;
use gpubnb_events::{Seq, subject::OPERATOR_INBOX};
use gpubnb_log::{Log, stream::MARKET};
use gpubnb_query::request::LogPoint;
use gpubnb_runtime::nats::{NatsArgs, jetstream};
use tokio_util::sync::CancellationToken;

pub use config::{Cli, Command};

/// Runs one command of the tool. The exit codes are those of `gpubnb-projector help`.
pub async fn operate(nats: NatsArgs, command: Command, shutdown: CancellationToken) -> anyhow::Result<ExitCode> {
    // Commands that read files need no broker.
    match &command {
        Command::Verify(args) if let Some(directory) = &args.archive => {
            return archive::verify(directory, args, &shutdown);
        }
        Command::Audit(args) if let Some(directory) = &args.archive => {
            return audit::audit_archive(args, directory, &shutdown).map(|()| ExitCode::SUCCESS);
        }
        Command::CheckProof(args) => return proof::check(args),
        _ => {}
    }
    let creds = nats.nats_creds.clone();
    let client = nats.connect("operator", OPERATOR_INBOX).await?;
    let log = Log::open(jetstream(client.clone())).await.context("MARKET cannot be read")?;
    match command {
        Command::Tail(args) if args.stream == MARKET => trail::tail(&log, &args, shutdown).await,
        Command::Tail(args) => messages::tail(&log, &args, shutdown).await,
        Command::Replay(args) if args.stream == MARKET => trail::replay(&log, &args, shutdown).await,
        Command::Replay(args) => messages::replay(&log, &args, shutdown).await,
        Command::Show(args) => show::show(client, &log, &args, shutdown).await,
        Command::Stuck(args) => until_stopped(&shutdown, work::stuck(client, &args)).await,
        Command::Lag(args) => until_stopped(&shutdown, work::lag(client, &args)).await,
        Command::Rebuild(args) => work::rebuild(client, &args, shutdown).await,
        Command::Verify(args) => work::verify(client, &args, shutdown).await,
        Command::Audit(args) => audit::audit_log(&log, &args, shutdown).await,
        Command::Export(args) => archive::export(&log, &args, shutdown).await,
        Command::Doctor(args) => until_stopped(&shutdown, doctor::doctor(client, &log, &creds, &args)).await,
        Command::Prove(args) => until_stopped(&shutdown, proof::prove(client, Seq(args.seq))).await,
        Command::Run(_) | Command::CheckProof(_) => anyhow::bail!("this command is not handled here"),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// The error message of a command that was stopped by a signal.
const STOPPED: &str = "stopped";

/// Runs `work` until it is done or a signal stops the command. The work must tolerate that it is cut off.
async fn until_stopped<T>(
    stop: &CancellationToken,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    stop.run_until_cancelled(work).await.context(STOPPED)?
}

/// The sequence of a point in the log; `None` is the end of the log.
async fn seq_of_point(log: &Log, point: Option<LogPoint>) -> anyhow::Result<Seq> {
    let last = log.last_seq().await?;
    Ok(match point {
        None => last,
        Some(LogPoint::Seq(seq)) => seq.min(last),
        Some(LogPoint::Time(time)) => log.seq_at(time, last).await?,
    })
}

/// Prints a line of a result. If the reader has closed the pipe (as `head` does), the command continues without output,
/// because its exit code still matters.
fn print_result(line: impl Display) -> anyhow::Result<()> {
    match writeln!(std::io::stdout(), "{line}") {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        printed => Ok(printed?),
    }
}

/// Prints a line. If the reader has closed the pipe (as `head` does), the command ends.
fn print_line(line: impl Display) -> anyhow::Result<()> {
    match writeln!(std::io::stdout(), "{line}") {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        printed => Ok(printed?),
    }
}
