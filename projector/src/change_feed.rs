//! The change feed: notices to live pages, each with the new state of a job or a machine, so that a page need not ask.
//! A notice may be lost: a page that finds a gap asks.

use std::{collections::HashSet, error::Error, time::Duration};

use async_nats::{
    Client,
    jetstream::{
        Context,
        consumer::{DeliverPolicy, push::OrderedConfig},
    },
};
use futures_util::StreamExt as _;
use gpubnb_events::{Actor, Aggregate, Recorded, Seq, Timestamp, subject, telemetry::Heartbeat};
use gpubnb_log::stream::TELEMETRY;
use gpubnb_model::touched;
use gpubnb_query::view::{JobNews, News, Notice, TrailEvent};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::serve::Queries;

/// A batch with more events than this is announced without the new states: pages that show one of them ask.
const WITH_STATE: usize = 64;
/// The largest notice, bytes. In place of a larger one, pages are told to ask.
const MAX_NOTICE: usize = 256 * 1024;
/// The largest heartbeat that is read, bytes.
const MAX_HEARTBEAT: usize = 8 * 1024;
/// The pause before a broken subscription to heartbeats is renewed.
const RETRY: Duration = Duration::from_millis(500);

/// Sends a notice of everything that a folded batch changed. The new state is read back from the rows: a batch changes
/// a row several times, and the last state is that in the store.
pub(crate) async fn of_events(client: Client, queries: Queries, mut changes: mpsc::Receiver<Vec<Recorded>>) {
    while let Some(batch) = changes.recv().await {
        let Some(last) = batch.last() else { continue };
        let mut changed: HashSet<Aggregate> = batch.iter().filter_map(Recorded::event).flat_map(touched).collect();
        let with_state = batch.len() <= WITH_STATE;
        let news: Vec<_> =
            changed.iter().map(|a| (*a, if with_state { news(&queries, *a, &batch) } else { News::Ask })).collect();
        for (aggregate, news) in news {
            // An event of a job also changes the row of the machine that has the job.
            if let News::Job(job) = &news
                && let Some(attempt) = job.job.attempts.last()
                && changed.insert(Aggregate::Machine(attempt.machine))
            {
                let machine = Aggregate::Machine(attempt.machine);
                send(&client, machine, last.seq, self::news(&queries, machine, &batch)).await;
            }
            send(&client, aggregate, last.seq, news).await;
        }
    }
}

/// The state of an aggregate after the fold.
fn news(queries: &Queries, aggregate: Aggregate, batch: &[Recorded]) -> News {
    match aggregate {
        Aggregate::Machine(id) => queries.read.machine(id).map_or(News::Ask, |view| News::Machine(Box::new(view))),
        Aggregate::Account(_) => News::Ask,
        Aggregate::Job(id) => {
            let of_job = |r: &&Recorded| r.event().is_some_and(|e| touched(e).contains(&aggregate));
            let trail: Vec<_> = batch.iter().filter(of_job).filter_map(TrailEvent::of).collect();
            let length = queries.read.trail_length(aggregate);
            match (queries.read.job(Actor::Platform, id), length) {
                (Ok(job), Ok(length)) => {
                    let before = length.saturating_sub(u32::try_from(trail.len()).unwrap_or(u32::MAX));
                    News::Job(Box::new(JobNews { job, before, trail }))
                }
                _ => News::Ask,
            }
        }
    }
}

async fn send(client: &Client, aggregate: Aggregate, seq: Seq, news: News) {
    let encoded = serde_json::to_vec(&Notice { seq, news }).ok().filter(|bytes| bytes.len() <= MAX_NOTICE);
    let Some(bytes) = encoded.or_else(|| serde_json::to_vec(&Notice { seq, news: News::Ask }).ok()) else { return };
    if let Err(e) = client.publish(subject::notice(aggregate), bytes.into()).await {
        debug!(error = &e as &dyn Error, "a notice was not sent");
    }
}

/// Takes in the heartbeats of machines and sends a notice of each; until shutdown.
pub(crate) async fn of_heartbeats(js: Context, queries: Queries, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            ended = hear_all(&js, &queries) => {
                if let Err(e) = ended {
                    warn!(error = &*e as &dyn Error, "listening to heartbeats again");
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn hear_all(js: &Context, queries: &Queries) -> Result<(), async_nats::Error> {
    let config = OrderedConfig {
        deliver_subject: js.client().new_inbox(),
        deliver_policy: DeliverPolicy::All,
        filter_subject: subject::HEARTBEATS.to_owned(),
        ..Default::default()
    };
    let mut messages = js.create_consumer_on_stream(config, TELEMETRY).await?.messages().await?;
    while let Some(message) = messages.next().await {
        let message = message?;
        let Some(machine) = subject::machine_of_heartbeat(&message.subject) else { continue };
        if message.payload.len() > MAX_HEARTBEAT {
            continue;
        }
        let info = message.info()?;
        let (at, caught_up) = (Timestamp::from_nanos(info.published.unix_timestamp_nanos()), info.pending == 0);
        match serde_json::from_slice::<Heartbeat>(&message.payload) {
            // The subject names the machine by its credential: a heartbeat for another machine is ignored.
            Ok(heartbeat) if heartbeat.machine == machine => {
                queries.read.telemetry.hear(heartbeat, at);
                if caught_up {
                    let aggregate = Aggregate::Machine(machine);
                    send(&js.client(), aggregate, Seq::ZERO, news(queries, aggregate, &[])).await;
                }
            }
            Ok(_) => warn!(%machine, "a heartbeat in another machine's name"),
            Err(e) => warn!(%machine, error = &e as &dyn Error, "unreadable heartbeat"),
        }
    }
    Ok(())
}
