//! `gpubnb-provider`: the worker on a spare machine.

use clap::Parser;
use gpubnb_provider::{Cli, config::Command, run};
use tokio_util::sync::CancellationToken;

// One thread is enough to watch over jobs, and light enough to forget.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    gpubnb_events::observe::start();
    let shutdown = CancellationToken::new();
    gpubnb_events::observe::cancel_on_signal(shutdown.clone());
    let cli = Cli::parse();
    match cli.command {
        Command::Run(args) => run(cli.nats, args, shutdown).await,
    }
}
