//! Connections with the real credential of a machine, as a thief of the machine's keys would make them.

use std::{
    fs,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use async_nats::{Auth, AuthError, Client, ConnectOptions, Event};
use data_encoding::BASE64URL_NOPAD;
use gpubnb_events::{
    Actor, MachineId,
    subject::{machine_command, machine_inbox},
};
use gpubnb_runtime::rpc::{Caller, RpcError};
use nkeys::KeyPair;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{api_client::ApiClient, market::Market};

/// The id and the secret key of a machine.
pub struct MachineKeys {
    /// The machine whose keys these are.
    pub machine: MachineId,
    key: Arc<KeyPair>,
    broker_errors: Arc<Mutex<Vec<String>>>,
}

impl MachineKeys {
    /// Reads the keys from the directory of a worker.
    pub fn read_from(directory: &Path) -> anyhow::Result<Self> {
        let read = |name: &str| fs::read_to_string(directory.join(name)).map(|text| text.trim().to_owned());
        let machine = read("machine")?.parse()?;
        Ok(Self { machine, key: Arc::new(KeyPair::from_seed(&read("machine.seed")?)?), broker_errors: Arc::default() })
    }

    /// Makes keys for a machine that is not enrolled.
    pub fn of_unknown_machine() -> Self {
        Self { machine: MachineId::generate(), key: Arc::new(KeyPair::new_user()), broker_errors: Arc::default() }
    }

    /// Signs a text with the machine's key. Returns the signature as base64url without padding.
    pub fn sign(&self, text: &str) -> anyhow::Result<String> {
        Ok(BASE64URL_NOPAD.encode(&self.key.sign(text.as_bytes())?))
    }

    /// Renews the machine's credential. Returns the answer of the market, with the token for the broker in `jwt`.
    pub async fn renew(&self, client: &ApiClient) -> anyhow::Result<Value> {
        let machine = self.machine;
        let challenge = client.post(&format!("/machines/{machine}/challenge"), &json!({})).await?;
        let nonce = challenge["nonce"].as_str().context("an answer without a nonce")?;
        let signed = json!({ "nonce": nonce, "signature": self.sign(&format!("renew.{machine}.{nonce}"))? });
        client.post(&format!("/machines/{machine}/credential"), &signed).await
    }

    /// Connects to the broker with a token from [`MachineKeys::renew`].
    pub async fn connect(&self, market: &Market, jwt: &str) -> anyhow::Result<Client> {
        self.connect_with_pause(market, jwt, Duration::ZERO).await
    }

    /// Like [`MachineKeys::connect`]. A connection that has ended is opened again after this pause.
    pub async fn connect_with_pause(&self, market: &Market, jwt: &str, pause: Duration) -> anyhow::Result<Client> {
        let (key, jwt) = (Arc::clone(&self.key), jwt.to_owned());
        let options = ConnectOptions::with_auth_callback(move |nonce| {
            let (key, jwt) = (Arc::clone(&key), jwt.clone());
            async move {
                let mut auth = Auth::new();
                auth.signature = Some(key.sign(&nonce).map_err(AuthError::new)?);
                auth.jwt = Some(jwt);
                // A name of the client's choice, which must not matter.
                auth.username = Some(gpubnb_events::CommandId::generate().to_string());
                Ok(auth)
            }
        });
        let broker_errors = Arc::clone(&self.broker_errors);
        let listen = move |event| {
            if let Event::ServerError(error) = event {
                broker_errors.lock().unwrap_or_else(PoisonError::into_inner).push(error.to_string());
            }
            std::future::ready(())
        };
        let is_first = AtomicBool::new(true);
        let delay = move |_| if is_first.swap(false, Ordering::Relaxed) { Duration::ZERO } else { pause };
        let options = options.name("thief").max_reconnects(1).event_callback(listen).reconnect_delay_callback(delay);
        Ok(options.custom_inbox_prefix(machine_inbox(self.machine)).connect(market.nats_url()).await?)
    }

    /// The errors that the broker has sent to the connections of this value, such as violations of permissions. A
    /// publish or a subscription that the broker refuses returns no error itself.
    pub fn broker_errors(&self) -> Vec<String> {
        self.broker_errors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Renews the credential and connects to the broker with the new token.
    pub async fn renew_and_connect(&self, market: &Market) -> anyhow::Result<Client> {
        let renewed = self.renew(&market.consumer.stranger()).await?;
        self.connect(market, renewed["jwt"].as_str().context("an answer without a token")?).await
    }

    /// Sends a command in the name of the machine, and returns the answer of the services. `verb` is the last word of
    /// the command's subject, such as `sync`.
    pub async fn send_command<T: DeserializeOwned>(
        &self,
        client: &Client,
        verb: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, RpcError> {
        let caller = Caller::new(client.clone());
        caller.call(machine_command(self.machine, verb), Actor::Machine(self.machine), body).await
    }
}
