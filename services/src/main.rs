//! The program `gpubnb-services`: it decides commands, appends events, and holds the operator's tools for backups.

use clap::Parser;
use gpubnb_log::stream::StreamOptions;
use gpubnb_services::{Cli, backup, bootstrap, config::Operation, restore, run, whatif::what_if};
use tokio_util::sync::CancellationToken;

/// jemalloc returns freed memory to the system after the fold of a long log.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    gpubnb_runtime::observe::start();
    let shutdown = CancellationToken::new();
    gpubnb_runtime::observe::cancel_on_signal(shutdown.clone());
    match Cli::parse().command {
        Operation::Run(config) => Box::pin(run(config, shutdown)).await,
        Operation::Bootstrap(args) => bootstrap(&args),
        Operation::WhatIf(args) => what_if(&args, &shutdown),
        Operation::Backup(args) => backup(&args, shutdown).await,
        Operation::Restore(args) => {
            let options = StreamOptions { replicas: args.replicas, ..StreamOptions::default() };
            Box::pin(restore(&args.backup, &options, &args.rules.settings(), shutdown)).await
        }
    }
}
