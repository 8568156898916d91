//! The connection to the broker, the same for every process.

use std::{path::PathBuf, time::Duration};

use async_nats::{Client, ConnectOptions, Event, connection::State, jetstream};
use clap::Args;
use tracing::{info, warn};

/// How to reach the broker.
#[derive(Debug, Clone, Args)]
pub struct NatsArgs {
    /// Address of the broker.
    #[arg(long, env = "GPUBNB_NATS_URL", default_value = "nats://127.0.0.1:4222", value_name = "URL")]
    pub nats: String,
    /// File that holds the passwords of this process's users, one `user:password` a line.
    #[arg(long, env = "GPUBNB_NATS_PASSWORDS", value_name = "FILE")]
    pub nats_passwords: Option<PathBuf>,
}

/// A connection that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The password file is of no use.
    #[error("{path}: {problem}")]
    Passwords {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The broker refused.
    #[error("cannot connect to the broker at {url} as `{user}`: {problem}. Is nats-server running there?")]
    Refused {
        /// Where.
        url: String,
        /// Who.
        user: String,
        /// What is wrong.
        problem: String,
    },
}

impl NatsArgs {
    fn password(&self, user: &str) -> Result<Option<String>, ConnectError> {
        let Some(path) = &self.nats_passwords else { return Ok(None) };
        let bad = |problem: String| ConnectError::Passwords { path: path.clone(), problem };
        let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
        let found = text.lines().find_map(|line| line.strip_prefix(user)?.strip_prefix(':'));
        found.map(|p| Some(p.trim().to_owned())).ok_or_else(|| bad(format!("has no line for user `{user}`")))
    }

    /// Connects as `user`, with its own inbox. Reconnects for ever afterwards.
    pub async fn connect(&self, user: &str, inbox: &str) -> Result<Client, ConnectError> {
        let name = user.to_owned();
        let mut options = ConnectOptions::new()
            .name(user)
            .custom_inbox_prefix(inbox)
            .connection_timeout(Duration::from_secs(5))
            .request_timeout(Some(Duration::from_secs(5)))
            .ping_interval(Duration::from_secs(10))
            .reconnect_delay_callback(|attempts| {
                Duration::from_millis(50 * u64::try_from(attempts).unwrap_or(20).min(20))
            })
            .event_callback(move |event| {
                let name = name.clone();
                async move { report(&name, &event) }
            });
        if let Some(password) = self.password(user)? {
            options = options.user_and_password(user.to_owned(), password);
        }
        options.connect(&self.nats).await.map_err(|e| ConnectError::Refused {
            url: self.nats.clone(),
            user: user.to_owned(),
            problem: e.to_string(),
        })
    }
}

// Denied subjects are silent to the caller: this is where they show.
fn report(user: &str, event: &Event) {
    match event {
        Event::Connected => info!(user, "connected to the broker"),
        Event::Disconnected => warn!(user, "lost the broker; reconnecting"),
        Event::ServerError(e) => warn!(user, error = %e, "the broker refused something"),
        other => info!(user, event = %other, "broker connection"),
    }
}

/// Whether the connection is up now.
pub fn connected(client: &Client) -> bool {
    client.connection_state() == State::Connected
}

/// `JetStream` over a connection, with the timeouts that every process uses.
pub fn jetstream(client: Client) -> jetstream::Context {
    let mut context = jetstream::new(client);
    context.set_timeout(Duration::from_secs(5));
    context
}
