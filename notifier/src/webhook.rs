//! Sends notifications to webhooks: signed HTTP requests to public addresses.
//!
//! The form of the request and of the signature is that of Standard Webhooks
//! (<https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>).

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_nats::jetstream::{self, Context, consumer::pull, kv};
use data_encoding::BASE64;
use futures_util::StreamExt;
use gpubnb_dialer::{DialError, Dialer};
use gpubnb_events::{
    AccountId, Clock, Millis, Timestamp,
    notification::{Delivery, DeliveryTry, Notification, WEBHOOK_SECRET_PREFIX, Webhook},
    subject,
};
use gpubnb_log::stream::DELIVERIES;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::{StatusCode, header::CONTENT_TYPE};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use url::Url;

use crate::{
    notice::read_settings,
    tries::{Channel, Failure, LATER, Tries, count, finish, published},
};

/// Longest time for a request and its answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Requests at once; of one account.
const IN_FLIGHT: (usize, usize) = (256, 4);
/// Names that are resolved at once for one account.
const LOOKUPS: usize = 2;
/// An account without a request for this time is forgotten. Each lookup has ended by then.
const FORGET: Millis = Millis(180_000);
/// Pause after a failure of the broker.
const RETRY: Duration = Duration::from_secs(1);

/// Sends what is in DELIVERIES for webhooks, until shutdown.
pub(crate) async fn deliver(js: Context, sender: Arc<Sender>, tries: Tries, shutdown: CancellationToken) {
    while !shutdown.is_cancelled() {
        let sending = async {
            let config = pull::Config {
                durable_name: Some("webhook".to_owned()),
                filter_subject: subject::WEBHOOK_DELIVERIES.to_owned(),
                ack_wait: 12 * TIMEOUT,
                // A delivery that waits for its next try counts as pending: with a bound, one account could stop all
                // others.
                max_ack_pending: -1,
                ..Default::default()
            };
            let consumer = js.create_consumer_on_stream(config, DELIVERIES).await?;
            let messages = consumer.stream().max_messages_per_batch(IN_FLIGHT.0).messages().await?;
            messages
                .for_each_concurrent(IN_FLIGHT.0, |message| async {
                    match message {
                        Ok(message) => sender.handle(&message, &tries).await,
                        Err(e) => warn!(error = %e, "a delivery was not received"),
                    }
                })
                .await;
            anyhow::Ok(())
        };
        if let Some(Err(e)) = shutdown.run_until_cancelled(sending).await {
            warn!(error = format!("{e:#}"), "webhooks are not sent now; trying again");
        }
        shutdown.run_until_cancelled(tokio::time::sleep(RETRY)).await;
    }
}

/// Sends requests to webhooks.
pub(crate) struct Sender {
    dialer: Dialer,
    /// The one host and port that may be reached without TLS.
    plain: Option<String>,
    settings: kv::Store,
    /// The address of the pages.
    pages: Url,
    clock: Arc<dyn Clock>,
    accounts: Mutex<HashMap<AccountId, Bounds>>,
}

/// The bounds of one account.
struct Bounds {
    requests: Arc<Semaphore>,
    dialer: Dialer,
    used_at: Timestamp,
}

impl Sender {
    pub(crate) fn new(
        dialer: Dialer,
        plain: Option<String>,
        settings: kv::Store,
        pages: Url,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { dialer, plain, settings, pages, clock, accounts: Mutex::default() }
    }

    /// Makes one try, unless the account has too many requests in flight.
    async fn handle(&self, message: &jetstream::Message, tries: &Tries) {
        let Ok(Delivery::Webhook { account, webhook, id, notification }) = serde_json::from_slice(&message.payload)
        else {
            warn!("a delivery cannot be read; it is dropped");
            return finish(message, None).await;
        };
        let now = self.clock.now();
        let Some((_permit, dialer)) = self.permit(account, now).await else {
            return finish(message, Some(LATER)).await;
        };
        let settings = match read_settings(&self.settings, account).await {
            Ok(settings) => settings,
            Err(e) => {
                warn!(error = format!("{e:#}"), "the settings of an account cannot be read; the delivery waits");
                return finish(message, Some(LATER)).await;
            }
        };
        let Some(known) = settings.webhooks.into_iter().find(|known| known.id == webhook) else {
            // It was removed meanwhile.
            return finish(message, None).await;
        };
        let sent = self.send(&dialer, &known, &id, &notification).await;
        let failure = sent.err();
        let now = self.clock.now();
        let pause = failure.as_ref().and_then(|failure| failure.pause(published(message, now), now));
        count(Channel::Webhook, failure.as_ref(), pause);
        let made = DeliveryTry {
            id,
            kind: notification.kind,
            webhook: Some(webhook),
            at: now,
            failure: failure.map(|failure| failure.text().to_owned()),
            next: pause.map(|pause| now.plus(pause)),
        };
        finish(message, pause).await;
        tries.record(account, &made).await;
    }

