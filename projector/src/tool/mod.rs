//! The operator's tool: looks at the event streams, changes nothing.

mod show;
mod trail;

use anyhow::Context as _;
use gpubnb_events::{
    Log,
    nats::{NatsArgs, jetstream},
    subject::OPERATOR_INBOX,
};
use tokio_util::sync::CancellationToken;

use crate::config::Command;

/// Runs one command of the tool.
pub async fn operate(nats: NatsArgs, command: Command, shutdown: CancellationToken) -> anyhow::Result<()> {
    let client = nats.connect("operator", OPERATOR_INBOX).await?;
    let log = Log::open(jetstream(client)).await.context("MARKET cannot be read")?;
    match command {
        Command::Tail(args) => trail::tail(&log, &args, shutdown).await,
        Command::Replay(args) => trail::replay(&log, &args, shutdown).await,
        Command::Show(args) => show::show(&log, &args, shutdown).await,
        Command::Run(_) => anyhow::bail!("`run` is the service, not a command of the tool"),
    }
}
