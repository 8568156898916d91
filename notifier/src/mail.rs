//! Sends e-mail through an SMTP server. What waits for one account is sent as one e-mail, and each account gets at most
//! one in [`PAUSE`]; a letter that a person asked for is sent at once.

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use async_nats::jetstream::{
    self, Context,
    consumer::{PullConsumer, pull},
    kv,
};
use futures_util::StreamExt;
use gpubnb_events::{
    AccountId, Chain, Clock, Millis, Timestamp,
    notification::{Delivery, DeliveryTry, Letter, Notification},
    subject,
};
use gpubnb_log::stream::DELIVERIES;
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor, transport::smtp};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use url::Url;

use crate::{
    letter::Letters,
    notice::read_settings,
    tries::{Failure, Tries, finish},
};

/// An account gets at most one e-mail about notifications in this time.
const PAUSE: Millis = Millis(5 * 60_000);
/// Longest time that the SMTP server may take for one command.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Most messages that are taken at once.
const BATCH: usize = 100;
/// Pause after a failure of the broker.
const RETRY: Duration = Duration::from_secs(1);

/// A notification for an account, and its message of DELIVERIES.
type Waiting = (Notification, jetstream::Message);

/// Sends what is in DELIVERIES for e-mail, until shutdown.
pub(crate) async fn deliver(js: Context, mut mailer: Mailer, tries: Tries, shutdown: CancellationToken) {
    while !shutdown.is_cancelled() {
        let sending = async {
            let config = pull::Config {
                durable_name: Some("mail".to_owned()),
                filter_subject: subject::MAIL_DELIVERIES.to_owned(),
                ack_wait: Duration::from_secs(600),
                max_ack_pending: 10_000,
                ..Default::default()
            };
            let consumer = js.create_consumer_on_stream(config, DELIVERIES).await?;
            loop {
                mailer.send_batch(&consumer, &tries).await?;
            }
        };
        let failed: Option<anyhow::Result<()>> = shutdown.run_until_cancelled(sending).await;
        if let Some(Err(e)) = failed {
            warn!(error = format!("{e:#}"), "e-mail is not sent now; trying again");
        }
        shutdown.run_until_cancelled(tokio::time::sleep(RETRY)).await;
    }
}

/// Sends e-mail.
pub(crate) struct Mailer {
    server: AsyncSmtpTransport<Tokio1Executor>,
    letters: Letters,
    settings: kv::Store,
    clock: Arc<dyn Clock>,
    /// When each account got its last e-mail about notifications, if that was less than [`PAUSE`] ago.
    last: HashMap<AccountId, Timestamp>,
}

impl Mailer {
    /// Refuses to send passwords and links over a line that others can read.
    pub(crate) fn new(
        smtp: &Url,
        letters: Letters,
        settings: kv::Store,
        clock: Arc<dyn Clock>,
    ) -> anyhow::Result<Self> {
        let is_own = matches!(smtp.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"));
        let has_tls = smtp.scheme() == "smtps" || smtp.query_pairs().any(|(k, v)| k == "tls" && v == "required");
        ensure!(has_tls || is_own, "--smtp to another machine is smtps://…, or smtp://…?tls=required");
        let server = AsyncSmtpTransport::<Tokio1Executor>::from_url(smtp.as_str()).context("--smtp cannot be read")?;
        let server = server.timeout(Some(TIMEOUT)).build();
        Ok(Self { server, letters, settings, clock, last: HashMap::new() })
    }

    /// Takes what waits, and sends it.
    async fn send_batch(&mut self, consumer: &PullConsumer, tries: &Tries) -> anyhow::Result<()> {
        let mut batch = consumer.fetch().max_messages(BATCH).expires(RETRY).messages().await?;
        let mut accounts: HashMap<AccountId, Vec<Waiting>> = HashMap::new();
        while let Some(message) = batch.next().await {
            let message = message.map_err(anyhow::Error::from_boxed)?;
            match serde_json::from_slice(&message.payload) {
                Ok(Delivery::Letter(letter)) => self.send_letter(&letter, &message).await,
                Ok(Delivery::Mail { account, notification }) => {
                    accounts.entry(account).or_default().push((notification, message));
                }
                Ok(Delivery::Webhook { .. }) | Err(_) => {
                    warn!("a delivery cannot be read; it is dropped");
                    finish(&message, None).await;
                }
            }
        }
        let now = self.clock.now();
        self.last.retain(|_, last| now.since(*last) < PAUSE);
        for (account, waiting) in accounts {
            self.send_digest(account, waiting, tries).await?;
        }
        Ok(())
    }

    async fn send_letter(&self, letter: &Letter, message: &jetstream::Message) {
        let written = self.letters.asked_for(&letter.to, &letter.about);
        let failure = self.send(written).await.err();
        if let Some(failure) = &failure {
            warn!(why = failure.text(), "an e-mail was not sent");
        }
        let pause = failure.and_then(|failure| failure.pause(published(message, self.clock.now()), self.clock.now()));
        finish(message, pause).await;
    }

    async fn send_digest(&mut self, account: AccountId, waiting: Vec<Waiting>, tries: &Tries) -> anyhow::Result<()> {
        let now = self.clock.now();
        if let Some(last) = self.last.get(&account) {
            let rest = Millis(PAUSE.0.saturating_sub(now.since(*last).0));
            for (_, message) in waiting {
                finish(&message, Some(rest)).await;
            }
            return Ok(());
        }
        let settings = read_settings(&self.settings, account).await?;
        let (wanted, unwanted): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|(notification, _)| settings.mails(notification.kind));
        for (_, message) in unwanted {
            finish(&message, None).await;
        }
        let Some(address) = settings.address.filter(|_| !wanted.is_empty()) else { return Ok(()) };
        let (notifications, messages): (Vec<_>, Vec<_>) = wanted.into_iter().unzip();
        let failure = self.send(self.letters.digest(&address, &notifications)).await.err();
        if failure.is_none() {
            self.last.insert(account, now);
        }
        for (notification, message) in notifications.iter().zip(messages) {
            let pause = failure.as_ref().and_then(|failure| failure.pause(published(&message, now), now));
            let made = DeliveryTry {
                id: format!("{}-{}", notification.seq.unwrap_or_default(), notification.kind),
                kind: notification.kind,
                webhook: None,
                at: now,
                failure: failure.as_ref().map(|failure| failure.text().to_owned()),
                next: pause.map(|pause| now.plus(pause)),
            };
            tries.record(account, &made).await;
            finish(&message, pause).await;
        }
        Ok(())
    }

    async fn send(&self, written: anyhow::Result<Message>) -> Result<(), Failure> {
        let message = written.map_err(|e| Failure::Final(format!("{e:#}")))?;
        let explain = |e: &smtp::Error| match e.status() {
            Some(code) => format!("the mail server answered {code}"),
            None => "the mail server does not answer".to_owned(),
        };
        match self.server.send(message).await {
            Ok(_) => Ok(()),
            Err(e) => {
                warn!(error = %Chain(&e), "the mail server did not take an e-mail");
                let text = explain(&e);
                Err(if e.is_permanent() { Failure::Final(text) } else { Failure::Passing(text) })
            }
        }
    }
}

/// When a message was put into DELIVERIES.
fn published(message: &jetstream::Message, now: Timestamp) -> Timestamp {
    message.info().map_or(now, |info| Timestamp::from_nanos(info.published.unix_timestamp_nanos()))
}
