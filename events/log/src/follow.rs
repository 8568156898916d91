//! Reading MARKET from a sequence, for ever: large pulls, no acks, and a check that nothing is missing.

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

use crate::Raw;

/// Most messages in one batch.
const BATCH: usize = 5_000;
/// A pull request is lost with the broker that held it. It therefore expires, and heartbeats show that it is alive.
const EXPIRES: Duration = Duration::from_secs(30);
const HEARTBEAT: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(250);
/// The broker removes a consumer that nobody has read from for this long.
const INACTIVE: Duration = Duration::from_secs(60);

/// One pull failed. The next call opens a new one.
#[derive(Debug, thiserror::Error)]
#[error("cannot follow MARKET from event {next} on")]
struct FollowError {
    next: Seq,
    source: BoxError,
}

/// Reads MARKET in order and without gaps, and opens a new pull after every failure.
pub struct Follower {
    stream: Stream<()>,
    next: Seq,
    open: Option<pull::Stream>,
    /// True if `next` is the sequence at which the pull was opened. If another message comes then, the broker has lost
    /// `next`; later in a pull, the message may merely have got lost on the way.
    asked: bool,
    over_gaps: bool,
}

impl Follower {
    pub(crate) fn new(stream: Stream<()>, from: Seq) -> Self {
        Self { stream, next: Seq(from.0.max(1)), open: None, asked: false, over_gaps: false }
    }

    /// Skips over missing messages, for tools that look for gaps. Everybody else waits until the log is whole again.
    #[must_use]
    pub fn over_gaps(self) -> Self {
        Self { over_gaps: true, ..self }
    }

    /// The next messages, decoded: at least one, at most 5,000, without a gap. Waits while there are none, and through
    /// every outage of the broker. The future may be dropped, in a `select!` for example: no message is lost.
    pub async fn next_batch(&mut self) -> Vec<Recorded> {
        let read = |raw: Raw| {
            let recorded = raw.read();
            if let Err(why) = &recorded.entry {
                warn!(seq = recorded.seq.0, %why, "skipped a message of MARKET");
            }
            recorded
        };
        self.next_raw_batch().await.into_iter().map(read).collect()
    }

    /// Like [`Self::next_batch`], with the messages as the broker has them.
    pub async fn next_raw_batch(&mut self) -> Vec<Raw> {
        loop {
            match self.try_batch().await {
                Ok(batch) => return batch,
                Err(e) => {
                    debug!(error = %Chain(&e), "opening the pull again");
                    self.open = None;
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn try_batch(&mut self) -> Result<Vec<Raw>, FollowError> {
        if self.open.is_none() {
            self.open = Some(self.reopen().await?);
            self.asked = true;
        }
        let next = self.next;
        let Some(messages) = self.open.as_mut() else {
            return Err(FollowError { next, source: "no pull is open".into() });
        };
        let mut batch: Vec<Raw> = Vec::new();
        let mut arrived = Some(messages.next().await);
        while let Some(message) = arrived {
            let asked = std::mem::take(&mut self.asked);
            let raw = delivered(message).and_then(|raw| match raw.seq {
                seq if seq == self.next => Ok(raw),
                seq if asked && seq > self.next && self.over_gaps => Ok(raw),
                seq if asked && seq > self.next => {
                    // A fold that skipped this event would be wrong for ever: report the gap and try again.
                    error!(missing = self.next.0, "MARKET has lost an event: restore it from a backup");
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
                // The messages before the failure are good: deliver them, and open a new pull at the next call.
                Err(_) => {
                    self.open = None;
                    break;
                }
            }
            // Without `unconstrained`, tokio's cooperative budget would end a batch after 128 messages.
            arrived = if batch.len() < BATCH { unconstrained(messages.next()).now_or_never() } else { None };
        }
        Ok(batch)
    }

    async fn reopen(&self) -> Result<pull::Stream, FollowError> {
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

fn delivered<E: Into<BoxError>>(message: Option<Result<Message, E>>) -> Result<Raw, BoxError> {
    Raw::delivered(message.ok_or("the pull ended")?.map_err(Into::into)?)
}
