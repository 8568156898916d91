//! Sends e-mail through an SMTP server. A letter that a person asked for is sent at once. Notifications that wait for
//! one account are sent as one e-mail, and each account gets at most one in [`PAUSE`].

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use async_nats::jetstream::{
    self, Context,
    consumer::{PullConsumer, pull},
    kv,
};
use futures_util::StreamExt;
use gpubnb_events::{
    AccountId, Chain, Clock, Millis, Timestamp,
    notification::{Delivery, DeliveryTry, MailService, Notification},
    subject,
};
use gpubnb_log::stream::DELIVERIES;
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor, transport::smtp};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use url::Url;

use crate::{
    letter::Letters,
    notice::read_settings,
    tries::{Channel, Failure, LATER, Tries, count, finish, published},
};

/// An account gets at most one e-mail about notifications in this time.
const PAUSE: Millis = Millis(5 * 60_000);
/// Longest time that the SMTP server may take to be connected to, and for a whole e-mail.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
const TIMEOUT: Duration = Duration::from_secs(120);
/// Most notifications that are taken at once, and most e-mails that are sent at once.
const BATCH: usize = 100;
const AT_ONCE: usize = 8;
/// A message that was taken is delivered again after this time, which is longer than a batch takes.
const ACK_WAIT: Duration = Duration::from_secs(30 * 60);
/// Pause after a failure of the broker.
const RETRY: Duration = Duration::from_secs(1);
/// The notifier says this often that it sends e-mail.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// A notification for an account, and its message of DELIVERIES.
type Waiting = (Notification, jetstream::Message);

/// Sends what is in DELIVERIES for e-mail, until shutdown.
pub(crate) async fn deliver(js: Context, mailer: Mailer, tries: Tries, shutdown: CancellationToken) {
    let letters = async {
        while !shutdown.is_cancelled() {
            let sent = send_letters(&js, &mailer, &shutdown).await;
            pause_after(sent, &shutdown).await;
        }
    };
    let digests = async {
        while !shutdown.is_cancelled() {
            let sent = send_digests(&js, &mailer, &tries, &shutdown).await;
            pause_after(sent, &shutdown).await;
        }
    };
    tokio::join!(mailer.keep_saying_so(&shutdown), letters, digests);
}

/// Sending ends at a failure, and at shutdown, but never within an e-mail.
async fn pause_after(sent: anyhow::Result<()>, shutdown: &CancellationToken) {
    if let Err(e) = sent {
        warn!(error = format!("{e:#}"), "e-mail is not sent now; trying again");
    }
    shutdown.run_until_cancelled(tokio::time::sleep(RETRY)).await;
}

async fn consumer(js: &Context, name: &str, filter: &str) -> anyhow::Result<PullConsumer> {
    let config = pull::Config {
        durable_name: Some(name.to_owned()),
        filter_subject: filter.to_owned(),
        ack_wait: ACK_WAIT,
        // A delivery that waits for its next try counts as pending: with a bound, a few people could stop all others.
        max_ack_pending: -1,
        ..Default::default()
    };
    Ok(js.create_consumer_on_stream(config, DELIVERIES).await?)
}

/// Takes the messages that wait, at most [`BATCH`].
async fn take(consumer: &PullConsumer) -> anyhow::Result<Vec<jetstream::Message>> {
    let mut taken = Vec::new();
    let mut batch = consumer.batch().max_messages(BATCH).expires(RETRY).messages().await?;
    while let Some(message) = batch.next().await {
        match message {
            Ok(message) => taken.push(message),
            Err(e) => {
                // The messages that were taken before are sent.
                warn!(error = %e, "a delivery was not received");
                break;
            }
        }
    }
    Ok(taken)
}

async fn send_letters(js: &Context, mailer: &Mailer, shutdown: &CancellationToken) -> anyhow::Result<()> {
    let consumer = consumer(js, "letter", subject::LETTERS).await?;
    while !shutdown.is_cancelled() {
        let letters = futures_util::stream::iter(take(&consumer).await?);
        letters.for_each_concurrent(AT_ONCE, |message| mailer.send_letter(message, shutdown)).await;
    }
    Ok(())
}

