//! The service `gpubnb-projector run`: reads MARKET (the log of all events), folds the events into the read models,
//! answers queries, and sends notices of changes to the live pages of the web server.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use async_nats::jetstream::Context as JetStream;
use gpubnb_events::{Millis, ProjectorId, Recorded, Seq, subject::PROJECTOR_INBOX};
use gpubnb_log::Log;
use gpubnb_runtime::{
    monitor::{self, Ready},
    nats::{NatsArgs, jetstream},
    rpc::Server,
};
use gpubnb_store::{self, Database, StoreError};
use nkeys::KeyPair;
use tokio::sync::{mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

use crate::{
    change_feed,
    config::RunArgs,
    fold::{self, Models, READ_AHEAD, SnapshotSource, SwapQueue},
    gauges,
    ops::{self, OperatorQueries, background::Background, context::WorkContext, rebuild, travel::PastStates},
    serve::{self, FoldProgress, Queries, ReadModels},
    snapshot::Snapshotter,
    tree_head,
};

/// The largest batch of events for which notices are sent. A larger batch occurs only while the projector catches up
/// with old events.
const MAX_ANNOUNCED_BATCH: usize = 500;
/// The number of folded batches that may wait for the change feed.
const WAITING_BATCHES: usize = 16;

/// True if every model was folded from this log: the last message that the model has folded is also in the log, with
/// the same content.
async fn are_models_of_log(log: &Log, models: &Models) -> anyhow::Result<bool> {
    let last = log.last_seq().await?;
    for (name, at, _) in models.states() {
        if at > last {
            return Ok(false);
        }
        let Some(leaf) = gpubnb_store::checkpoint_leaf(&models.tables().by_name(name)?)? else { continue };
        // If the message is missing, it was lost from this log. The models are kept, and the fold reports the gap.
        if log.get_raw(at).await?.is_some_and(|message| message.leaf() != leaf) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Opens the models with the rows of the last run. Models without rows are loaded from snapshots if there are any.
/// Models of another log are emptied.
async fn open_models(db: &Database, log: &Log, snapshotter: Option<&Snapshotter>) -> anyhow::Result<Models> {
    if !are_models_of_log(log, &Models::open(db)?).await? {
        warn!(
            "the read models were folded from another log: a backup was restored, or the broker was replaced; the \
             read models are folded again from the first event"
        );
        db.clear()?;
    }
    if let Some(snapshotter) = snapshotter {
        snapshotter.load_all(db).await?;
    }
    Ok(Models::open(db)?)
}

/// Folds the events that the reader sends. After each batch, publishes the progress to the queries and sends the events
/// to the change feed.
fn fold_and_announce(
    models: Models,
    waiting: mpsc::Receiver<Vec<Recorded>>,
    progress: &watch::Sender<FoldProgress>,
    changes: &mpsc::Sender<Vec<Recorded>>,
) -> Result<Models, StoreError> {
    fold::fold_chunks(models, waiting, |models, batch| {
        progress.send_replace(FoldProgress::of(models));
        // If the channel is full, the notices are lost. A page that misses a notice sends a query instead.
        if batch.len() <= MAX_ANNOUNCED_BATCH {
            drop(changes.try_send(batch));
        }
    })
}

/// The connections, settings and handles that the tasks of the service share.
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

/// Runs the service until shutdown.
///
/// When the database of the read models fails, because its disk is full or broken, the service stops answering: old
/// rows would look like new ones. Meanwhile other projectors answer, or the pages say that no projector does. After
/// an error of the disk, sled refuses every use of the open database. So the service opens the database again, after
/// 1 to 30 seconds, until that succeeds.
pub async fn run(nats: NatsArgs, args: RunArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    let ready = monitor::start(&args.monitor, "gpubnb-projector", shutdown.clone()).await?;
    let mut pause = MIN_PAUSE;
    let mut has_been_ready = false;
    loop {
        let result = Box::pin(run_until_failure(nats.clone(), args.clone(), &ready, shutdown.child_token())).await;
        if ready.is_set() {
            (has_been_ready, pause) = (true, MIN_PAUSE);
        }
        let Err(failure) = result else { return Ok(()) };
        // A service that was never ready ends with the error, so that the operator who starts it sees the cause at
        // once.
        if !has_been_ready || shutdown.is_cancelled() || !is_disk_failure(&failure) {
            return Err(failure);
        }
        let why = format!("{failure:#}");
        error!(why, ?pause, "the read models cannot be used; trying again");
        ready.set_failing(format!("trying again: {why}"));
        if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return Ok(());
        }
        pause = MAX_PAUSE.min(pause * 2);
    }
}

/// The pause before the database is opened again after its first failure.
const MIN_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause before the database is opened again.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// True if the disk of the database has failed, and not the broker or a row.
fn is_disk_failure(e: &anyhow::Error) -> bool {
    e.chain().any(|cause| cause.downcast_ref().is_some_and(StoreError::is_io))
}

/// Runs the service until shutdown, or until the database fails.
async fn run_until_failure(
    nats: NatsArgs,
    args: RunArgs,
    ready: &Ready,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let client = nats.connect("projector", PROJECTOR_INBOX).await?;
    let js = jetstream(client.clone());
    let log = Log::open(js.clone()).await.context("MARKET is missing: start gpubnb-services --provision first")?;
    std::fs::create_dir_all(&args.data).with_context(|| format!("creating {}", args.data.display()))?;
    let db = Database::open(&args.data.join("models"), args.cache_mib).context("opening the read models")?;
    let key = nats.signing_key("projector")?;
    let service = Service { args, nats, js, log, db, key, tasks: TaskTracker::new(), shutdown };
    // If a later step fails, the tasks that run by then end, and release the database.
    let _ends_all_tasks = service.shutdown.clone().drop_guard();

    let snapshotter = service.snapshotter().await;
    let opening = open_models(&service.db, &service.log, snapshotter.as_ref());
    let opened = Box::pin(service.shutdown.run_until_cancelled(opening)).await;
    let models = opened.context("stopped while starting")??;
    let (snapshot_sources, tables, swap_queue) = (models.snapshot_sources(), models.tables(), models.swap_queue());

    let (progress, applied) = watch::channel(FoldProgress::of(&models));
    let (events, waiting) = mpsc::channel(READ_AHEAD);
    let (changes, changed) = mpsc::channel(WAITING_BATCHES);
    let reading =
        fold::read_log(service.log.clone(), models.next_seq(), swap_queue.clone(), events, service.shutdown.clone());
    service.tasks.spawn(reading);
    let stop = service.shutdown.clone();
    let folding = tokio::task::spawn_blocking(move || {
        let _ends_the_service = stop.drop_guard();
        fold_and_announce(models, waiting, &progress, &changes)
    });

    let floor = service.log.last_seq().await?;
    let read = ReadModels { tables, telemetry: Arc::default() };
    let head_keys = service.args.head_key.iter().cloned().chain([service.key.public_key()]).collect();
    let queries = Queries { read, log: service.log.clone(), applied, floor, head_keys };
    service.tasks.spawn(change_feed::announce_events(client.clone(), queries.clone(), changed));
    service.start_publishers(&queries, snapshotter.map(|snapshotter| (snapshotter, snapshot_sources)));
    let ops = service.operator_queries(&queries, swap_queue)?;
    rebuild::resume_all(&ops.work)?;
    let server = Server::start(&client, "gpubnb-projector", service.shutdown.clone()).await;
    let server = server.map_err(anyhow::Error::from_boxed)?;
    serve::serve(&server, &queries).await.map_err(anyhow::Error::from_boxed)?;
    ops::serve(&server, &ops).await.map_err(anyhow::Error::from_boxed)?;
    service.tasks.spawn(gauges::run(ops, service.shutdown.clone()));

    // The broker handles what a connection sends in order: with this answer, it knows the subscriptions made above.
    service.log.last_seq().await?;
    if service.wait_for_floor(queries.applied, floor).await {
        ready.set();
        info!("ready");
    }
    service.shutdown.cancelled().await;
    server.finish().await;
    service.tasks.close();
    let folded = folding.await;
    service.tasks.wait().await;
    folded.context("the fold")??;
    service.db.flush().await.context("flushing the read models")?;
    info!("stopped");
    Ok(())
}

impl Service {
    /// Opens the store of snapshots. `None` if the options or the broker do not allow snapshots.
    async fn snapshotter(&self) -> Option<Snapshotter> {
        if self.args.snapshot_every == 0 {
            return None;
        }
        Snapshotter::open(&self.js, self.log.clone(), self.key.clone(), &self.args.data).await
    }

    /// Starts the tasks that publish signed tree heads, snapshots, and notices of heartbeats.
    fn start_publishers(&self, queries: &Queries, snapshots: Option<(Snapshotter, Vec<SnapshotSource>)>) {
        let tables = &queries.read.tables;
        let heads = tree_head::publish(self.js.clone(), tables.clone(), self.key.clone(), self.shutdown.clone());
        self.tasks.spawn(heads);
        if let Some((snapshotter, snapshot_sources)) = snapshots {
            let until = (queries.applied.clone(), queries.floor);
            let every = self.args.snapshot_every;
            self.tasks.spawn(snapshotter.run(tables.clone(), snapshot_sources, until, every, self.shutdown.clone()));
        }
        self.tasks.spawn(change_feed::announce_heartbeats(self.js.clone(), queries.clone(), self.shutdown.clone()));
    }

    fn operator_queries(&self, queries: &Queries, swap_queue: SwapQueue) -> anyhow::Result<OperatorQueries> {
        let background = Background::new(self.tasks.clone(), self.shutdown.clone());
        let past_states = PastStates::open(self.log.clone(), &self.args.data.join("travel"), background.clone())
            .context("opening the database for time travel")?;
        let work = WorkContext {
            projector: ProjectorId::generate(),
            keys: queries.head_keys.to_vec(),
            log: self.log.clone(),
            db: self.db.clone(),
            tables: queries.read.tables.clone(),
            swap_queue,
            applied: queries.applied.clone(),
            scratch: self.args.data.join("verify"),
            background,
            state: Arc::default(),
        };
        info!(projector = %work.projector, "operators ask this projector by its id");
        let stuck_after = self.args.stuck_after.map(|seconds| Millis(seconds.saturating_mul(1_000)));
        let creds = self.nats.nats_creds.clone();
        Ok(OperatorQueries::new(queries.clone(), work, past_states, stuck_after, creds))
    }

    /// Waits until the models have folded the event `floor`, the last event of the log at the start. Returns false if
    /// the service is stopped before.
    async fn wait_for_floor(&self, mut applied: watch::Receiver<FoldProgress>, floor: Seq) -> bool {
        let reached = applied.wait_for(|applied| applied.seq >= floor);
        matches!(self.shutdown.run_until_cancelled(reached).await, Some(Ok(_)))
    }
}
