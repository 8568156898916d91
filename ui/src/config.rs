//! The options of `gpubnb-ui`.

use std::{net::SocketAddr, path::PathBuf};

use clap::Parser;
use gpubnb_events::{AccountId, nats::NatsArgs};

/// Serves the pages and the JSON API.
#[derive(Debug, Clone, Parser)]
#[command(name = "gpubnb-ui", version)]
pub struct Config {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub nats: NatsArgs,
    /// Where to listen.
    #[arg(long, env = "GPUBNB_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// Signs every visitor in as this consumer. For demonstrations only; needs --demo-provider.
    #[arg(long, env = "GPUBNB_DEMO_CONSUMER", requires = "demo_provider", value_name = "ACCOUNT")]
    pub demo_consumer: Option<AccountId>,
    /// The provider's account that a visitor of a demonstration can switch to.
    #[arg(long, env = "GPUBNB_DEMO_PROVIDER", requires = "demo_consumer", value_name = "ACCOUNT")]
    pub demo_provider: Option<AccountId>,
    /// File with the secret that services and the edge share; without it no files are taken.
    #[arg(long, env = "GPUBNB_TRANSFER_KEY", value_name = "FILE")]
    pub transfer_key: Option<PathBuf>,
    /// Lets the server listen on an address that others can reach although visitors are signed in by themselves.
    #[arg(long, env = "GPUBNB_DEMO_IN_PUBLIC")]
    pub demo_in_public: bool,
}