async fn send_digests(
    js: &Context,
    mailer: &Mailer,
    tries: &Tries,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let consumer = consumer(js, "mail", subject::MAIL_DELIVERIES).await?;
    while !shutdown.is_cancelled() {
        let mut accounts: HashMap<AccountId, Vec<Waiting>> = HashMap::new();
        for message in take(&consumer).await? {
            match serde_json::from_slice(&message.payload) {
                Ok(Delivery::Mail { account, notification }) => {
                    accounts.entry(account).or_default().push((notification, message));
                }
                _ => drop_unreadable(&message).await,
            }
        }
        let digests = futures_util::stream::iter(accounts);
        let send = |(account, waiting)| mailer.send_digest(account, waiting, tries, shutdown);
        digests.for_each_concurrent(AT_ONCE, send).await;
    }
    Ok(())
}

async fn drop_unreadable(message: &jetstream::Message) {
    warn!(subject = %message.subject, "a delivery cannot be read; it is dropped");
    finish(message, None).await;
}

/// Sends e-mail.
pub(crate) struct Mailer {
    server: AsyncSmtpTransport<Tokio1Executor>,
    letters: Letters,
    from: String,
    bucket: kv::Store,
    clock: Arc<dyn Clock>,
    /// When each account got its last e-mail about notifications, if that was less than [`PAUSE`] ago.
    last: Mutex<HashMap<AccountId, Timestamp>>,
}

impl Mailer {
    /// Refuses to send passwords and links over a line that others can read.
    pub(crate) fn new(
        smtp: &Url,
        pages: Url,
        from: String,
        bucket: kv::Store,
        clock: Arc<dyn Clock>,
    ) -> anyhow::Result<Self> {
        let is_own = matches!(smtp.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"));
        let has_tls = smtp.scheme() == "smtps" || smtp.query_pairs().any(|(k, v)| k == "tls" && v == "required");
        ensure!(has_tls || is_own, "--smtp to another machine is smtps://…, or smtp://…?tls=required");
        let server = AsyncSmtpTransport::<Tokio1Executor>::from_url(smtp.as_str()).context("--smtp cannot be read")?;
        let server = server.timeout(Some(CONNECT_TIMEOUT)).build();
        let letters = Letters::new(pages, &from)?;
        Ok(Self { server, letters, from, bucket, clock, last: Mutex::default() })
    }

    /// Tells the web server that e-mail is sent.
    pub(crate) async fn say_so(&self) -> anyhow::Result<()> {
        let service = MailService { from: self.from.clone(), at: self.clock.now() };
        self.bucket.put("mail", serde_json::to_vec(&service)?.into()).await?;
        Ok(())
    }

    /// Tells it again and again: nobody says that e-mail is no longer sent.
    async fn keep_saying_so(&self, shutdown: &CancellationToken) {
        while shutdown.run_until_cancelled(tokio::time::sleep(SAY_EVERY)).await.is_some() {
            if let Err(e) = self.say_so().await {
                warn!(error = format!("{e:#}"), "the web server does not know that e-mail is sent");
            }
        }
    }

    async fn send_letter(&self, message: jetstream::Message, shutdown: &CancellationToken) {
        if shutdown.is_cancelled() {
            return finish(&message, Some(Millis(0))).await;
        }
        let Ok(Delivery::Letter(letter)) = serde_json::from_slice(&message.payload) else {
            return drop_unreadable(&message).await;
        };
        let now = self.clock.now();
        if now > letter.expires {
            return finish(&message, None).await;
        }
        let written = self.letters.asked_for(&letter.to, &letter.about);
        let failure = self.send(written).await.err();
        let pause = failure.as_ref().and_then(|failure| failure.pause(published(&message, now), now));
        count(Channel::Letter, failure.as_ref(), pause);
        finish(&message, pause).await;
    }

    async fn send_digest(
        &self,
        account: AccountId,
        waiting: Vec<Waiting>,
        tries: &Tries,
        shutdown: &CancellationToken,
    ) {
        let settings = read_settings(&self.bucket, account).await;
        let now = self.clock.now();
        let pause = if shutdown.is_cancelled() { Some(Millis(0)) } else { self.rest(account, now) };
        let (Ok(settings), None) = (&settings, pause) else {
            for (_, message) in waiting {
                finish(&message, Some(pause.unwrap_or(LATER))).await;
            }
            return;
        };
        let (wanted, unwanted): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|(notification, _)| settings.mails(notification.kind));
        for (_, message) in unwanted {
            finish(&message, None).await;
        }
        let Some(address) = settings.address.as_ref().filter(|_| !wanted.is_empty()) else { return };
        let (notifications, messages): (Vec<_>, Vec<_>) = wanted.into_iter().unzip();
        let failure = self.send(self.letters.digest(address, &notifications)).await.err();
        if failure.is_none() {
            self.last.lock().unwrap_or_else(PoisonError::into_inner).insert(account, now);
        }
        let pause = |message| failure.as_ref().and_then(|failure| failure.pause(published(message, now), now));
        let pauses: Vec<_> = messages.iter().map(pause).collect();
        for (message, pause) in messages.iter().zip(&pauses) {
            finish(message, *pause).await;
        }
        for (notification, pause) in notifications.iter().zip(pauses) {
            count(Channel::Mail, failure.as_ref(), pause);
            let made = DeliveryTry {
                id: format!("{}-{}", notification.seq.unwrap_or_default(), notification.kind),
                kind: notification.kind,
                webhook: None,
                at: now,
                failure: failure.as_ref().map(|failure| failure.text().to_owned()),
                next: pause.map(|pause| now.plus(pause)),
            };
            tries.record(account, &made).await;
        }
    }

