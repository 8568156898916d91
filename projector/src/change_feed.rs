//! Tells live pages what changed and what became of it, so that they need not ask. A courtesy: a page that misses
//! a notice, or finds a gap, asks.

use std::{collections::HashSet, time::Duration};

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

/// From so many events at once on, pages ask for what they show: most of it nobody looks at.
const TOLD: usize = 64;
/// Largest notice; one that would be larger says to ask.
const MAX_NOTICE: usize = 256 * 1024;
/// Largest heartbeat that is read.
const MAX_HEARTBEAT: usize = 8 * 1024;
/// Pause before heartbeats are listened to again.
const RETRY: Duration = Duration::from_millis(500);

/// Of what was folded.
pub(crate) async fn of_events(client: Client, queries: Queries, mut changes: mpsc::Receiver<Vec<Recorded>>) {
    while let Some(batch) = changes.recv().await {
        let Some(last) = batch.last() else { continue };
        let mut changed: HashSet<Aggregate> = batch.iter().filter_map(Recorded::event).flat_map(touched).collect();
        let told = batch.len() <= TOLD;
        let news: Vec<_> =
            changed.iter().map(|a| (*a, if told { news(&queries, *a, &batch) } else { News::Ask })).collect();
        for (aggregate, news) in news {
            // What a job does changes the machine that has it.
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

/// What became of an aggregate, read after the fold.
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
        debug!(error = %e, "a notice was not sent");
    }
}

/// Of what machines say of themselves; until shutdown.
pub(crate) async fn of_heartbeats(js: Context, queries: Queries, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            ended = hear_all(&js, &queries) => {
                if let Err(e) = ended {
                    warn!(error = %e, "listening to heartbeats again");
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
            // A machine speaks for itself only.
            Ok(heartbeat) if heartbeat.machine == machine => {
                queries.read.telemetry.hear(heartbeat, at);
                if caught_up {
                    let aggregate = Aggregate::Machine(machine);
                    send(&js.client(), aggregate, Seq::ZERO, news(queries, aggregate, &[])).await;
                }
            }
            Ok(_) => warn!(%machine, "a heartbeat in another machine's name"),
            Err(e) => warn!(%machine, error = %e, "unreadable heartbeat"),
        }
    }
    Ok(())
}
