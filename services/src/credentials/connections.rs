//! Bounds the connections that one machine has to the broker. NATS bounds the connections of an account only, and all
//! machines share one account. So the services follow the broker's notices of connections, and end the oldest
//! connection of a machine that has too many.

use std::collections::{HashMap, VecDeque};

use anyhow::Context as _;
use async_nats::Client;
use futures_util::StreamExt as _;
use gpubnb_events::subject;
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::jwt;

/// Most connections of one machine. A worker has one, and a second one for a moment when its credential is renewed.
const MAX_CONNECTIONS: usize = 4;
/// Most machines whose connections are counted. More cannot be counted, and the count begins anew.
const MAX_MACHINES: usize = 100_000;

/// A notice of the broker that a connection of the machines' account has begun or ended.
#[derive(Deserialize)]
struct Notice {
    server: Server,
    client: Peer,
}

#[derive(Deserialize)]
struct Server {
    id: String,
}

/// The client of a connection. The notice also has a name of the user, which the client can choose.
#[derive(Deserialize)]
struct Peer {
    /// The number of the connection at its broker.
    id: u64,
    /// The credential, which the broker has checked.
    jwt: String,
}

impl Notice {
    /// The public key of the machine, and its connection: the broker's id and the number there.
    fn connection(self) -> anyhow::Result<(String, (String, u64))> {
        let claims = jwt::claims(&self.client.jwt)?;
        let key = claims["sub"].as_str().context("a credential without a subject")?.to_owned();
        Ok((key, (self.server.id, self.client.id)))
    }
}

/// The connections of each machine, oldest first.
#[derive(Default)]
struct OpenConnections(HashMap<String, VecDeque<(String, u64)>>);

impl OpenConnections {
    /// Counts a new connection. Returns the oldest connection of the machine if there are too many now.
    fn begin(&mut self, machine_key: String, connection: (String, u64)) -> Option<(String, u64)> {
        if self.0.len() >= MAX_MACHINES {
            self.0.clear();
        }
        let connections = self.0.entry(machine_key).or_default();
        connections.push_back(connection);
        if connections.len() > MAX_CONNECTIONS { connections.pop_front() } else { None }
    }

    fn end(&mut self, machine_key: &str, connection: &(String, u64)) {
        let Some(connections) = self.0.get_mut(machine_key) else { return };
        connections.retain(|open| open != connection);
        if connections.is_empty() {
            self.0.remove(machine_key);
        }
    }
}

/// Bounds the connections of machines until shutdown. `system` is a connection to the broker's system account, and
/// `account` the public key of the machines' account.
pub(super) async fn bound(system: Client, account: String, shutdown: CancellationToken) {
    let (began, ended) = (subject::connection_began(&account), subject::connection_ended(&account));
    let subscribed =
        async { Ok::<_, async_nats::SubscribeError>((system.subscribe(began).await?, system.subscribe(ended).await?)) };
    let (mut began, mut ended) = match subscribed.await {
        Ok(subscriptions) => subscriptions,
        Err(e) => return warn!(error = %e, "the connections of machines are not bounded"),
    };
    let mut open = OpenConnections::default();
    loop {
        let (message, is_new) = tokio::select! {
            () = shutdown.cancelled() => return,
            Some(message) = began.next() => (message, true),
            Some(message) = ended.next() => (message, false),
            else => return,
        };
        let notice = serde_json::from_slice(&message.payload).map_err(anyhow::Error::from);
        let (machine_key, connection) = match notice.and_then(Notice::connection) {
            Ok(read) => read,
            Err(e) => {
                debug!(error = format!("{e:#}"), "a notice of a connection cannot be read");
                continue;
            }
        };
        if !is_new {
            open.end(&machine_key, &connection);
            continue;
        }
        let Some((server, id)) = open.begin(machine_key.clone(), connection) else { continue };
        info!(machine_key, "a machine has too many connections: its oldest one is ended");
        // The broker obeys only a request, which names where to send the answer.
        if let Err(e) = system.request(subject::end_connection(&server), json!({ "cid": id }).to_string().into()).await
        {
            warn!(error = %e, "a connection could not be ended");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(id: u64) -> (String, u64) {
        ("N1".to_owned(), id)
    }

    #[test]
    fn the_oldest_connection_beyond_the_bound_is_ended_and_other_machines_are_not_counted() {
        let mut open = OpenConnections::default();
        for id in 1..=4 {
            assert_eq!(open.begin("a".to_owned(), at(id)), None);
            assert_eq!(open.begin("b".to_owned(), at(100 + id)), None);
        }
        open.end("b", &at(102));
        assert_eq!(open.begin("b".to_owned(), at(105)), None, "one has ended");
        assert_eq!(open.begin("a".to_owned(), at(5)), Some(at(1)));
        assert_eq!(open.begin("a".to_owned(), at(6)), Some(at(2)));
        for id in 1..=6 {
            open.end("a", &at(id));
        }
        assert!(!open.0.contains_key("a"));
    }
}
