//! The machine's credential for the broker. It is valid for a short time, and is renewed over HTTP before it expires,
//! or after an outage that was longer than its life.

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
    market::{EdgeRefusal, Enrolled, Market},
};

/// Pause after a renewal that failed.
const RETRY: Duration = Duration::from_secs(5);
/// A credential is renewed when a third of its life is left.
const RENEW_AT: u32 = 3;

/// The present credential.
pub(crate) struct Credential {
    identity: Arc<Identity>,
    market: Market,
    present: watch::Sender<Enrolled>,
}

impl Credential {
    /// Gets the first credential. Waits while the market is away, and fails where it refuses.
    pub(crate) async fn obtain(identity: Arc<Identity>, market: Market) -> anyhow::Result<Self> {
        loop {
            match market.renew(&identity.keys, identity.machine).await {
                Ok(enrolled) => return Ok(Self { identity, market, present: watch::Sender::new(enrolled) }),
                Err(e) if e.is::<EdgeRefusal>() => return Err(e.context("the market does not know this machine")),
                Err(e) => warn!(error = format!("{e:#}"), "waiting for the market"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Connects to the broker. Each reconnection uses the credential that is present then. `connects` counts the
    /// connections.
    pub(crate) async fn connect(&self, connects: watch::Sender<u64>) -> anyhow::Result<Client> {
        let (identity, present) = (Arc::clone(&self.identity), self.present.subscribe());
        let options = ConnectOptions::with_auth_callback(move |nonce| {
            let (identity, jwt) = (Arc::clone(&identity), present.borrow().credential.jwt.clone());
            async move {
                let mut auth = Auth::new();
                auth.signature = Some(identity.keys.sign_bytes(&nonce).map_err(AuthError::new)?);
                auth.jwt = Some(jwt);
                Ok(auth)
            }
        });
        let enrolled = self.present.borrow().clone();
        let authority = self.authority(enrolled.broker_authority.as_deref())?;
        let inbox = machine_inbox(self.identity.machine);
        Ok(nats::connect_and_tell(options, &enrolled.broker, authority, "machine", &inbox, connects).await?)
    }

    fn authority(&self, pem: Option<&str>) -> anyhow::Result<Option<PathBuf>> {
        let Some(pem) = pem else { return Ok(None) };
        let path = self.identity.state.join("broker-authority.pem");
        std::fs::write(&path, pem).with_context(|| format!("writing {}", path.display()))?;
        Ok(Some(path))
    }

    /// The time until a credential is to be renewed.
    fn renew_in(expires: Timestamp) -> Duration {
        let left = Duration::from_millis(expires.since(SystemClock.now()).0);
        left.saturating_sub(left / RENEW_AT)
    }

    /// Renews the credential until shutdown, for which it returns `None`. Returns the market's reason where the market
    /// has revoked the credential.
    pub(crate) async fn keep_fresh(&self, client: &Client, shutdown: &CancellationToken) -> Option<anyhow::Error> {
        let mut pause = Self::renew_in(self.present.borrow().credential.expires);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = tokio::time::sleep(pause) => {}
            }
            match self.market.renew(&self.identity.keys, self.identity.machine).await {
                Ok(enrolled) => {
                    let expires = enrolled.credential.expires;
                    debug!(%expires, "the credential is renewed");
                    pause = Self::renew_in(expires).max(Duration::from_millis(500));
                    self.present.send_replace(enrolled);
                    // The broker uses the credential of the connection's beginning. A new one needs a new connection.
                    if let Err(e) = client.force_reconnect().await {
                        warn!(error = %e, "the connection to the broker was not renewed");
                    }
                }
                Err(e) if e.is::<EdgeRefusal>() => return Some(e),
                Err(e) => {
                    info!(error = format!("{e:#}"), "the credential is renewed later");
                    pause = RETRY;
                }
            }
        }
    }
}
