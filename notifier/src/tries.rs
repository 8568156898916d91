//! The log of deliveries (the stream DELIVERYLOG), and when a delivery is tried again.

use std::time::Duration;

use async_nats::jetstream::{self, Context};
use gpubnb_events::{AccountId, Chain, Millis, Timestamp, notification::DeliveryTry, subject};
use gpubnb_runtime::metric;
use tracing::warn;

/// Shortest and longest time between two tries.
const PAUSES: (Millis, Millis) = (Millis(5_000), Millis(6 * 3_600_000));
/// A delivery that was not tried, because its account is busy or cannot be read now, waits for this time.
pub(crate) const LATER: Millis = PAUSES.0;
/// A delivery is given up after this time.
const GIVE_UP: Millis = Millis(3 * 24 * 3_600_000 - 6 * 3_600_000);

/// Why a delivery failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The delivery may succeed later.
    Passing(String),
    /// The delivery will never succeed.
    Final(String),
}

impl Failure {
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Passing(text) | Self::Final(text) => text,
        }
    }

    /// The time until the next try, of a delivery that waits since `since`: as long as it has waited already, so that
    /// the pauses double. `None` if it is given up.
    pub(crate) fn pause(&self, since: Timestamp, now: Timestamp) -> Option<Millis> {
        let age = now.since(since);
        match self {
            Self::Final(_) => None,
            Self::Passing(_) if age >= GIVE_UP => None,
            Self::Passing(_) => Some(age.clamp(PAUSES.0, PAUSES.1)),
        }
    }
}

/// The way on which something is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channel {
    /// A request to a program.
    Webhook,
    /// An e-mail with notifications.
    Mail,
    /// An e-mail that a person asked for.
    Letter,
}

/// The outcomes of a try.
const OUTCOMES: [&str; 3] = ["delivered", "retried", "given_up"];

/// Counts a try in the metrics. `pause` is the time until the next try of a failed delivery.
pub(crate) fn count(channel: Channel, failure: Option<&Failure>, pause: Option<Millis>) {
    let [delivered, retried, given_up] = OUTCOMES;
    let outcome = match (failure, pause) {
        (None, _) => delivered,
        (Some(_), Some(_)) => retried,
        (Some(_), None) => given_up,
    };
    counter(channel, outcome).increment(1);
}

fn counter(channel: Channel, outcome: &'static str) -> metrics::Counter {
    let channel = match channel {
        Channel::Webhook => "webhook",
        Channel::Mail => "mail",
        Channel::Letter => "letter",
    };
    metrics::counter!(metric::DELIVERIES, "channel" => channel, "outcome" => outcome)
}

/// Makes every series of the metric begin at zero, so that its first increase is seen.
pub(crate) fn start_counters() {
    for channel in [Channel::Webhook, Channel::Mail, Channel::Letter] {
        for outcome in OUTCOMES {
            counter(channel, outcome).increment(0);
        }
    }
}

/// Writes the log of deliveries.
#[derive(Clone)]
pub(crate) struct Tries(Context);

impl Tries {
    pub(crate) fn new(js: Context) -> Self {
        Self(js)
    }

    /// Records a try. A try that cannot be recorded is lost: the delivery itself matters more.
    pub(crate) async fn record(&self, account: AccountId, made: &DeliveryTry) {
        let Ok(bytes) = serde_json::to_vec(made) else { return };
        let sent = self.0.publish(subject::delivery_tries(account), bytes.into()).await;
        let stored = match sent {
            Ok(stored) => stored.await,
            Err(e) => Err(e),
        };
        if let Err(e) = stored {
            warn!(error = %Chain(&e), "a try of a delivery was not recorded");
        }
    }
}

/// When a message was put into DELIVERIES; `now` if the message does not say.
pub(crate) fn published(message: &jetstream::Message, now: Timestamp) -> Timestamp {
    message.info().map_or(now, |info| Timestamp::from_nanos(info.published.unix_timestamp_nanos()))
}

/// Ends the work on a message of DELIVERIES: for good, or until `pause` has passed.
pub(crate) async fn finish(message: &jetstream::Message, pause: Option<Millis>) {
    let kind = match pause {
        None => jetstream::AckKind::Ack,
        Some(pause) => jetstream::AckKind::Nak(Some(Duration::from_millis(pause.0))),
    };
    if let Err(e) = message.ack_with(kind).await {
        // The broker delivers it again.
        warn!(error = e, "a delivery was not acknowledged");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_end() {
        let since = Timestamp::from_millis(0);
        let after = |seconds: i64| {
            Failure::Passing(String::new()).pause(since, Timestamp::from_millis(seconds * 1_000)).map(|p| p.0 / 1_000)
        };
        assert_eq!([after(0), after(5), after(10), after(600)], [Some(5), Some(5), Some(10), Some(600)]);
        assert_eq!(after(24 * 3_600), Some(6 * 3_600));
        assert_eq!(after(3 * 24 * 3_600), None);
        assert_eq!(Failure::Final(String::new()).pause(since, since), None);
    }
}
