//! The command-line options of `gpubnb-ui`.

use std::{net::SocketAddr, num::NonZeroU32, path::PathBuf};

use clap::{Args, Parser, Subcommand, value_parser};
use gpubnb_registry::PrivateRegistry;
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
// A process has one value of this type.
#[allow(clippy::large_enum_variant)]
pub enum Command {
    /// Serves until it is stopped. Any number of instances can run at the same time.
    Run(RunArgs),
    /// Prints a link that makes the first person who opens it an operator. The link works once, within an hour.
    OperatorLink(LinkArgs),
    /// Approves a template: finds the digest of its image, and writes the file with it into the directory of templates.
    ApproveTemplate(ApproveArgs),
    /// Prints the API as an OpenAPI 3.1 document.
    Openapi,
    /// Prints one line for every endpoint: method, path, and the access that the endpoint demands.
    Routes,
}

/// Options of `operator-link`.
#[derive(Debug, Clone, Args)]
pub struct LinkArgs {
    /// Address at which people reach the pages.
    #[arg(long, env = "GPUBNB_URL", default_value = "http://127.0.0.1:8080", value_name = "URL")]
    pub url: String,
}

/// Options of `approve-template`.
#[derive(Debug, Clone, Args)]
pub struct ApproveArgs {
    /// The templates: files such as `templates/transcribe.toml`.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// The directory of the approved templates, which `gpubnb-ui run --templates` names.
    #[arg(long, env = "GPUBNB_TEMPLATES", value_name = "DIR")]
    pub templates: PathBuf,
    /// A registry that may be asked although its address is private: `http://127.0.0.1:5000`. Can be repeated.
    #[arg(long, env = "GPUBNB_PRIVATE_REGISTRIES", value_delimiter = ',', value_name = "URL")]
    pub private_registry: Vec<PrivateRegistry>,
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
    /// Address at which people open the pages, such as `https://market.example`. People can sign in with passkeys only
    /// there; without this option, there are none.
    #[arg(long, env = "GPUBNB_URL", value_name = "URL")]
    pub url: Option<url::Url>,
    /// Certificate chain of this server (PEM). Without this option, run the server behind a proxy that has a
    /// certificate. Over plain HTTP, browsers accept a session only from `localhost`.
    #[arg(long, env = "GPUBNB_TLS_CERT", requires = "tls_key", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate (PEM).
    #[arg(long, env = "GPUBNB_TLS_KEY", requires = "tls_cert", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Take a client's address from the last entry of `X-Forwarded-For`. Set this behind a proxy, and only there.
    #[arg(long, env = "GPUBNB_BEHIND_PROXY")]
    pub behind_proxy: bool,
    /// Address at which machines reach the broker, if it differs from the address that this process uses.
    #[arg(long, env = "GPUBNB_MACHINES_NATS_URL", value_name = "URL")]
    pub machines_nats: Option<String>,
    /// Where the files of jobs are kept, if not in the broker: a directory (`file:///srv/gpubnb`), which all instances
    /// of this server must share, or a store that speaks S3 (`s3://bucket/prefix`). For S3, the environment has
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, and `AWS_ENDPOINT_URL` for a store of another
    /// company.
    #[arg(long, env = "GPUBNB_FILES", value_name = "URL")]
    pub files: Option<String>,
    /// Room for the input files there, GiB.
    #[arg(long, env = "GPUBNB_FILES_INPUTS_GIB", default_value_t = 100, value_parser = value_parser!(u64).range(1..))]
    pub files_inputs_gib: u64,
    /// Room for the files that jobs leave there, GiB.
    #[arg(long, env = "GPUBNB_FILES_ARTIFACTS_GIB", default_value_t = 100)]
    #[arg(value_parser = value_parser!(u64).range(1..))]
    pub files_artifacts_gib: u64,
    /// The worker's program, which owners of machines download from this server. The default is the program
    /// `gpubnb-provider` beside this one.
    #[arg(long, env = "GPUBNB_WORKER", value_name = "FILE")]
    pub worker: Option<PathBuf>,
    /// The host that webhooks may reach without TLS, as for `gpubnb-notifier run`: `127.0.0.1:9000`. For tests.
    #[arg(long, env = "GPUBNB_WEBHOOK_HOST", value_name = "HOST:PORT")]
    pub webhook_host: Option<String>,
    /// An image that `gpubnb-services run --approve-image` names with its tag. Its tag stays as it is: no registry is
    /// asked for its digest. Can be repeated.
    #[arg(long, env = "GPUBNB_APPROVE_IMAGES", value_delimiter = ',', value_name = "IMAGE")]
    pub approve_image: Vec<String>,
    /// A registry that this server may ask for digests although its address is private: `http://127.0.0.1:5000`. Can be
    /// repeated. Jobs may have its images only if `gpubnb-services run --approve-image` names them.
    #[arg(long, env = "GPUBNB_PRIVATE_REGISTRIES", value_delimiter = ',', value_name = "URL")]
    pub private_registry: Vec<PrivateRegistry>,
    /// Directory with the approved templates of jobs (`gpubnb-ui approve-template`). Files may be added and removed
    /// while the server runs.
    #[arg(long, env = "GPUBNB_TEMPLATES", value_name = "DIR")]
    pub templates: Option<PathBuf>,
    /// File with the terms of use of this market: text, with empty lines between paragraphs.
    #[arg(long, env = "GPUBNB_TERMS", value_name = "FILE")]
    pub terms: Option<PathBuf>,
    /// Maximum number of requests per second from one address, and from one account. A burst may have five times as
    /// many requests.
    #[arg(long, env = "GPUBNB_REQUESTS_PER_SECOND", default_value = "50")]
    pub requests_per_second: NonZeroU32,
    /// Maximum number of attempts per minute from one address to sign in or to redeem an enrollment code.
    #[arg(long, env = "GPUBNB_SIGN_INS_PER_MINUTE", default_value = "20")]
    pub sign_ins_per_minute: NonZeroU32,
    /// Maximum number of new accounts per minute from one address.
    #[arg(long, env = "GPUBNB_SIGN_UPS_PER_MINUTE", default_value = "5")]
    pub sign_ups_per_minute: NonZeroU32,
}
