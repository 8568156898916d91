//! Reading MARKET from a sequence, for ever: large pulls, no acks, and a check that nothing is missing.

use std::time::Duration;

use async_nats::jetstream::{
    Message,
    consumer::{AckPolicy, DeliverPolicy, pull},
    stream::Stream,
};
use futures_util::{FutureExt, StreamExt};
use gpubnb_events::{Recorded, Seq};
use tokio::task::unconstrained;
use tracing::{debug, error, warn};

use crate::Raw;

/// Most messages in one batch.
const BATCH: usize = 5_000;
/// A pull request dies with the broker that held it: it ends by itself and its silence is noticed.
const EXPIRES: Duration = Duration::from_secs(30);
const HEARTBEAT: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(250);
/// The broker removes a consumer of ours that nobody has read from for this long.
const INACTIVE: Duration = Duration::from_secs(60);

/// A failure of one pull. The follower heals by itself at the next call.
#[derive(Debug, thiserror::Error)]
#[error("following MARKET after {after}: {problem}")]
struct FollowError {
    after: Seq,
    problem: String,
}

/// Reads MARKET in order and without gaps. It re-opens itself after every failure.
pub struct Follower {
    stream: Stream<()>,
    next: Seq,
    open: Option<pull::Stream>,
    /// Whether the broker was asked for just this sequence: what comes instead shows that it has it no more.
    asked: bool,
    over_gaps: bool,
}

impl Follower {
    pub(crate) fn new(stream: Stream<()>, from: Seq) -> Self {
        Self { stream, next: Seq(from.0.max(1)), open: None, asked: false, over_gaps: false }
    }

    /// Goes on where a message is missing: for those who look for just that. All others wait until it is there again.
    #[must_use]
    pub fn over_gaps(self) -> Self {
        Self { over_gaps: true, ..self }
    }

    /// The next messages, read: at least one, at most 5,000, contiguous. Waits while there are none, and through
    /// every outage of the broker. Safe to drop between calls (select).
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

    /// The same, as the broker has them.
    pub async fn next_raw_batch(&mut self) -> Vec<Raw> {
        loop {
            match self.try_batch().await {
                Ok(batch) => return batch,
                Err(e) => {
                    debug!(error = %e, "re-opening");
                    self.open = None;
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn try_batch(&mut self) -> Result<Vec<Raw>, FollowError> {
        let failed = |after: Seq, problem: String| FollowError { after, problem };
        if self.open.is_none() {
            self.open = Some(self.reopen().await?);
            self.asked = true;
        }
        let next = self.next;
        let Some(messages) = self.open.as_mut() else {
            return Err(failed(next, "not open".to_owned()));
        };
        let mut batch: Vec<Raw> = Vec::new();
        let mut arrived = Some(messages.next().await);
        while let Some(message) = arrived {
            let asked = std::mem::take(&mut self.asked);
            let raw = delivered(message).and_then(|raw| match raw.seq {
                seq if seq == self.next => Ok(raw),
                seq if asked && seq > self.next && self.over_gaps => Ok(raw),
                seq if asked && seq > self.next => {
                    // Whoever folds over it would be wrong ever after.
                    error!(missing = self.next.0, "MARKET has lost an event: restore it from a backup");
                    Err(format!("MARKET has no {}", self.next))
                }
                seq => Err(format!("expected {}, got {seq}", self.next)),
            });
            match raw {
                Ok(raw) => {
                    self.next = raw.seq.next();
                    batch.push(raw);
                }
                Err(problem) if batch.is_empty() => return Err(failed(next, problem)),
                // What came before the failure is good, and is delivered.
                Err(_) => {
                    self.open = None;
                    break;
                }
            }
            // Unconstrained: otherwise tokio's budget of a task ends a batch after 128 messages.
            arrived = if batch.len() < BATCH { unconstrained(messages.next()).now_or_never() } else { None };
        }
        Ok(batch)
    }

    async fn reopen(&self) -> Result<pull::Stream, FollowError> {
        let failed = |problem: String| FollowError { after: self.next, problem };
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
            .map_err(|e| failed(e.to_string()))?;
        consumer
            .stream()
            .max_messages_per_batch(BATCH)
            .expires(EXPIRES)
            .heartbeat(HEARTBEAT)
            .messages()
            .await
            .map_err(|e| failed(e.to_string()))
    }
}

fn delivered<E: std::fmt::Display>(message: Option<Result<Message, E>>) -> Result<Raw, String> {
    Raw::delivered(message.ok_or("the pull ended")?.map_err(|e| e.to_string())?)
}
