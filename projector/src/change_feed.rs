//! The change feed: after each change of a job, a machine or an account, sends a notice to the live pages of the web
//! server. A notice can have the new state, so that the page needs no query. A notice may be lost: a page that finds a
//! gap between two notices sends a query.

use std::{collections::HashSet, error::Error, time::Duration};

use async_nats::{
    Client,
    jetstream::{
        Context,
        consumer::{DeliverPolicy, push::OrderedConfig},
    },
};
use futures_util::StreamExt as _;
use gpubnb_events::{Actor, Aggregate, BatchId, Event, Recorded, Seq, Timestamp, subject, telemetry::Heartbeat};
use gpubnb_log::stream::TELEMETRY;
use gpubnb_model::affected_aggregates;
use gpubnb_query::view::{JobChange, NewState, Notice, TrailEvent};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::serve::Queries;

/// The largest batch of events whose notices have the new states. The notices of a larger batch only tell the pages to
/// send a query.
const MAX_BATCH_WITH_STATE: usize = 64;
/// The largest notice, bytes. A larger notice is replaced by a notice without a state.
const MAX_NOTICE: usize = 256 * 1024;
/// The largest heartbeat that is accepted, bytes.
const MAX_HEARTBEAT: usize = 8 * 1024;
/// The pause before a broken subscription to heartbeats is renewed.
const RETRY: Duration = Duration::from_millis(500);

/// Sends a notice for every aggregate (job, machine or account) that a folded batch changed. The new state is read from
/// the store: if a batch changes a row several times, only the last state is sent.
pub(crate) async fn announce_events(client: Client, queries: Queries, mut changes: mpsc::Receiver<Vec<Recorded>>) {
    while let Some(batch) = changes.recv().await {
        let Some(last) = batch.last() else { continue };
        let mut changed: HashSet<Aggregate> =
            batch.iter().filter_map(Recorded::event).flat_map(affected_aggregates).collect();
        // An event of a task also changes the row of its batch.
        let of_batch = |event: &Event| event.job().and_then(BatchId::of_task).map(|(batch, _)| batch);
        let batches: HashSet<BatchId> = batch.iter().filter_map(Recorded::event).filter_map(of_batch).collect();
        let is_known = |id: &BatchId| queries.read.has_batch(*id);
        changed.extend(batches.into_iter().filter(is_known).map(Aggregate::Batch));
        let with_state = batch.len() <= MAX_BATCH_WITH_STATE;
        let news: Vec<_> = changed
            .iter()
            .map(|a| (*a, if with_state { new_state(&queries, *a, &batch) } else { NewState::Ask }))
            .collect();
        for (aggregate, news) in news {
            // An event of a job also changes the row of the machine to which the job is assigned.
            if let NewState::Job(job) = &news
                && let Some(attempt) = job.job.attempts.last()
                && changed.insert(Aggregate::Machine(attempt.machine))
            {
                let machine = Aggregate::Machine(attempt.machine);
                send_notice(&client, machine, last.seq, new_state(&queries, machine, &batch)).await;
            }
            send_notice(&client, aggregate, last.seq, news).await;
        }
    }
}

/// The new state of an aggregate, for its notice. `batch` is the folded batch.
fn new_state(queries: &Queries, aggregate: Aggregate, batch: &[Recorded]) -> NewState {
    match aggregate {
        Aggregate::Machine(id) => {
            queries.read.machine(id).map_or(NewState::Ask, |view| NewState::Machine(Box::new(view)))
        }
        Aggregate::Account(_) | Aggregate::Batch(_) => NewState::Ask,
        Aggregate::Job(id) => {
            let of_job = |r: &&Recorded| r.event().is_some_and(|e| affected_aggregates(e).contains(&aggregate));
            let trail: Vec<_> = batch.iter().filter(of_job).filter_map(TrailEvent::from_recorded).collect();
            let length = queries.read.trail_length(aggregate);
            match (queries.read.job(Actor::Platform, id), length) {
                (Ok(job), Ok(length)) => {
                    let before = length.saturating_sub(u32::try_from(trail.len()).unwrap_or(u32::MAX));
                    NewState::Job(Box::new(JobChange { job, before, trail }))
                }
                _ => NewState::Ask,
            }
        }
    }
}

async fn send_notice(client: &Client, aggregate: Aggregate, seq: Seq, news: NewState) {
    let encoded = serde_json::to_vec(&Notice { seq, news }).ok().filter(|bytes| bytes.len() <= MAX_NOTICE);
    let Some(bytes) = encoded.or_else(|| serde_json::to_vec(&Notice { seq, news: NewState::Ask }).ok()) else { return };
    if let Err(e) = client.publish(subject::notice(aggregate), bytes.into()).await {
        debug!(error = &e as &dyn Error, "a notice was not sent");
    }
}

/// Records the heartbeats of all machines until shutdown. Sends a notice for a heartbeat only if no later message
/// waits: at the start, the stored heartbeats of the last hour are recorded without notices.
pub(crate) async fn announce_heartbeats(js: Context, queries: Queries, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            ended = read_heartbeats(&js, &queries) => {
                if let Err(e) = ended {
                    warn!(error = &*e as &dyn Error, "the subscription to heartbeats failed and is renewed");
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Subscribes to the heartbeats of the stream TELEMETRY, also to the stored ones, and handles each heartbeat.
async fn read_heartbeats(js: &Context, queries: &Queries) -> Result<(), async_nats::Error> {
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
            // The broker lets a machine publish only on its own subject. A heartbeat whose body names another machine
            // is ignored.
            Ok(heartbeat) if heartbeat.machine == machine => {
                queries.read.telemetry.record(heartbeat, at);
                if caught_up {
                    let aggregate = Aggregate::Machine(machine);
                    send_notice(&js.client(), aggregate, Seq::ZERO, new_state(queries, aggregate, &[])).await;
                }
            }
            Ok(_) => warn!(%machine, "ignored a heartbeat that names another machine"),
            Err(e) => warn!(%machine, error = &e as &dyn Error, "ignored an unreadable heartbeat"),
        }
    }
    Ok(())
}
