//! What accounts want to be told (the bucket NOTIFICATIONS), what is to be sent (the stream DELIVERIES), and what was
//! sent (the stream DELIVERYLOG). The program `gpubnb-notifier` sends.

use async_nats::jetstream::{Context, kv::Store};
use gpubnb_events::{
    AccountId, Millis, Timestamp,
    notification::{Delivery, DeliveryTry, Letter, LetterAbout, MailService, NotificationSettings},
    subject,
};
use gpubnb_log::{message, stream::DELIVERYLOG};
use gpubnb_runtime::rpc::RpcError;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{access::KvCache, error::Problem};

/// The notifications of all accounts.
#[derive(Clone)]
pub(crate) struct Notifications {
    rows: KvCache,
    js: Context,
}

/// E-mail is no longer sent if the notifier has not said so for this time.
const SILENCE: Millis = Millis(5 * 60_000);
/// The life of an e-mail without a link.
pub(crate) const DAY: Millis = Millis(24 * 3_600_000);

fn key(account: AccountId) -> String {
    format!("account.{account}")
}

fn unavailable(e: &(dyn std::error::Error + 'static)) -> Problem {
    RpcError::unavailable("the broker cannot be reached", e).into()
}

impl Notifications {
    pub(crate) fn new(bucket: Store, js: Context) -> Self {
        Self { rows: KvCache::new(bucket), js }
    }

    /// Follows the changes that other replicas make, until shutdown.
    pub(crate) async fn listen(self, shutdown: CancellationToken) {
        self.rows.listen(shutdown).await;
    }

    /// What an account wants to be told.
    pub(crate) async fn settings(&self, account: AccountId) -> Result<NotificationSettings, Problem> {
        Ok(self.rows.get(&key(account)).await?.unwrap_or_default())
    }

    /// Changes what an account wants to be told.
    pub(crate) async fn change<R>(
        &self,
        account: AccountId,
        mut change: impl FnMut(&mut NotificationSettings) -> Result<R, Problem>,
    ) -> Result<R, Problem> {
        self.rows
            .change(&key(account), |row: &mut Option<NotificationSettings>| change(row.get_or_insert_default()))
            .await
    }

    /// Forgets what an account wants to be told, with its webhooks.
    pub(crate) async fn forget(&self, account: AccountId) -> Result<(), Problem> {
        self.rows.remove(&key(account)).await
    }

    /// The service that sends e-mail. `None` if this market sends none.
    pub(crate) async fn mail_service(&self, now: Timestamp) -> Result<Option<MailService>, Problem> {
        let service: Option<MailService> = self.rows.get("mail").await?;
        Ok(service.filter(|service| now.since(service.at) < SILENCE))
    }

    /// Has something sent.
    pub(crate) async fn send(&self, delivery: &Delivery) -> Result<(), Problem> {
        let bytes = serde_json::to_vec(delivery).map_err(|e| Problem::internal(&e))?;
        let sent = self.js.publish(subject::delivery(delivery), bytes.into()).await.map_err(|e| unavailable(&e))?;
        sent.await.map_err(|e| unavailable(&e))?;
        Ok(())
    }

    /// Has an e-mail sent, if this market sends e-mail. The e-mail is of no use after `life`.
    pub(crate) async fn send_letter(
        &self,
        to: String,
        about: LetterAbout,
        now: Timestamp,
        life: Millis,
    ) -> Result<(), Problem> {
        if self.mail_service(now).await?.is_none() {
            return Ok(());
        }
        self.send(&Delivery::Letter(Letter { to, expires: now.plus(life), about })).await
    }

    /// Tells the owner of an address that the password was changed, in the background: a failure does not undo the
    /// change.
    pub(crate) fn tell_of_new_password(&self, to: String, now: Timestamp) {
        let all = self.clone();
        tokio::spawn(async move {
            if let Err(problem) = all.send_letter(to, LetterAbout::PasswordChanged, now, DAY).await {
                warn!(problem = problem.detail, "an e-mail is not sent");
            }
        });
    }

    /// The newest tries of deliveries to an account, newest first.
    pub(crate) async fn tries(&self, account: AccountId) -> Result<Vec<DeliveryTry>, Problem> {
        let stream = self.js.get_stream_no_info(DELIVERYLOG).await.map_err(|e| unavailable(&e))?;
        let (subject, mut from, mut found) = (subject::delivery_tries(account), 1, Vec::new());
        let read = |e: gpubnb_log::ReadError| unavailable(&e);
        while let Some(stored) = message::next(&self.js.client(), &stream, &subject, from).await.map_err(read)? {
            from = stored.sequence + 1;
            found.extend(serde_json::from_slice(&stored.payload).ok());
        }
        found.reverse();
        Ok(found)
    }
}
