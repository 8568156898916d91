//! Reading MARKET from a sequence on, without end.
//!
//! A follower reads through a *consumer*, which is the broker's state of one reader. The follower sends the consumer a
//! *pull request*: a request for up to 5,000 messages. When half of them have arrived, or the request expires, the
//! library sends the next. The stream of messages that the library returns is called the *pull* here. The follower
//! acknowledges no message. It checks that no message is missing, and opens a new consumer and a new pull after every
//! failure.

use std::time::Duration;

use async_nats::jetstream::{
    Message,
    consumer::{AckPolicy, DeliverPolicy, pull},
    stream::Stream,
};
use futures_util::{FutureExt, StreamExt};
use gpubnb_events::{BoxError, Chain, Recorded, Seq};
use tokio::task::unconstrained;
use tracing::{debug, error, warn};

use crate::RawMessage;

/// Most messages in one pull request, and in one batch that the follower returns.
const BATCH: usize = 5_000;
/// A pull request expires after this time. A broker that restarts forgets its pull requests, so no request may be valid
/// for ever.
const EXPIRES: Duration = Duration::from_secs(30);
/// The broker sends a heartbeat this often while there is no message. If heartbeats are missing, the pull request was
/// lost.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Pause between a failed pull and the next one.
const RETRY: Duration = Duration::from_millis(250);
/// Pause before the next pull at a gap, which an operator has to close.
const GAP_RETRY: Duration = Duration::from_secs(2);
/// The broker removes a consumer that nobody has used for this long.
const INACTIVE: Duration = Duration::from_secs(60);

/// The reason why a pull failed. [`Follower::next_raw_batch`] then opens a new pull.
#[derive(Debug, thiserror::Error)]
#[error("cannot follow MARKET from event {next} on")]
struct FollowError {
    next: Seq,
    source: BoxError,
}

/// Reads MARKET in order. At a gap (a message that MARKET has lost), the follower waits, unless [`Self::skip_gaps`]
/// was called. Opens a new pull after every failure.
pub struct Follower {
    stream: Stream<()>,
    next: Seq,
    pull: Option<pull::Stream>,
    /// True until the first message of this pull has arrived. The pull begins at the sequence `next`. If the first
    /// message of a pull has a higher sequence, the message `next` is no longer in the stream. A gap after the first
    /// message does not prove this: the missing message may be in the stream, and only have been lost on the way to
    /// this process.
    is_pull_new: bool,
    /// True if the follower skips messages that are no longer in the stream.
    skips_gaps: bool,
    /// The missing message at which the follower waits.
    reported_gap: Option<Seq>,
}

impl Follower {
    pub(crate) fn new(stream: Stream<()>, from: Seq) -> Self {
        Self { stream, next: Seq(from.0.max(1)), pull: None, is_pull_new: false, skips_gaps: false, reported_gap: None }
    }

    /// Skips missing messages, for tools that look for gaps. Without this option, the follower waits at a gap until an
    /// operator has restored the missing message.
    #[must_use]
    pub fn skip_gaps(self) -> Self {
        Self { skips_gaps: true, ..self }
    }

    /// The next messages, decoded: at least one and at most 5,000, with consecutive sequences (with `skip_gaps`, a gap
    /// may lie before the first). Waits until there is a message, also during an outage of the broker. The future may
    /// be dropped, for example in a `select!`: no message is lost.
    pub async fn next_batch(&mut self) -> Vec<Recorded> {
        let decode = |raw: RawMessage| {
            let recorded = raw.decode();
            if let Err(why) = &recorded.entry {
                warn!(seq = recorded.seq.0, %why, "a message of MARKET is not a valid event: folds skip it");
            }
            recorded
        };
        self.next_raw_batch().await.into_iter().map(decode).collect()
    }

    /// Like [`Self::next_batch`], but does not decode the messages.
    pub async fn next_raw_batch(&mut self) -> Vec<RawMessage> {
        loop {
            match self.try_batch().await {
                Ok(batch) => return batch,
                Err(e) => {
                    debug!(error = %Chain(&e), "the pull failed: opening a new pull");
                    self.pull = None;
                    let is_at_gap = self.reported_gap == Some(self.next);
                    tokio::time::sleep(if is_at_gap { GAP_RETRY } else { RETRY }).await;
                }
            }
        }
    }

    async fn try_batch(&mut self) -> Result<Vec<RawMessage>, FollowError> {
        if self.pull.is_none() {
            self.pull = Some(self.open_pull().await?);
            self.is_pull_new = true;
        }
        let next = self.next;
        let Some(messages) = self.pull.as_mut() else {
            return Err(FollowError { next, source: "no pull is open".into() });
        };
        let mut batch: Vec<RawMessage> = Vec::new();
        let mut arrived = Some(messages.next().await);
        while let Some(message) = arrived {
            let is_first = std::mem::take(&mut self.is_pull_new);
            let raw = raw_message(message).and_then(|raw| match raw.seq {
                seq if seq == self.next => Ok(raw),
                seq if is_first && seq > self.next && self.skips_gaps => Ok(raw),
                seq if is_first && seq > self.next => {
                    // A fold that skipped this event would be wrong for ever: report the gap once and try again.
                    if self.reported_gap.replace(self.next) != Some(self.next) {
                        error!(missing = self.next.0, "MARKET has lost an event: restore it from a backup");
                    }
                    Err(format!("MARKET has no event {}", self.next).into())
                }
                seq => Err(format!("expected event {}, got {seq}", self.next).into()),
            });
            match raw {
                Ok(raw) => {
                    self.next = raw.seq.next();
                    batch.push(raw);
                }
                Err(source) if batch.is_empty() => return Err(FollowError { next, source }),
                // Return the messages before the failure. The next call of this function opens a new pull.
                Err(_) => {
                    self.pull = None;
                    break;
                }
            }
            // Without `unconstrained`, tokio's cooperative budget would end a batch after 128 messages.
            arrived = if batch.len() < BATCH { unconstrained(messages.next()).now_or_never() } else { None };
        }
        Ok(batch)
    }

    async fn open_pull(&self) -> Result<pull::Stream, FollowError> {
        let failed = |source: BoxError| FollowError { next: self.next, source };
        let consumer = self
            .stream
            .create_consumer(pull::Config {
                ack_policy: AckPolicy::None,
                deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: self.next.0 },
                inactive_threshold: INACTIVE,
                memory_storage: true,
                num_replicas: 1,
                ..Default::default()
            })
            .await
            .map_err(|e| failed(e.into()))?;
        consumer
            .stream()
            .max_messages_per_batch(BATCH)
            .expires(EXPIRES)
            .heartbeat(HEARTBEAT)
            .messages()
            .await
            .map_err(|e| failed(e.into()))
    }
}

fn raw_message<E: Into<BoxError>>(message: Option<Result<Message, E>>) -> Result<RawMessage, BoxError> {
    RawMessage::from_delivered(message.ok_or("the pull ended")?.map_err(Into::into)?)
}
