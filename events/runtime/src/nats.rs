//! The connection to the broker, the same for every process.

use std::{path::PathBuf, time::Duration};

use async_nats::{Client, ConnectOptions, Event, connection::State, jetstream};
use clap::Args;
use gpubnb_events::{BoxError, subject::MACHINE_API};
use nkeys::{KeyPair, KeyPairType};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tracing::{info, warn};

/// How to reach the broker.
#[derive(Debug, Clone, Args)]
pub struct NatsArgs {
    /// Address of the broker; `tls://…` where it is reached over a network.
    #[arg(long, env = "GPUBNB_NATS_URL", default_value = "nats://127.0.0.1:4222", value_name = "URL")]
    pub nats: String,
    /// Directory with the credentials of this process's users, `<user>.creds`, as `gpubnb-services bootstrap` makes
    /// them.
    #[arg(long, env = "GPUBNB_NATS_CREDS", default_value = "keys", value_name = "DIR")]
    pub nats_creds: PathBuf,
    /// Certificate of the authority that signed the broker's, if it is not a public one (PEM).
    #[arg(long, env = "GPUBNB_NATS_CA", value_name = "FILE")]
    pub nats_ca: Option<PathBuf>,
}

/// The connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The credential cannot be used.
    #[error("the credential {path} cannot be used; `gpubnb-services bootstrap` makes one")]
    Credential {
        /// The credential's file.
        path: PathBuf,
        /// The cause.
        source: BoxError,
    },
    /// The broker refused, or is not there.
    #[error("cannot connect to the broker at {url} as `{user}`; is nats-server running there?")]
    Refused {
        /// The broker's address.
        url: String,
        /// The user of the broker.
        user: String,
        /// The cause.
        source: async_nats::ConnectError,
    },
}

impl NatsArgs {
    /// A key for signatures, derived from the seed in `user`'s credential. The credential's own key is not used: a
    /// client signs with it whatever text a broker sends as the challenge of a sign-in.
    pub fn signing_key(&self, user: &str) -> Result<KeyPair, ConnectError> {
        let path = self.nats_creds.join(format!("{user}.creds"));
        let unusable = |source: BoxError| ConnectError::Credential { path: path.clone(), source };
        let text = std::fs::read_to_string(&path).map_err(|e| unusable(e.into()))?;
        let seed = text.lines().map(str::trim).find(|line| line.starts_with("SU"));
        let seed = seed.ok_or_else(|| unusable("there is no user's seed in it".into()))?;
        let own = Sha256::new().chain_update("gpubnb signing key\n").chain_update(seed).finalize();
        KeyPair::new_from_raw(KeyPairType::User, own.into()).map_err(|e| unusable(e.into()))
    }

    /// Connects as `user`, with an inbox of its own. The connection reconnects for ever.
    pub async fn connect(&self, user: &str, inbox: &str) -> Result<Client, ConnectError> {
        let path = self.nats_creds.join(format!("{user}.creds"));
        let credential = std::fs::read_to_string(&path).and_then(|text| ConnectOptions::with_credentials(&text));
        let options = credential.map_err(|e| ConnectError::Credential { path, source: e.into() })?;
        connect(options, &self.nats, self.nats_ca.clone(), user, inbox).await
    }
}

/// Connects with options that already hold a credential.
pub async fn connect(
    options: ConnectOptions,
    url: &str,
    authority: Option<PathBuf>,
    user: &str,
    inbox: &str,
) -> Result<Client, ConnectError> {
    connect_and_tell(options, url, authority, user, inbox, watch::Sender::new(0)).await
}

/// Like [`connect`]; `connects` counts how often the connection was made, the first time included.
pub async fn connect_and_tell(
    options: ConnectOptions,
    url: &str,
    authority: Option<PathBuf>,
    user: &str,
    inbox: &str,
    connects: watch::Sender<u64>,
) -> Result<Client, ConnectError> {
    let name = user.to_owned();
    let mut options = options
        .name(user)
        .custom_inbox_prefix(inbox)
        .connection_timeout(Duration::from_secs(5))
        .request_timeout(Some(Duration::from_secs(5)))
        .ping_interval(Duration::from_secs(10))
        .reconnect_delay_callback(|attempts| Duration::from_millis(50 * u64::try_from(attempts).unwrap_or(20).min(20)))
        .event_callback(move |event| {
            let name = name.clone();
            if matches!(event, Event::Connected) {
                connects.send_modify(|count| *count += 1);
            }
            async move { report(&name, &event) }
        });
    if let Some(authority) = authority {
        options = options.add_root_certificates(authority).require_tls(true);
    }
    options.connect(url).await.map_err(|source| ConnectError::Refused {
        url: url.to_owned(),
        user: user.to_owned(),
        source,
    })
}

// The broker does not tell a publisher that a subject is denied. Denials show up here only.
fn report(user: &str, event: &Event) {
    match event {
        Event::Connected => info!(user, "connected to the broker"),
        Event::Disconnected => warn!(user, "lost the broker; reconnecting"),
        Event::ServerError(e) => warn!(user, error = %e, "the broker refused something"),
        other => info!(user, event = %other, "broker connection"),
    }
}

/// True while the connection is up.
pub fn connected(client: &Client) -> bool {
    client.connection_state() == State::Connected
}

/// `JetStream` over a connection, with the timeouts that every process uses.
pub fn jetstream(client: Client) -> jetstream::Context {
    let mut context = jetstream::new(client);
    context.set_timeout(Duration::from_secs(5));
    context
}

/// `JetStream` over a machine's connection. The account of machines has no streams; the broker maps this prefix to the
/// market's account.
pub fn machine_jetstream(client: Client) -> jetstream::Context {
    let mut context = jetstream::with_prefix(client, MACHINE_API);
    context.set_timeout(Duration::from_secs(5));
    context
}
