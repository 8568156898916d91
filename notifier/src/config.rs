//! The options of `gpubnb-notifier`.

use clap::{Args, Parser, Subcommand};
use gpubnb_runtime::{monitor::MonitorArgs, nats::NatsArgs};
use url::Url;

/// Tells people and their programs what happened: webhooks and e-mail.
#[derive(Debug, Clone, Parser)]
#[command(name = "gpubnb-notifier", version)]
pub struct Cli {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub nats: NatsArgs,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands of `gpubnb-notifier`.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Sends until it is stopped. At its first start it sends nothing about the past. Several may run at once.
    Run(RunArgs),
}

/// Options of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub monitor: MonitorArgs,
    /// Address at which people reach the pages, for the links in messages.
    #[arg(long, env = "GPUBNB_URL", default_value = "http://127.0.0.1:8080", value_name = "URL")]
    pub url: Url,
    /// The server that takes outgoing e-mail: `smtps://user:password@host` (TLS at once, port 465), or
    /// `smtp://user:password@host:587?tls=required` (STARTTLS). Plain `smtp://` is for a server on this machine.
    /// Without this option no e-mail is sent.
    #[arg(long, env = "GPUBNB_SMTP_URL", hide_env_values = true, requires = "mail_from", value_name = "URL")]
    pub smtp: Option<Url>,
    /// The address from which e-mail is sent, such as `GPUbnb <no-reply@market.example>`.
    #[arg(long, env = "GPUBNB_MAIL_FROM", value_name = "ADDRESS")]
    pub mail_from: Option<String>,
    /// A host that webhooks may reach although its address is private, also without TLS: `127.0.0.1:9000`. For tests.
    #[arg(long, env = "GPUBNB_WEBHOOK_HOST", value_name = "HOST:PORT")]
    pub webhook_host: Option<String>,
}
