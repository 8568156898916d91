//! The service: follow MARKET, fold, answer, and tell live pages what changed.

use std::{collections::HashSet, sync::Arc};

use anyhow::Context as _;
use gpubnb_events::{
    Aggregate, Log, Recorded,
    nats::{NatsArgs, jetstream},
    rpc::Server,
    subject::{self, PROJECTOR_INBOX},
};
use tokio::sync::{mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::info;

use crate::{
    config::RunArgs,
    fold::{self, Models, READ_AHEAD},
    live::Live,
    model::touched,
    query::{self, Applied, Queries},
    store,
    view::Notice,
};

/// A batch larger than this is history: nobody is told of each change in it.
const NOTICED: usize = 500;
/// Batches that may wait for their notices.
const CHANGES: usize = 16;

/// Runs until shutdown.
pub async fn run(nats: NatsArgs, args: RunArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    let client = nats.connect("projector", PROJECTOR_INBOX).await?;
    let js = jetstream(client.clone());
    let log = Log::open(js.clone()).await.context("MARKET is missing: start gpubnb-services --provision first")?;
    std::fs::create_dir_all(&args.data).with_context(|| format!("creating {}", args.data.display()))?;
    let db = store::open(&args.data.join("models"), args.cache_mib).context("opening the read models")?;
    let models = Models::open(&db)?;
    let trees = models.trees();
    let (progress, applied) = watch::channel(Applied::of(&models));
    let tasks = TaskTracker::new();

    let (events, waiting) = mpsc::channel(READ_AHEAD);
    let (changes, changed) = mpsc::channel(CHANGES);
    tasks.spawn(fold::read(log.follow(models.next()), events, shutdown.clone()));
    let folding = tokio::task::spawn_blocking(move || {
        fold::fold(models, waiting, |models, batch| {
            progress.send_replace(Applied::of(models));
            // Notices are a courtesy: a page that misses one asks again by itself.
            if batch.len() <= NOTICED {
                drop(changes.try_send(batch));
            }
        })
    });
    tasks.spawn(notify(client.clone(), changed));

    let live = Arc::new(Live::default());
    let (listening, stop) = (Arc::clone(&live), shutdown.clone());
    tasks.spawn(async move { listening.listen(&js, stop).await });

    let server =
        Server::start(&client, "gpubnb-projector", shutdown.clone()).await.map_err(anyhow::Error::from_boxed)?;
    query::serve(&server, &Queries { trees, live, log, applied }).await.map_err(anyhow::Error::from_boxed)?;
    info!("ready");

    shutdown.cancelled().await;
    server.finish().await;
    tasks.close();
    folding.await.context("the fold")?;
    tasks.wait().await;
    db.flush_async().await.context("flushing the read models")?;
    info!("stopped");
    Ok(())
}

async fn notify(client: async_nats::Client, mut changes: mpsc::Receiver<Vec<Recorded>>) {
    while let Some(batch) = changes.recv().await {
        let Some(last) = batch.last() else { continue };
        let Ok(notice) = serde_json::to_vec(&Notice { seq: last.seq }) else { continue };
        let changed: HashSet<Aggregate> = batch.iter().filter_map(Recorded::event).flat_map(touched).collect();
        for aggregate in changed {
            let sent = client.publish(subject::notice(aggregate), notice.clone().into()).await;
            if let Err(e) = sent {
                tracing::debug!(error = %e, "a notice was not sent");
            }
        }
    }
}
