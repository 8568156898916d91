//! `gpubnb-services`: the process that decides.

use clap::Parser;
use gpubnb_services::{Config, run};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    gpubnb_events::observe::start();
    let shutdown = CancellationToken::new();
    gpubnb_events::observe::cancel_on_signal(shutdown.clone());
    run(Config::parse(), shutdown).await
}
