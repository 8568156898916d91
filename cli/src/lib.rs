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
mod batch;
mod batch_args;
mod datasets;
mod directory;
mod download;
mod follow;
mod job_args;
mod job_id;
mod project;
mod project_schema;
mod saved;
mod secrets;
mod show;
mod signal;
mod stream;
mod submit;
mod task_lists;
mod verify;
mod webhooks;

use std::{io::Write as _, path::Path};

use anyhow::Context as _;
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

/// Runs a command that needs no market; `None` for another command.
fn run_locally(command: &Command, json: bool) -> Option<anyhow::Result<u8>> {
    match command {
        Command::Completions { shell } => {
            // The library panics if it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "gpubnb", &mut script);
            outln!("{}", String::from_utf8_lossy(&script));
            Some(Ok(0))
        }
        Command::Man { directory } => Some(write_manual(directory)),
        Command::Schema => Some(project_schema::schema().map(|schema| {
            outln!("{schema:#}");
            0
        })),
        Command::Init { directory } => Some(init(directory, json)),
        Command::CheckProof { file, keys } => Some(verify::check_proof(file, keys.clone())),
        Command::Logout => Some(account::logout()),
        _ => None,
    }
}

fn write_manual(directory: &Path) -> anyhow::Result<u8> {
    clap_mangen::generate_to(Cli::command(), directory)
        .with_context(|| format!("writing to {}", directory.display()))?;
    outln!("The manual pages are in {0}: man {0}/gpubnb.1", directory.display());
    Ok(0)
}

fn init(directory: &Path, json: bool) -> anyhow::Result<u8> {
    let (path, missing) = project::init(directory)?;
    let program = missing.map_or_else(String::new, |name| format!(" There is no {name} yet: name your program there."));
    let sentence = format!("Wrote {}.{program} Run the job: gpubnb run {}", path.display(), directory.display());
    Ok(show::done(json, &serde_json::json!({ "written": path, "missing": missing }), &sentence))
}

/// Runs a command and returns the exit code for this process.
pub async fn run(cli: Cli) -> anyhow::Result<u8> {
    let json = cli.json;
    if let Some(done) = run_locally(&cli.command, json) {
        return done;
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
        Command::Templates => show::templates(&api, json).await,
        Command::Machines(filters) => show::machines(&api, &filters, json).await,
        Command::Jobs { state, text, limit } => show::jobs(&api, state.as_deref(), text.as_deref(), limit, json).await,
        Command::Receipt { job } => show::receipt(&api, &job_id::find(&api, &job).await?, json).await,
        Command::Verify { job, directory } => {
            verify::verify(&api, &job_id::find(&api, &job).await?, directory.as_deref(), json).await
        }
        Command::Cancel { job } => show::cancel(&api, &job_id::find(&api, &job).await?, json).await,
        Command::Logs { job, follow, filter } => {
            follow::logs(&api, &job_id::find(&api, &job).await?, follow, filter, json).await
        }
        Command::Secrets { command } => secrets::run(&api, command, json).await,
        Command::Webhooks { command } => webhooks::run(&api, command, json).await,
        Command::Data { command } => datasets::run(&api, command, json).await,
        Command::Quote(quote) if quote.tasks.are_named() => batch::quote(&api, *quote, json).await,
        Command::Quote(quote) => submit::quote(&api, &quote.job, json).await,
        Command::Top => show::top(&api, json).await,
        Command::Wait { job } => follow::wait(&api, &job_id::find(&api, &job).await?, json).await,
        Command::Open { job } => show::open_page(&api, &format!("/jobs/{}", job_id::find(&api, &job).await?), json),
        Command::Run(run) => submit::run(&api, *run, json).await,
        Command::Map(map) => batch::run(&api, batch::Submission::from_map(*map)?, json).await,
        Command::Batch { command } => batch::command(&api, command, json).await,
        Command::Fetch { job, directory } => {
            download::fetch(&api, &job_id::find(&api, &job).await?, directory, json).await
        }
        // These commands have run above, because they need no market.
        Command::Completions { .. }
        | Command::CheckProof { .. }
        | Command::Init { .. }
        | Command::Man { .. }
        | Command::Schema
        | Command::Logout => Ok(0),
    }
}