    /// The right to send one request for an account. `None` if it has as many in flight as it may.
    async fn permit(&self, account: AccountId, now: Timestamp) -> Option<(OwnedSemaphorePermit, Dialer)> {
        let mut accounts = self.accounts.lock().await;
        accounts.retain(|_, bounds| now.since(bounds.used_at) < FORGET);
        let bounds = accounts.entry(account).or_insert_with(|| Bounds {
            requests: Arc::new(Semaphore::new(IN_FLIGHT.1)),
            dialer: self.dialer.with_own_lookups(LOOKUPS),
            used_at: now,
        });
        bounds.used_at = now;
        let permit = Arc::clone(&bounds.requests).try_acquire_owned().ok()?;
        Some((permit, bounds.dialer.clone()))
    }

    async fn send(
        &self,
        dialer: &Dialer,
        Webhook { url, secret, .. }: &Webhook,
        id: &str,
        notification: &Notification,
    ) -> Result<(), Failure> {
        let gone = |text: &str| Failure::Final(text.to_owned());
        let url: Url = url.parse().map_err(|_| gone("the address cannot be read"))?;
        let place = format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or(0));
        if url.scheme() != "https" && self.plain.as_deref() != Some(&place) {
            return Err(gone("only addresses with https:// are reached"));
        }
        let body = body(&url, &self.pages, notification).to_string();
        let seconds = self.clock.now().millis() / 1_000;
        let signature = sign(secret, id, seconds, &body).ok_or_else(|| gone("the secret cannot be read"))?;
        let request = dialer.post(url, TIMEOUT).await.map_err(|e| match e {
            DialError::NotPublic(_) | DialError::Unresolved { .. } => {
                Failure::Passing("the host has no public address".to_owned())
            }
            other => Failure::Passing(other.to_string()),
        })?;
        let request = request
            .timeout(TIMEOUT)
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", seconds)
            .header("webhook-signature", signature)
            .body(body);
        // The body of the answer is of no interest, and is not read.
        let status = request.send().await.map_err(|e| Failure::Passing(explain(&e).to_owned()))?.status();
        if status.is_success() {
            return Ok(());
        }
        let text = format!("the host answered {}", status.as_u16());
        let may_pass = status.is_server_error()
            || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS].contains(&status);
        Err(if may_pass { Failure::Passing(text) } else { Failure::Final(text) })
    }
}

/// What a person needs to know about a request without an answer. The error itself has the address in it.
fn explain(error: &reqwest::Error) -> &'static str {
    if error.is_timeout() {
        "the host did not answer within 10 seconds"
    } else if error.is_connect() {
        "the host accepts no connection, or has no valid certificate"
    } else {
        "the connection ended without an answer"
    }
}

/// The body of the request: in the form that Slack or Discord reads, if the address is one of theirs.
fn body(url: &Url, pages: &Url, notification: &Notification) -> Value {
    let page = pages.join(&notification.path).map_or_else(|_| String::new(), String::from);
    match (url.host_str(), url.path()) {
        (Some("hooks.slack.com"), _) => {
            // In Slack's text, these three characters can begin a link or a mention.
            let title = notification.title.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
            json!({ "text": format!("{title} {page}") })
        }
        (Some("discord.com" | "discordapp.com"), path) if path.starts_with("/api/webhooks/") => {
            json!({ "content": format!("{} {page}", notification.title), "allowed_mentions": { "parse": [] } })
        }
        _ => json!({
            "type": notification.kind,
            "timestamp": notification.at,
            "data": notification.data,
            "text": notification.title,
            "url": page,
            "event": notification.seq,
        }),
    }
}

/// The signature of a request: `v1,` and the HMAC-SHA256 of `id.timestamp.body`, base64.
fn sign(secret: &str, id: &str, seconds: i64, body: &str) -> Option<String> {
    let key = BASE64.decode(secret.strip_prefix(WEBHOOK_SECRET_PREFIX)?.as_bytes()).ok()?;
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).ok()?;
    mac.update(format!("{id}.{seconds}.{body}").as_bytes());
    Some(format!("v1,{}", BASE64.encode(&mac.finalize().into_bytes())))
}

#[cfg(test)]
mod tests {
    use gpubnb_events::{Seq, notification::NotificationKind};

    use super::*;

    /// The example in the documents of Standard Webhooks' libraries.
    #[test]
    fn the_signature_is_that_of_standard_webhooks() {
        let signature = sign(
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            r#"{"test": 2432232314}"#,
        );
        assert_eq!(signature.as_deref(), Some("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="));
        assert_eq!(sign("secret", "a", 0, ""), None);
    }

    #[test]
    fn a_name_cannot_mention_everybody_in_a_chat() {
        let notification = Notification {
            kind: NotificationKind::JobFailed,
            seq: Some(Seq(7)),
            at: Timestamp::from_millis(0),
            title: "Job “<!channel> @everyone” failed.".to_owned(),
            path: "/jobs/x".to_owned(),
            data: json!({}),
        };
        let pages: Url = "https://market.example/".parse().unwrap();
        let made = |url: &str| body(&url.parse().unwrap(), &pages, &notification);
        let text = made("https://hooks.slack.com/services/x")["text"].to_string();
        assert!(text.contains("&lt;!channel&gt;") && text.contains("https://market.example/jobs/x"), "{text}");
        assert_eq!(made("https://discord.com/api/webhooks/1/x")["allowed_mentions"]["parse"], json!([]));
        assert_eq!(made("https://own.example/hook")["type"], "job.failed");
    }
}