    /// The time until the account gets its next e-mail; `None` if it gets one now.
    fn rest(&self, account: AccountId, now: Timestamp) -> Option<Millis> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.retain(|_, at| now.since(*at) < PAUSE);
        last.get(&account).map(|at| Millis(PAUSE.0.saturating_sub(now.since(*at).0)))
    }

    async fn send(&self, written: anyhow::Result<Message>) -> Result<(), Failure> {
        let message = written.map_err(|e| Failure::Final(format!("{e:#}")))?;
        let Ok(sent) = timeout(TIMEOUT, self.server.send(message)).await else {
            return Err(Failure::Passing("the mail server does not answer".to_owned()));
        };
        let Err(e) = sent else { return Ok(()) };
        warn!(error = %Chain(&e), "the mail server did not take an e-mail");
        Err(failure(&e))
    }
}

/// The enhanced status codes (RFC 3463) about an address or an e-mail that will never be right: unknown mail boxes,
/// full or disabled ones, and content that the server cannot take.
const FINAL: [&str; 6] = ["5.1.1", "5.1.2", "5.1.3", "5.1.10", "5.2.", "5.6."];

/// Why the mail server did not take an e-mail. A code outside of [`FINAL`], such as that of a refused password or
/// sender, is about the settings of the server, which the operator can mend.
fn failure(error: &smtp::Error) -> Failure {
    let answer = Chain(error).to_string();
    let is_final =
        error.is_permanent() && answer.split([' ', '(', '\n']).any(|w| FINAL.iter().any(|f| w.starts_with(f)));
    match error.status().map(u16::from) {
        Some(code) if is_final => Failure::Final(format!("the mail server answered {code}")),
        Some(code) => Failure::Passing(format!("the mail server answered {code}")),
        None if error.is_client() => Failure::Final("the e-mail cannot be sent to this address".to_owned()),
        None => Failure::Passing("the mail server does not answer".to_owned()),
    }
}
