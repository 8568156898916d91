//! The operator's tool: looks at the event streams, and has read models rebuilt and verified. Changes nothing in the log.

mod show;
mod trail;
mod work;

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
    let log = Log::open(jetstream(client.clone())).await.context("MARKET cannot be read")?;
    match command {
        Command::Tail(args) => trail::tail(&log, &args, shutdown).await,
        Command::Replay(args) => trail::replay(&log, &args, shutdown).await,
        Command::Show(args) => show::show(&log, &args, shutdown).await,
        Command::Lag(args) => work::lag(client, &args).await,
        Command::Rebuild(args) => work::rebuild(client, &args, shutdown).await,
        Command::Verify(args) => work::verify(client, &args, shutdown).await,
        Command::Run(_) => anyhow::bail!("`run` is the service, not a command of the tool"),
    }
}
