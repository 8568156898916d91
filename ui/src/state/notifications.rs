//! What accounts want to be told (the bucket NOTIFICATIONS), what is to be sent (the stream DELIVERIES), and what was
//! sent (the stream DELIVERYLOG). The program `gpubnb-notifier` sends.

use async_nats::jetstream::{Context, kv::Store};
use gpubnb_events::{
    AccountId,
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

    /// The service that sends e-mail. `None` if this market sends none.
    pub(crate) async fn mail_service(&self) -> Result<Option<MailService>, Problem> {
        self.rows.get("mail").await
    }

    /// Has something sent.
    pub(crate) async fn send(&self, delivery: &Delivery) -> Result<(), Problem> {
        let bytes = serde_json::to_vec(delivery).map_err(|e| Problem::internal(&e))?;
        let sent = self.js.publish(subject::delivery(delivery), bytes.into()).await.map_err(|e| unavailable(&e))?;
        sent.await.map_err(|e| unavailable(&e))?;
        Ok(())
    }

    /// Has an e-mail sent, if this market sends e-mail.
    pub(crate) async fn send_letter(&self, to: String, about: LetterAbout) -> Result<(), Problem> {
        if self.mail_service().await?.is_none() {
            return Ok(());
        }
        self.send(&Delivery::Letter(Letter { to, about })).await
    }

    /// Like [`Self::send_letter`], in the background: the answer to a request must not tell from its duration whether
    /// an e-mail is sent, and a failure must not undo what the e-mail is about.
    pub(crate) fn send_letter_later(&self, to: String, about: LetterAbout) {
        let all = self.clone();
        tokio::spawn(async move {
            if let Err(problem) = all.send_letter(to, about).await {
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
