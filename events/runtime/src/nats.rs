//! The connection of a process to the broker (NATS).

use std::{io::ErrorKind, path::PathBuf, time::Duration};

use async_nats::{Client, ConnectOptions, Event, ServerAddr, connection::State, jetstream};
use clap::Args;
use gpubnb_events::{BoxError, subject::MACHINE_API};
use nkeys::{KeyPair, KeyPairType};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tracing::{info, warn};

/// Options of the connection to the broker.
#[derive(Debug, Clone, Args)]
pub struct NatsArgs {
    /// Address of the broker; `tls://…` for a broker on another machine. Several brokers of one cluster are separated
    /// by commas: the process starts while any of them answers.
    #[arg(long, env = "GPUBNB_NATS_URL", default_value = "nats://127.0.0.1:4222", value_name = "URL")]
    pub nats: String,
    /// Directory with the credential files `<user>.creds` of this process. `gpubnb-services bootstrap` makes the files.
    #[arg(long, env = "GPUBNB_NATS_CREDS", default_value = "keys", value_name = "DIR")]
    pub nats_creds: PathBuf,
    /// PEM file with the certificate authority that signed the broker's certificate; not needed for a public authority.
    #[arg(long, env = "GPUBNB_NATS_CA", value_name = "FILE")]
    pub nats_ca: Option<PathBuf>,
}

/// The reason why a process cannot connect to the broker.
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
    /// The text is no address of a broker.
    #[error("{0:?} is not the address of a broker: write tls://host:port, or nats://host:port on one machine")]
    Address(String, #[source] std::io::Error),
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
    /// A key for signatures, derived from the seed (private key) in `user`'s credential. The credential's own key must
    /// not sign documents: a client signs with it any challenge that a broker sends at sign-in, and a malicious broker
    /// could send a document as its challenge.
    pub fn signing_key(&self, user: &str) -> Result<KeyPair, ConnectError> {
        let path = self.nats_creds.join(format!("{user}.creds"));
        let unusable = |source: BoxError| ConnectError::Credential { path: path.clone(), source };
        let text = std::fs::read_to_string(&path).map_err(|e| unusable(e.into()))?;
        let seed = text.lines().map(str::trim).find(|line| line.starts_with("SU"));
        let seed = seed.ok_or_else(|| unusable("there is no user's seed in it".into()))?;
        let derived = Sha256::new().chain_update("gpubnb signing key\n").chain_update(seed).finalize();
        KeyPair::new_from_raw(KeyPairType::User, derived.into()).map_err(|e| unusable(e.into()))
    }

    /// Connects as `user`. Answers to this connection's requests arrive under the subject `inbox`. After a failure, the
    /// connection reconnects without end.
    pub async fn connect(&self, user: &str, inbox: &str) -> Result<Client, ConnectError> {
        let path = self.nats_creds.join(format!("{user}.creds"));
        let credential = std::fs::read_to_string(&path).and_then(|text| ConnectOptions::with_credentials(&text));
        let options = credential.map_err(|e| ConnectError::Credential { path, source: e.into() })?;
        connect(options, &self.nats, self.nats_ca.clone(), user, inbox).await
    }
}

/// Like [`NatsArgs::connect`], with `options` that already contain a credential. `authority` is a PEM file.
pub async fn connect(
    options: ConnectOptions,
    url: &str,
    authority: Option<PathBuf>,
    user: &str,
    inbox: &str,
) -> Result<Client, ConnectError> {
    connect_with_counter(options, url, authority, user, inbox, watch::Sender::new(0)).await
}

/// Like [`connect`]. Each time the connection is made, the first time included, `connects` is increased by 1.
pub async fn connect_with_counter(
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
    options.connect(addresses(url)?).await.map_err(|source| ConnectError::Refused {
        url: url.to_owned(),
        user: user.to_owned(),
        source,
    })
}

/// The addresses of the brokers in a text, which separates them by commas.
fn addresses(text: &str) -> Result<Vec<ServerAddr>, ConnectError> {
    let address = |address: &str| {
        // The library takes an empty text for an address.
        let parsed = if address.is_empty() { Err(ErrorKind::InvalidInput.into()) } else { address.parse() };
        parsed.map_err(|e| ConnectError::Address(address.to_owned(), e))
    };
    text.split(',').map(|part| address(part.trim())).collect()
}

/// Logs an event of the connection. If the broker forbids a process to publish to a subject, the process learns of that
/// only here.
fn report(user: &str, event: &Event) {
    match event {
        Event::Connected => info!(user, "connected to the broker"),
        Event::Disconnected => warn!(user, "the connection to the broker is lost; reconnecting"),
        Event::ServerError(e) => warn!(user, error = %e, "the broker reported an error"),
        other => info!(user, event = %other, "an event of the connection to the broker"),
    }
}

/// True while the connection is up.
pub fn is_connected(client: &Client) -> bool {
    client.connection_state() == State::Connected
}

/// The interface to `JetStream` (the broker's streams) over a connection. A request times out after 5 seconds.
pub fn jetstream(client: Client) -> jetstream::Context {
    let mut context = jetstream::new(client);
    context.set_timeout(Duration::from_secs(5));
    context
}

/// Like [`jetstream`], for the connection of a machine. The NATS account of machines has no streams: the broker
/// forwards requests with the prefix [`MACHINE_API`] to the market's account.
pub fn machine_jetstream(client: Client) -> jetstream::Context {
    let mut context = jetstream::with_prefix(client, MACHINE_API);
    context.set_timeout(Duration::from_secs(5));
    context
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_brokers_are_separated_by_commas() {
        let ports = |text: &str| addresses(text).map(|all| all.iter().map(ServerAddr::port).collect::<Vec<_>>());
        assert_eq!(ports("nats://127.0.0.1:4222").unwrap(), [4222]);
        assert_eq!(ports("tls://a.example:1,tls://b.example:2, tls://c.example:3").unwrap(), [1, 2, 3]);
        for wrong in ["", "nats://a:1,", "nats://a:x", "nats://a:1,nats://b:99999"] {
            assert!(matches!(ports(wrong), Err(ConnectError::Address(..))), "{wrong}");
        }
    }
}
