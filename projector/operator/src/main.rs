//! The program `gpubnb-projector`: the projector's service, and the operator's tool.

use std::process::ExitCode;

use clap::Parser;
use gpubnb_operator::{Cli, Command, operate};
use gpubnb_projector::run;
use tokio_util::sync::CancellationToken;

/// The fold frees much memory on other threads than those that allocated it, which suits jemalloc: see docs/adr/0018.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    gpubnb_runtime::make_files_private();
    let cli = Cli::parse();
    if matches!(cli.command, Command::Run(_)) {
        gpubnb_runtime::observe::start();
    } else {
        gpubnb_runtime::observe::start_quietly();
    }
    let shutdown = CancellationToken::new();
    gpubnb_runtime::observe::cancel_on_signal(shutdown.clone());
    match cli.command {
        Command::Run(args) => Box::pin(run(cli.nats, args, shutdown)).await.map(|()| ExitCode::SUCCESS),
        tool => Box::pin(operate(cli.nats, tool, shutdown)).await,
    }
}
