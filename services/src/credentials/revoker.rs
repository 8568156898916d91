//! Updates the broker's list of revoked machines from the enrollments: at once when a machine is revoked, and every
//! minute, in case a revocation was missed. A machine that left the market is revoked too. Over the same connection
//! to the system account, `connections` bounds the connections of each machine.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use async_nats::jetstream;
use gpubnb_domain::machine::Availability;
use gpubnb_events::{
    Clock, MachineId, Millis, Timestamp,
    subject::{SERVICES_INBOX, UPDATE_ACCOUNT, lookup_account},
};
use gpubnb_log::stream;
use gpubnb_runtime::{
    nats::{NatsArgs, is_connected},
    rpc::RpcError,
};
use nkeys::KeyPair;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{bootstrap::SYSTEM_USER, connections, files, jwt};
use crate::{enrollment::Enrollments, replica::Replica};

const SWEEP: Duration = Duration::from_secs(60);

/// Revokes machines on the broker.
#[derive(Clone)]
pub(crate) struct Revoker {
    pub(crate) enrollments: Enrollments,
    js: jetstream::Context,
    replica: Arc<Replica>,
    clock: Arc<dyn Clock>,
    wake: Arc<Notify>,
    /// Lifetime of a credential. A revoked key stays on the list for this time. Then the last credential of the key has
    /// expired.
    lifetime: Millis,
    system: async_nats::Client,
    /// The operator's signing key.
    signing_key: Arc<KeyPair>,
    /// The JWT of the machines' account, as bootstrap made it.
    account: Arc<str>,
}

impl Revoker {
    /// Connects to the broker's system account.
    pub(crate) async fn open(
        nats: &NatsArgs,
        enrollments: Enrollments,
        js: jetstream::Context,
        replica: Arc<Replica>,
        clock: Arc<dyn Clock>,
        lifetime: Millis,
    ) -> anyhow::Result<Self> {
        let dir: &Path = &nats.nats_creds;
        Ok(Self {
            enrollments,
            js,
            replica,
            clock,
            wake: Arc::default(),
            lifetime,
            system: nats.connect(SYSTEM_USER, SERVICES_INBOX).await?,
            signing_key: Arc::new(files::read_key(&dir.join(files::REVOKER))?),
            account: files::read(&dir.join(files::MACHINES))?.into(),
        })
    }

    /// Revokes a machine. Its connection ends as soon as the broker has the new list. With `ban`, no code can enroll
    /// the machine again.
    pub(crate) async fn revoke(&self, machine: MachineId, ban: bool) -> Result<(), RpcError> {
        self.enrollments.revoke(machine, ban, self.clock.now()).await?;
        self.reconcile_now();
        Ok(())
    }

    /// Wakes [`Self::run`], so that the broker's list is updated now and not at the next sweep.
    pub(crate) fn reconcile_now(&self) {
        self.wake.notify_one();
    }

    /// Runs until shutdown.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        match self.account_key() {
            Ok(account) => drop(tokio::spawn(connections::bound(self.system.clone(), account, shutdown.clone()))),
            Err(e) => warn!(error = format!("{e:#}"), "the connections of machines are not bounded"),
        }
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            let swept = tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.wake.notified() => false,
                _ = sweep.tick() => true,
            };
            if !is_connected(&self.system) {
                continue;
            }
            if let Err(e) = self.reconcile().await {
                warn!(
                    error = format!("{e:#}"),
                    "the list of revoked machines could not be updated; trying again later"
                );
            }
            // Remove expired enrollment codes after the list is updated, so that this work never delays a revocation.
            if swept && let Err(e) = self.enrollments.sweep(self.clock.now()).await {
                warn!(error = %e, "expired codes could not be removed; trying again later");
            }
        }
    }

    /// Compares the revoked machines with the broker's list, and gives the broker a new list if they differ.
    async fn reconcile(&self) -> anyhow::Result<()> {
        let now = self.clock.now();
        let mut revoked = Vec::new();
        for (machine, enrollment) in self.enrollments.all().await? {
            let has_left = self.replica.read(|w| {
                let machine = w.machine(machine).filter(|m| m.availability == Availability::Delisted);
                machine.is_some_and(|m| m.last > enrollment.enrolled_after)
            });
            // A failure here delays the revocation of no other machine. The next sweep tries again.
            if has_left
                && enrollment.revoked_at.is_none()
                && let Err(e) = self.retire(machine, now).await
            {
                warn!(%machine, error = format!("{e:#}"), "a machine that has left could not be retired");
            }
            let mut void = enrollment.revoked_keys();
            void.extend((has_left && enrollment.revoked_at.is_none()).then_some((enrollment.public_key, now)));
            // Leave out older revocations: their credentials have expired.
            revoked.extend(void.into_iter().filter(|(_, at)| now.since(*at) <= self.lifetime));
        }
        // For a key that was revoked twice, the later time counts.
        revoked.sort();
        revoked.reverse();
        revoked.dedup_by(|later, earlier| later.0 == earlier.0);
        let known = self.request(&lookup_account(&self.account_key()?), Vec::new()).await?;
        let known = jwt::revocations(std::str::from_utf8(&known).context("the JWT of the machines' account")?)?;
        if known != jwt::revocation_list(&revoked) {
            self.update_account(&revoked, now).await?;
            info!(revoked = revoked.len(), "the broker knows which machines are revoked");
        }
        Ok(())
    }

    /// Removes the queue of a machine that has left the market, and revokes its enrollment.
    async fn retire(&self, machine: MachineId, now: Timestamp) -> anyhow::Result<()> {
        stream::retire_machine(&self.js, machine).await?;
        self.enrollments.revoke(machine, false, now).await?;
        Ok(())
    }

    fn account_key(&self) -> anyhow::Result<String> {
        let claims = jwt::claims(&self.account)?;
        Ok(claims["sub"].as_str().context("the account of machines has no subject")?.to_owned())
    }

    async fn request(&self, subject: &str, body: Vec<u8>) -> anyhow::Result<bytes::Bytes> {
        let answer = self.system.request(subject.to_owned(), body.into()).await;
        Ok(answer.context("the broker's system account does not answer")?.payload)
    }

    async fn update_account(&self, revoked: &[(String, Timestamp)], now: Timestamp) -> anyhow::Result<()> {
        let account = jwt::with_revocations(&self.account, revoked, now, &self.signing_key)?;
        let answer =
            self.system.request(UPDATE_ACCOUNT, account.into()).await.context("the broker's system account")?;
        let answer: serde_json::Value = serde_json::from_slice(&answer.payload)?;
        if answer["data"]["code"] != 200 {
            bail!("the broker did not take the account: {answer}");
        }
        Ok(())
    }
}
