//! The options of `gpubnb-ui`.

use std::{net::SocketAddr, num::NonZeroU32, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use gpubnb_runtime::{monitor::MonitorArgs, nats::NatsArgs};

/// Serves the pages and the JSON API.
#[derive(Debug, Clone, Parser)]
#[command(name = "gpubnb-ui", version)]
pub struct Cli {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub nats: NatsArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Serves until it is stopped. Run as many as you like.
    Run(RunArgs),
    /// Prints a link that makes whoever opens it first an operator. It works once, within an hour.
    OperatorLink(LinkArgs),
    /// Prints the API as an OpenAPI 3.1 document.
    Openapi,
    /// Prints every endpoint and what it demands, one a line.
    Routes,
}

/// Options of `operator-link`.
#[derive(Debug, Clone, Args)]
pub struct LinkArgs {
    /// Address of the pages, as people reach them.
    #[arg(long, env = "GPUBNB_URL", default_value = "http://127.0.0.1:8080", value_name = "URL")]
    pub url: String,
}

/// Options of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub monitor: MonitorArgs,
    /// Where to listen.
    #[arg(long, env = "GPUBNB_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// Certificate of this server, with those between it and its authority (PEM). Without one, put a proxy that has
    /// one before it: browsers keep no session over plain HTTP but on their own machine.
    #[arg(long, env = "GPUBNB_TLS_CERT", requires = "tls_key", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's key (PEM).
    #[arg(long, env = "GPUBNB_TLS_KEY", requires = "tls_cert", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// A proxy stands before this server: the address of a request is the last in `X-Forwarded-For`.
    #[arg(long, env = "GPUBNB_BEHIND_PROXY")]
    pub behind_proxy: bool,
    /// Address of the broker, as machines reach it; what this process uses, if it is the same.
    #[arg(long, env = "GPUBNB_MACHINES_NATS_URL", value_name = "URL")]
    pub machines_nats: Option<String>,
    /// Requests a second of one address, and of one account; five times as many at once.
    #[arg(long, env = "GPUBNB_REQUESTS_PER_SECOND", default_value = "50")]
    pub requests_per_second: NonZeroU32,
    /// Attempts a minute of one address to sign in or to redeem a code.
    #[arg(long, env = "GPUBNB_SIGN_INS_PER_MINUTE", default_value = "20")]
    pub sign_ins_per_minute: NonZeroU32,
    /// New accounts a minute of one address.
    #[arg(long, env = "GPUBNB_SIGN_UPS_PER_MINUTE", default_value = "5")]
    pub sign_ups_per_minute: NonZeroU32,
}
