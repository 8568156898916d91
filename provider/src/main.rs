//! `gpubnb-provider`: the worker on a spare machine.

use std::{io::IsTerminal as _, process::ExitCode, sync::Arc};

use gpubnb_provider::{Cli, Journal, commands, config::Command, desktop, enroll, run, self_test};
use tokio_util::sync::CancellationToken;

// One thread is enough to supervise jobs, and needs little of the owner's memory.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match Box::pin(done()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("gpubnb-provider: {e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn done() -> anyhow::Result<()> {
    gpubnb_runtime::make_files_private();
    let Cli { state, config, command } = Cli::read()?;
    match command {
        Command::Enroll(args) => {
            gpubnb_runtime::observe::start();
            enroll(&state, &args).await
        }
        Command::Run(args) => {
            gpubnb_runtime::allow_open_files();
            let journal = Arc::new(Journal::open(&state)?);
            gpubnb_runtime::observe::start_with_writer(journal, std::io::stderr().is_terminal());
            let shutdown = CancellationToken::new();
            gpubnb_runtime::observe::cancel_on_signal(shutdown.clone());
            Box::pin(run(&state, *args, shutdown)).await
        }
        Command::SelfTest(args) => self_test(&state, &args).await,
        Command::Status(args) => commands::status(&state, args).await,
        Command::Open(args) => commands::open(&state, args).await,
        Command::DesktopEntry(args) => desktop::write_entries(&state, config.as_deref(), args),
        Command::Pause(args) => commands::pause(&state, args).await,
        Command::Resume => commands::resume(&state).await,
        Command::Drain(args) => commands::drain(&state, args).await,
        Command::Logs(args) => commands::logs(&state, args).await,
    }
}
