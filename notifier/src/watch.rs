//! Reads the log, and puts what is to be told into DELIVERIES.
//!
//! The position in the log is an entry of the bucket NOTIFICATIONS. It is written after each event that made
//! deliveries, and after each batch, on condition that no other notifier has written it. A crash before that makes the
//! same deliveries again, under the same ids, and DELIVERIES drops the second ones.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use async_nats::{
    HeaderMap,
    jetstream::{
        Context,
        context::{PublishError, PublishErrorKind},
        kv,
    },
};
use gpubnb_events::{Clock, Millis, Recorded, Seq, message::header, notification::Delivery, subject};
use gpubnb_log::Log;
use gpubnb_runtime::rpc::RpcError;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::notice::Notices;

const POSITION: &str = "position";
/// Pause after a failure of the broker or of the projector.
const RETRY: Duration = Duration::from_secs(1);
/// An event that is older is not told: nobody waits for the news.
const TOO_OLD: Millis = Millis(3 * 24 * 3_600_000);

/// The reader of the log.
pub(crate) struct Watch {
    log: Log,
    js: Context,
    bucket: kv::Store,
    notices: Notices,
    clock: Arc<dyn Clock>,
}

impl Watch {
    /// Opens the log at the stored position; at the first start, at the end of the log.
    pub(crate) async fn open(
        log: Log,
        js: Context,
        bucket: kv::Store,
        notices: Notices,
        clock: Arc<dyn Clock>,
    ) -> anyhow::Result<Self> {
        if bucket.get(POSITION).await.context("reading the position in the log")?.is_none() {
            let last = log.last_seq().await?;
            // Another notifier may have been faster.
            if bucket.create(POSITION, last.0.to_string().into()).await.is_ok() {
                info!(%last, "the first start: nothing is sent about the past");
            }
        }
        Ok(Self { log, js, bucket, notices, clock })
    }

    /// Reads until shutdown.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            if let Some(Err(e)) = shutdown.run_until_cancelled(self.read()).await {
                warn!(error = format!("{e:#}"), "the log is not read now; trying again");
                shutdown.run_until_cancelled(tokio::time::sleep(RETRY)).await;
            }
        }
    }

    /// Reads from the stored position on, until a failure.
    async fn read(&self) -> anyhow::Result<()> {
        let entry = self.bucket.entry(POSITION).await?.context("the position in the log is gone")?;
        let position: u64 = std::str::from_utf8(&entry.value)?.parse()?;
        let mut revision = entry.revision;
        let mut follower = self.log.follow(Seq(position).next()).skip_gaps();
        loop {
            let batch = follower.next_batch().await;
            let Some(last) = batch.last().map(|recorded| recorded.seq) else { continue };
            for recorded in &batch {
                // Fails if another notifier has read on: this one then begins at the other's position.
                if self.tell(recorded).await? || recorded.seq == last {
                    revision = self.bucket.update(POSITION, recorded.seq.0.to_string().into(), revision).await?;
                }
            }
        }
    }

    /// Puts what is to be told about an event into DELIVERIES. Returns true if there was anything.
    async fn tell(&self, recorded: &Recorded) -> anyhow::Result<bool> {
        let Some(event) = recorded.event() else { return Ok(false) };
        if self.clock.now().since(recorded.at) > TOO_OLD {
            return Ok(false);
        }
        let made = match self.notices.about(event, recorded.seq, recorded.at).await {
            Err(e) if matches!(e.downcast_ref(), Some(RpcError::Refused(_))) => {
                // A row that the projector does not have, now or later: the other events must not wait for it.
                warn!(seq = %recorded.seq, error = format!("{e:#}"), "an event is not told");
                return Ok(false);
            }
            made => made?,
        };
        for delivery in &made {
            match self.put(recorded.seq, delivery).await {
                Err(e) if is_refused(&e) => {
                    // Too many wait for this receiver. Others must not wait for it.
                    warn!(seq = %recorded.seq, error = format!("{e:#}"), "a delivery is dropped");
                }
                put => put?,
            }
        }
        Ok(!made.is_empty())
    }

    async fn put(&self, seq: Seq, delivery: &Delivery) -> anyhow::Result<()> {
        let (id, account) = match delivery {
            Delivery::Webhook { id, account, .. } => (id.clone(), account.to_string()),
            Delivery::Mail { account, notification } => (format!("{seq}-{}", notification.kind), account.to_string()),
            Delivery::Letter(_) => return Ok(()),
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::ID, format!("{account}-{id}"));
        let body = serde_json::to_vec(delivery)?;
        self.js.publish_with_headers(subject::delivery(delivery), headers, body.into()).await?.await?;
        Ok(())
    }
}

/// True if the broker refused a message, and would refuse it again: too many messages wait for its receiver, or it is
/// too large. The broker has one code for this and for a full disk, so the text decides.
fn is_refused(error: &anyhow::Error) -> bool {
    let text = format!("{error:#}");
    ["per subject", "message size exceeds"].iter().any(|reason| text.contains(reason))
        || error.downcast_ref::<PublishError>().is_some_and(|e| e.kind() == PublishErrorKind::MaxPayloadExceeded)
}
