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
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands of `gpubnb-ui`.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Serves until it is stopped. Run as many as you like.
    Run(RunArgs),
    /// Prints a link that makes whoever opens it first an operator. It works once, within an hour.
    OperatorLink(LinkArgs),
    /// Prints the API as an OpenAPI 3.1 document.
    Openapi,
    /// Prints a line for every endpoint, with the access that it demands.
    Routes,
}

/// Options of `operator-link`.
#[derive(Debug, Clone, Args)]
pub struct LinkArgs {
    /// Address under which people reach the pages.
    #[arg(long, env = "GPUBNB_URL", default_value = "http://127.0.0.1:8080", value_name = "URL")]
    pub url: String,
}

/// Options of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub monitor: MonitorArgs,
    /// Address to listen on.
    #[arg(long, env = "GPUBNB_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// Certificate chain of this server (PEM). Without it, put a proxy with a certificate before this server: over
    /// plain HTTP, browsers keep a session only with their own machine.
    #[arg(long, env = "GPUBNB_TLS_CERT", requires = "tls_key", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate (PEM).
    #[arg(long, env = "GPUBNB_TLS_KEY", requires = "tls_cert", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// A proxy stands before this server: take a client's address from the last entry of `X-Forwarded-For`.
    #[arg(long, env = "GPUBNB_BEHIND_PROXY")]
    pub behind_proxy: bool,
    /// Address under which machines reach the broker, if it differs from the one that this process uses.
    #[arg(long, env = "GPUBNB_MACHINES_NATS_URL", value_name = "URL")]
    pub machines_nats: Option<String>,
    /// Requests per second from one address, and from one account. A burst may have five times as many.
    #[arg(long, env = "GPUBNB_REQUESTS_PER_SECOND", default_value = "50")]
    pub requests_per_second: NonZeroU32,
    /// Attempts per minute from one address to sign in or to redeem a code.
    #[arg(long, env = "GPUBNB_SIGN_INS_PER_MINUTE", default_value = "20")]
    pub sign_ins_per_minute: NonZeroU32,
    /// New accounts per minute from one address.
    #[arg(long, env = "GPUBNB_SIGN_UPS_PER_MINUTE", default_value = "5")]
    pub sign_ups_per_minute: NonZeroU32,
}
