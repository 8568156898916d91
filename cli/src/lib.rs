//! The command-line client of `GPUbnb`, for people at a terminal and for scripts. Nearly every command only calls
//! the public API under `/api/v1` and prints the answer.
//!
//! Belongs here: the commands, and how answers look in a terminal. Must not come here: a rule of the market, or access
//! to the market other than through the public API.

/// Prints a line to the standard output. If the reader has closed the pipe, as in `gpubnb jobs | head`, this
/// process ends with exit code 0. If the line cannot be written for another reason, such as a full disk, this process
/// ends with [`FAILED`].
macro_rules! outln {
    ($($part:tt)*) => { $crate::print_line(format_args!($($part)*)) };
}

/// Prints a line to the standard error output. If nobody reads that output any more, this process goes on.
macro_rules! errln {
    ($($part:tt)*) => { $crate::print_error_line(format_args!($($part)*)) };
}

mod account;
mod api;
mod args;
mod download;
mod follow;
mod job_id;
mod saved;
mod show;
mod signal;
mod stream;
mod submit;
mod verify;

use std::io::Write as _;

use clap::CommandFactory as _;

pub use args::Cli;
use args::Command;

/// Exit code of this process if the client failed, as opposed to the job.
pub const FAILED: u8 = 125;
/// Exit code of this process if the job was cancelled.
const CANCELLED: u8 = 130;

fn print_line(line: std::fmt::Arguments<'_>) {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => {
            // The error output may be broken, too. Then only the exit code tells of the failure.
            drop(writeln!(std::io::stderr(), "gpubnb: the output cannot be written: {e}"));
            std::process::exit(i32::from(FAILED));
        }
    }
}

fn print_error_line(line: std::fmt::Arguments<'_>) {
    // If standard error is closed, there is nowhere to report it.
    drop(writeln!(std::io::stderr(), "{line}"));
}

/// Runs a command and returns the exit code for this process.
pub async fn run(cli: Cli) -> anyhow::Result<u8> {
    let json = cli.json;
    if let Command::Completions { shell } = cli.command {
        // The library panics if it cannot write.
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "gpubnb", &mut script);
        outln!("{}", String::from_utf8_lossy(&script));
        return Ok(0);
    }
    if let Command::CheckProof { file, keys } = cli.command {
        return verify::check_proof(&file, keys);
    }
    if matches!(cli.command, Command::Logout) {
        return account::logout();
    }
    // A damaged file of a former login must not stand in the way of a new one.
    let saved = match saved::read() {
        Err(_) if matches!(cli.command, Command::SignUp(_)) => None,
        Err(e) if matches!(cli.command, Command::Login(_)) => {
            errln!("The saved login cannot be read; a successful login replaces it: {e:#}");
            None
        }
        Err(e) if cli.url.is_none() || cli.token.is_none() => return Err(e),
        saved => saved.unwrap_or_default(),
    };
    let api = api::Api::new(saved, cli.url.as_deref(), cli.token, cli.ca.as_deref())?;
    match cli.command {
        Command::SignUp(credentials) => account::sign_up(&api, &credentials).await,
        Command::Login(login) => account::login(&api, &login).await,
        Command::EnrollCode => account::enroll_code(&api, json).await,
        Command::Machines => show::machines(&api, json).await,
        Command::Jobs { state, limit } => show::jobs(&api, state.as_deref(), limit, json).await,
        Command::Receipt { job } => show::receipt(&api, &job_id::find(&api, &job).await?, json).await,
        Command::Verify { job, directory } => {
            verify::verify(&api, &job_id::find(&api, &job).await?, directory.as_deref(), json).await
        }
        Command::Cancel { job } => show::cancel(&api, &job_id::find(&api, &job).await?, json).await,
        Command::Logs { job, follow } => follow::logs(&api, &job_id::find(&api, &job).await?, follow, json).await,
        Command::Run(run) => submit::run(&api, *run, json).await,
        Command::Fetch { job, directory } => {
            download::fetch(&api, &job_id::find(&api, &job).await?, directory, json).await
        }
        // These commands have returned above, because they need no market.
        Command::Completions { .. } | Command::CheckProof { .. } | Command::Logout => Ok(0),
    }
}
