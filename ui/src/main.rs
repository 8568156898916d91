//! `gpubnb-ui`: the process that people and programs talk to.

use clap::Parser;
use gpubnb_ui::{Config, run};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    gpubnb_events::observe::start();
    let shutdown = CancellationToken::new();
    gpubnb_events::observe::cancel_on_signal(shutdown.clone());
    run(Config::parse(), shutdown).await
}
