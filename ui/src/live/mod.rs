//! Live pages: change notices in, server-sent events out. One connection a page; what a slow page misses
//! is made up by asking again, so nothing grows in memory.

mod board;
pub(crate) mod job;
pub(crate) mod log;
pub(crate) mod output;
pub(crate) mod parts;

use std::sync::Arc;

use async_nats::Client;
use futures_util::StreamExt;
use gpubnb_events::{Aggregate, Seq, subject};
use gpubnb_query::view::{JobNews, News, Notice};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Notices a slow page may fall behind before it is told to ask again.
const BACKLOG: usize = 1_024;

pub(crate) use self::board::Board;

/// Something changed.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) aggregate: Aggregate,
    pub(crate) seq: Seq,
    /// What became of a job, if the notice told.
    pub(crate) job: Option<Arc<JobNews>>,
}

/// The change notices of the projectors, for every open page.
#[derive(Clone)]
pub(crate) struct Changes(broadcast::Sender<Change>);

impl Changes {
    pub(crate) fn new() -> Self {
        Self(broadcast::Sender::new(BACKLOG))
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.0.subscribe()
    }

    /// Passes notices on until shutdown.
    pub(crate) async fn listen(self, client: Client, board: Board, shutdown: CancellationToken) {
        let mut notices = match client.subscribe(subject::NOTICES).await {
            Ok(notices) => notices,
            Err(e) => return warn!(error = %e, "no live updates"),
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
                    News::Job(news) => Some(Arc::from(news)),
                    News::Machine(view) => {
                        board.put(*view);
                        None
                    }
                    News::Ask => {
                        if let Aggregate::Machine(id) = aggregate {
                            board.ask(id, notice.seq);
                        }
                        None
                    }
                };
                // No open page is no failure.
                drop(self.0.send(Change { aggregate, seq: notice.seq, job }));
            }
        }
    }
}

/// Changes that came while a page was busy: those that matter, in order.
pub(crate) fn pending_changes(
    changes: &mut broadcast::Receiver<Change>,
    matters: impl Fn(&Change) -> bool,
) -> Vec<Change> {
    std::iter::from_fn(|| changes.try_recv().ok()).filter(|change| matters(change)).collect()
}

/// The next change that matters. `None` where the page fell behind: it should ask again.
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
