//! A connection with a machine's real credential, as whoever stole its keys would make it.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
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

use crate::{market::Market, web::Web};

/// A machine's id and seed, read from its worker's directory.
pub struct Stolen {
    /// The machine whose keys these are.
    pub machine: MachineId,
    key: Arc<KeyPair>,
    refused: Arc<Mutex<Vec<String>>>,
}

impl Stolen {
    /// The keys of a worker, from its directory.
    pub fn from(state: &Path) -> anyhow::Result<Self> {
        let read = |name: &str| fs::read_to_string(state.join(name)).map(|text| text.trim().to_owned());
        let machine = read("machine")?.parse()?;
        Ok(Self { machine, key: Arc::new(KeyPair::from_seed(&read("machine.seed")?)?), refused: Arc::default() })
    }

    /// The keys of a machine that nobody knows.
    pub fn unknown() -> Self {
        Self { machine: MachineId::generate(), key: Arc::new(KeyPair::new_user()), refused: Arc::default() }
    }

    /// A text, signed with its key.
    pub fn sign(&self, text: &str) -> anyhow::Result<String> {
        Ok(BASE64URL_NOPAD.encode(&self.key.sign(text.as_bytes())?))
    }

    /// Renews its credential, as the market answers.
    pub async fn renew(&self, web: &Web) -> anyhow::Result<Value> {
        let machine = self.machine;
        let challenge = web.post(&format!("/machines/{machine}/challenge"), &json!({})).await?;
        let nonce = challenge["nonce"].as_str().context("a nonce")?;
        let signed = json!({ "nonce": nonce, "signature": self.sign(&format!("renew.{machine}.{nonce}"))? });
        web.post(&format!("/machines/{machine}/credential"), &signed).await
    }

    /// Connects with a token for the broker.
    pub async fn connect(&self, market: &Market, jwt: &str) -> anyhow::Result<Client> {
        let (key, jwt) = (Arc::clone(&self.key), jwt.to_owned());
        let options = ConnectOptions::with_auth_callback(move |nonce| {
            let (key, jwt) = (Arc::clone(&key), jwt.clone());
            async move {
                let mut auth = Auth::new();
                auth.signature = Some(key.sign(&nonce).map_err(AuthError::new)?);
                auth.jwt = Some(jwt);
                Ok(auth)
            }
        });
        let refused = Arc::clone(&self.refused);
        let listen = move |event| {
            if let Event::ServerError(error) = event {
                refused.lock().unwrap_or_else(PoisonError::into_inner).push(error.to_string());
            }
            std::future::ready(())
        };
        let options = options.name("thief").max_reconnects(1).event_callback(listen);
        Ok(options.custom_inbox_prefix(machine_inbox(self.machine)).connect(market.nats_url()).await?)
    }

    /// The errors that the broker has told the connections of this machine, such as violations of its permissions. Whoever
    /// publishes or subscribes hears nothing of them otherwise.
    pub fn refused(&self) -> Vec<String> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Renews and connects.
    pub async fn enter(&self, market: &Market) -> anyhow::Result<Client> {
        let renewed = self.renew(&market.web.stranger()).await?;
        self.connect(market, renewed["jwt"].as_str().context("a token")?).await
    }

    /// Gives the market a command over a connection, in this machine's name.
    pub async fn say<T: DeserializeOwned>(
        &self,
        client: &Client,
        verb: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, RpcError> {
        let caller = Caller::new(client.clone());
        caller.call(machine_command(self.machine, verb), Actor::Machine(self.machine), body).await
    }
}
