//! The program `gpubnb-notifier`: sends webhooks and e-mail about the events of the log.

use clap::Parser;
use gpubnb_notifier::{Cli, Command, run};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    gpubnb_runtime::make_files_private();
    gpubnb_runtime::observe::start();
    let shutdown = CancellationToken::new();
    gpubnb_runtime::observe::cancel_on_signal(shutdown.clone());
    let cli = Cli::parse();
    match cli.command {
        Command::Run(args) => Box::pin(run(cli.nats, args, shutdown)).await,
    }
}
