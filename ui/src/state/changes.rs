//! Change notices. The projectors, which build the read models from the log, publish a notice whenever an aggregate (a
//! job, a machine or an account) changed. This module passes the notices to every open page.

use std::sync::Arc;

use async_nats::Client;
use futures_util::StreamExt;
use gpubnb_events::{Aggregate, Seq, subject};
use gpubnb_query::view::{JobChange, NewState, Notice};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::MachineCache;

/// The maximum number of notices that wait for a slow page. A page that falls further behind loses notices and reads
/// everything again.
const BACKLOG: usize = 1_024;

/// A change of an aggregate.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) aggregate: Aggregate,
    /// The sequence of the event that caused the change.
    pub(crate) seq: Seq,
    /// The new state of a job, if the notice carried it.
    pub(crate) job: Option<Arc<JobChange>>,
}

/// The channel of changes. Clones share the channel.
#[derive(Clone)]
pub(crate) struct Changes(broadcast::Sender<Change>);

impl Changes {
    pub(crate) fn new() -> Self {
        Self(broadcast::Sender::new(BACKLOG))
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.0.subscribe()
    }

    /// Receives notices until shutdown. Updates the cache of machines, and passes each change to the subscribers.
    pub(crate) async fn listen(self, client: Client, machines: MachineCache, shutdown: CancellationToken) {
        let mut notices = match client.subscribe(subject::NOTICES).await {
            Ok(notices) => notices,
            Err(e) => {
                return warn!(error = %e, "cannot subscribe to change notices: pages will not update by themselves");
            }
        };
        loop {
            let message = tokio::select! {
                () = shutdown.cancelled() => return,
                message = notices.next() => message,
            };
            let Some(message) = message else { return };
            let notice = serde_json::from_slice::<Notice>(&message.payload);
            if let (Some(aggregate), Ok(notice)) = (subject::aggregate_of_notice(&message.subject), notice) {
                let job = match notice.news {
                    NewState::Job(news) => Some(Arc::from(news)),
                    NewState::Machine(view) => {
                        machines.put(*view);
                        None
                    }
                    // The notice carries no state, so a machine is read with a query.
                    NewState::Ask => {
                        if let Aggregate::Machine(id) = aggregate {
                            machines.request_refresh(id, notice.seq);
                        }
                        None
                    }
                };
                // Sending fails if no page is open. This is not a problem.
                drop(self.0.send(Change { aggregate, seq: notice.seq, job }));
            }
        }
    }
}

/// The changes that are waiting and for which `matters` returns true, oldest first. Does not wait.
pub(crate) fn pending_changes(
    changes: &mut broadcast::Receiver<Change>,
    matters: impl Fn(&Change) -> bool,
) -> Vec<Change> {
    std::iter::from_fn(|| changes.try_recv().ok()).filter(|change| matters(change)).collect()
}

/// Waits for the next change for which `matters` returns true. `None` if notices were lost because the page fell
/// behind; then the page should read everything again.
pub(crate) async fn next_change(
    changes: &mut broadcast::Receiver<Change>,
    matters: impl Fn(&Change) -> bool,
) -> Option<Change> {
    loop {
        match changes.recv().await {
            Ok(change) if matters(&change) => return Some(change),
            Ok(_) => {}
            Err(broadcast::error::RecvError::Lagged(_)) => return None,
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpubnb_events::{AccountId, JobId};

    fn change(aggregate: Aggregate, seq: u64) -> Change {
        Change { aggregate, seq: Seq(seq), job: None }
    }

    #[tokio::test]
    async fn a_page_gets_the_changes_that_matter_and_learns_when_it_lost_some() {
        let (changes, own) = (Changes::new(), Aggregate::Job(JobId::generate()));
        let matters = |change: &Change| change.aggregate == own;
        let mut page = changes.subscribe();
        for seq in 1..=4 {
            let other = Aggregate::Account(AccountId::generate());
            changes.0.send(change(if seq % 2 == 0 { own } else { other }, seq)).unwrap();
        }
        assert_eq!(next_change(&mut page, matters).await.map(|c| c.seq), Some(Seq(2)));
        assert_eq!(pending_changes(&mut page, matters).iter().map(|c| c.seq).collect::<Vec<_>>(), [Seq(4)]);
        for seq in 0..=BACKLOG as u64 {
            changes.0.send(change(own, seq)).unwrap();
        }
        assert!(next_change(&mut page, matters).await.is_none());
    }
}
