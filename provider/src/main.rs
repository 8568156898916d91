//! `gpubnb-provider`: the worker on a spare machine.

use clap::Parser;
use gpubnb_provider::{Cli, config::Command, enroll, run};
use tokio_util::sync::CancellationToken;

// One thread is enough to watch over jobs, and light enough to forget.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    gpubnb_events::observe::start();
    let shutdown = CancellationToken::new();
    gpubnb_events::observe::cancel_on_signal(shutdown.clone());
    let Cli { state, command } = Cli::parse();
    match command {
        Command::Enroll(args) => enroll(&state, &args).await,
        Command::Run(args) => run(&state, args, shutdown).await,
    }
}
