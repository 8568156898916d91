//! The machine's credential for the broker. The credential expires after a short time. The worker renews it over HTTP
//! before it expires. If the market was away for longer, the worker renews the expired credential.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use async_nats::{Auth, AuthError, Client, ConnectOptions};
use gpubnb_events::{Clock as _, SystemClock, Timestamp, subject::machine_inbox};
use gpubnb_runtime::nats;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    identity::Identity,
    market::{BrokerAccess, EdgeRefusal, MarketClient},
};

/// Pause after a failed renewal.
const RETRY: Duration = Duration::from_secs(5);
/// A credential is renewed when `1 / RENEW_DIVISOR` of its time is left: a third.
const RENEW_DIVISOR: u32 = 3;

/// The current credential, with everything that is needed to renew it.
pub(crate) struct Credential {
    identity: Arc<Identity>,
    market: MarketClient,
    current: watch::Sender<BrokerAccess>,
}

impl Credential {
    /// Gets the first credential. Waits while the market is away. Fails if the market refuses.
    pub(crate) async fn obtain(identity: Arc<Identity>, market: MarketClient) -> anyhow::Result<Self> {
        loop {
            match market.renew(&identity.keys, identity.machine).await {
                Ok(access) => return Ok(Self { identity, market, current: watch::Sender::new(access) }),
                Err(e) if e.is::<EdgeRefusal>() => return Err(e.context("the market does not know this machine")),
                Err(e) => warn!(error = format!("{e:#}"), "waiting for the market"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Connects to the broker. Each reconnection uses the credential that is current at that moment. `connects` counts
    /// the connections.
    pub(crate) async fn connect(&self, connects: watch::Sender<u64>) -> anyhow::Result<Client> {
        let (identity, current) = (Arc::clone(&self.identity), self.current.subscribe());
        let options = ConnectOptions::with_auth_callback(move |nonce| {
            let (identity, jwt) = (Arc::clone(&identity), current.borrow().credential.jwt.clone());
            async move {
                let mut auth = Auth::new();
                auth.signature = Some(identity.keys.sign_bytes(&nonce).map_err(AuthError::new)?);
                auth.jwt = Some(jwt);
                Ok(auth)
            }
        });
        let access = self.current.borrow().clone();
        let authority = self.write_authority(access.broker_authority.as_deref())?;
        let inbox = machine_inbox(self.identity.machine);
        Ok(nats::connect_with_counter(options, &access.broker, authority, "machine", &inbox, connects).await?)
    }

    /// Writes the certificate (PEM) of the broker's authority to a file. Returns the file's path.
    fn write_authority(&self, pem: Option<&str>) -> anyhow::Result<Option<PathBuf>> {
        let Some(pem) = pem else { return Ok(None) };
        let path = self.identity.state.join("broker-authority.pem");
        std::fs::write(&path, pem).with_context(|| format!("writing {}", path.display()))?;
        Ok(Some(path))
    }

    /// The time until a credential should be renewed.
    fn time_until_renewal(expires: Timestamp) -> Duration {
        let left = Duration::from_millis(expires.since(SystemClock.now()).0);
        left.saturating_sub(left / RENEW_DIVISOR)
    }

    /// Renews the credential until shutdown, and then returns `None`. Returns the market's reason if the market has
    /// revoked the credential.
    pub(crate) async fn renew_until_shutdown(
        &self,
        client: &Client,
        shutdown: &CancellationToken,
    ) -> Option<anyhow::Error> {
        let mut pause = Self::time_until_renewal(self.current.borrow().credential.expires);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = tokio::time::sleep(pause) => {}
            }
            match self.market.renew(&self.identity.keys, self.identity.machine).await {
                Ok(access) => {
                    let expires = access.credential.expires;
                    debug!(%expires, "the credential was renewed");
                    pause = Self::time_until_renewal(expires).max(Duration::from_millis(500));
                    self.current.send_replace(access);
                    // The broker checks the credential only when a connection begins. A new credential needs a new
                    // connection.
                    if let Err(e) = client.force_reconnect().await {
                        warn!(error = %e, "the reconnection to the broker with the new credential failed");
                    }
                }
                Err(e) if e.is::<EdgeRefusal>() => return Some(e),
                Err(e) => {
                    info!(error = format!("{e:#}"), "the renewal of the credential failed: trying again");
                    pause = RETRY;
                }
            }
        }
    }
}
