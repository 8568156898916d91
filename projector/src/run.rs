//! The service: follows MARKET, folds events into the read models, answers queries, and tells live pages about changes.

use std::sync::Arc;

use anyhow::Context as _;
use async_nats::jetstream::Context as JetStream;
use gpubnb_events::{Millis, ProjectorId, Recorded, Seq, subject::PROJECTOR_INBOX};
use gpubnb_log::Log;
use gpubnb_runtime::{
    monitor,
    nats::{NatsArgs, jetstream},
    rpc::Server,
};
use gpubnb_store::{self, Database};
use nkeys::KeyPair;
use tokio::sync::{mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{
    change_feed,
    config::RunArgs,
    fold::{self, Adoption, ModelCopy, Models, READ_AHEAD},
    gauges,
    ops::{self, OperatorQueries, background::Background, context::WorkContext, rebuild, travel::Traveller},
    serve::{self, Applied, Queries, ReadModels},
    snapshot::Snapshotter,
    tree_head,
};

/// A larger batch is history that is being caught up with: live pages are not told of each change in it.
const NOTICED: usize = 500;
/// Batches that may wait for their notices to be sent.
const CHANGES: usize = 16;

/// True if the models were folded from this very log: the log still has the last message that each model has folded,
/// with the same content.
async fn is_of(log: &Log, models: &Models) -> anyhow::Result<bool> {
    let last = log.last_seq().await?;
    for (name, at, _) in models.states() {
        if at > last {
            return Ok(false);
        }
        let Some(leaf) = gpubnb_store::last_leaf(&models.tables().named(name)?)? else { continue };
        // Where that message is lost, the log is still the same: the fold stops at the gap and says so.
        if log.get_raw(at).await?.is_some_and(|message| message.leaf() != leaf) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The models as they were left; from snapshots where there are no rows; or else empty, to be folded from the first
/// event.
async fn open_models(db: &Database, log: &Log, snapshotter: Option<&Snapshotter>) -> anyhow::Result<Models> {
    if !is_of(log, &Models::open(db)?).await? {
        warn!(
            "the read models were folded from another log than this one: a backup was restored, or a broker exchanged; \
             they are folded anew"
        );
        db.clear()?;
    }
    if let Some(snapshotter) = snapshotter {
        snapshotter.fill(db).await?;
    }
    Ok(Models::open(db)?)
}

/// Folds the events as they are read, and tells the queries how far the models are and the change feed what changed.
fn fold_on(
    models: Models,
    waiting: mpsc::Receiver<Vec<Recorded>>,
    progress: &watch::Sender<Applied>,
    changes: &mpsc::Sender<Vec<Recorded>>,
) -> Models {
    fold::fold(models, waiting, |models, batch| {
        progress.send_replace(Applied::of(models));
        // A notice may be lost: a page that misses one asks.
        if batch.len() <= NOTICED {
            drop(changes.try_send(batch));
        }
    })
}

/// The parts of a running service that its tasks share.
struct Service {
    args: RunArgs,
    nats: NatsArgs,
    js: JetStream,
    log: Log,
    db: Database,
    /// The key that signs tree heads and snapshots.
    key: KeyPair,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// Runs until shutdown.
pub async fn run(nats: NatsArgs, args: RunArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    let ready = monitor::start(&args.monitor, "gpubnb-projector", shutdown.clone()).await?;
    let client = nats.connect("projector", PROJECTOR_INBOX).await?;
    let js = jetstream(client.clone());
    let log = Log::open(js.clone()).await.context("MARKET is missing: start gpubnb-services --provision first")?;
    std::fs::create_dir_all(&args.data).with_context(|| format!("creating {}", args.data.display()))?;
    let db = Database::open(&args.data.join("models"), args.cache_mib).context("opening the read models")?;
    let key = nats.signing_key("projector")?;
    let service = Service { args, nats, js, log, db, key, tasks: TaskTracker::new(), shutdown };

    let snapshotter = service.snapshotter().await;
    let opening = open_models(&service.db, &service.log, snapshotter.as_ref());
    let opened = Box::pin(service.shutdown.run_until_cancelled(opening)).await;
    let models = opened.context("stopped while starting")??;
    let (copies, tables, adoption) = (models.snapshot_copies(), models.tables(), models.adoption());

    let (progress, applied) = watch::channel(Applied::of(&models));
    let (events, waiting) = mpsc::channel(READ_AHEAD);
    let (changes, changed) = mpsc::channel(CHANGES);
    let reading = fold::read(service.log.clone(), models.next(), adoption.clone(), events, service.shutdown.clone());
    service.tasks.spawn(reading);
    let folding = tokio::task::spawn_blocking(move || fold_on(models, waiting, &progress, &changes));

    let floor = service.log.last_seq().await?;
    let read = ReadModels { tables, telemetry: Arc::default() };
    let queries = Queries { read, log: service.log.clone(), applied, floor };
    service.tasks.spawn(change_feed::of_events(client.clone(), queries.clone(), changed));
    service.publish_what_is_folded(&queries, snapshotter.map(|snapshotter| (snapshotter, copies)));
    let ops = service.operator_queries(&queries, adoption)?;
    rebuild::resume_all(&ops.work)?;
    let server = Server::start(&client, "gpubnb-projector", service.shutdown.clone()).await;
    let server = server.map_err(anyhow::Error::from_boxed)?;
    serve::serve(&server, &queries).await.map_err(anyhow::Error::from_boxed)?;
    ops::serve(&server, &ops).await.map_err(anyhow::Error::from_boxed)?;
    service.tasks.spawn(gauges::set(ops, service.shutdown.clone()));

    if service.caught_up(queries.applied, floor).await {
        ready.set();
        info!("ready");
    }
    service.shutdown.cancelled().await;
    server.finish().await;
    service.tasks.close();
    folding.await.context("the fold")?;
    service.tasks.wait().await;
    service.db.flush().await.context("flushing the read models")?;
    info!("stopped");
    Ok(())
}

impl Service {
    /// The snapshots of the models; `None` where the options or the broker allow none.
    async fn snapshotter(&self) -> Option<Snapshotter> {
        if self.args.snapshot_every == 0 {
            return None;
        }
        Snapshotter::open(&self.js, self.log.clone(), self.key.clone(), &self.args.data).await
    }

    /// Starts the tasks that publish signed tree heads, snapshots, and the heartbeats of machines to live pages.
    fn publish_what_is_folded(&self, queries: &Queries, snapshots: Option<(Snapshotter, Vec<ModelCopy>)>) {
        let tables = &queries.read.tables;
        let heads = tree_head::publish(self.js.clone(), tables.clone(), self.key.clone(), self.shutdown.clone());
        self.tasks.spawn(heads);
        if let Some((snapshotter, copies)) = snapshots {
            let until = (queries.applied.clone(), queries.floor);
            let every = self.args.snapshot_every;
            self.tasks.spawn(snapshotter.keep(tables.clone(), copies, until, every, self.shutdown.clone()));
        }
        self.tasks.spawn(change_feed::of_heartbeats(self.js.clone(), queries.clone(), self.shutdown.clone()));
    }

    fn operator_queries(&self, queries: &Queries, adoption: Adoption) -> anyhow::Result<OperatorQueries> {
        let background = Background::new(self.tasks.clone(), self.shutdown.clone());
        let traveller = Traveller::open(self.log.clone(), &self.args.data.join("travel"), background.clone())
            .context("opening the database for time travel")?;
        let keys = self.args.head_key.iter().cloned().chain([self.key.public_key()]).collect();
        let work = WorkContext {
            projector: ProjectorId::generate(),
            keys,
            log: self.log.clone(),
            db: self.db.clone(),
            tables: queries.read.tables.clone(),
            adoption,
            applied: queries.applied.clone(),
            scratch: self.args.data.join("verify"),
            background,
            state: Arc::default(),
        };
        info!(projector = %work.projector, "operators ask this projector by its id");
        let patience = self.args.stuck_after.map(|seconds| Millis(seconds.saturating_mul(1_000)));
        let creds = self.nats.nats_creds.clone();
        Ok(OperatorQueries::new(queries.clone(), work, traveller, patience, creds))
    }

    /// Waits until the models have folded the log as it was at the start. False: the service was told to stop before.
    async fn caught_up(&self, mut applied: watch::Receiver<Applied>, floor: Seq) -> bool {
        let reached = applied.wait_for(|applied| applied.seq >= floor);
        matches!(self.shutdown.run_until_cancelled(reached).await, Some(Ok(_)))
    }
}
