//! The service: follow MARKET, fold, answer, and tell live pages what changed.

use std::sync::Arc;

use anyhow::Context as _;
use gpubnb_events::{Millis, ProjectorId, Recorded, subject::PROJECTOR_INBOX};
use gpubnb_log::Log;
use gpubnb_runtime::{
    monitor,
    nats::{NatsArgs, jetstream},
    rpc::Server,
};
use gpubnb_store::{self, Database};
use tokio::sync::{mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{
    change_feed,
    config::RunArgs,
    fold::{self, Models, READ_AHEAD},
    gauges,
    ops::{self, Ops, background::Background, travel::Traveller, work::Work},
    serve::{self, Applied, Queries, ReadModels},
    snapshot::Snapshotter,
    telemetry::Telemetry,
    tree_head,
};

/// A batch larger than this is history: nobody is told of each change in it.
const NOTICED: usize = 500;
/// Batches that may wait for their notices.
const CHANGES: usize = 16;

/// Whether the models are folded from this very log: the last message that each has taken in is there, and the same.
async fn is_of(log: &Log, models: &Models) -> anyhow::Result<bool> {
    let last = log.last_seq().await?;
    for (name, at, _) in models.states() {
        if at > last {
            return Ok(false);
        }
        let Some(leaf) = gpubnb_store::last_leaf(&models.tables().named(name)?)? else { continue };
        // One that was lost since stops the fold where it is missing, and not here.
        if log.get_raw(at).await?.is_some_and(|message| message.leaf() != leaf) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The models as far as they are: from where they were, from snapshots where there are no rows, or from the beginning.
async fn open_models(db: &Database, log: &Log, keeper: Option<&Snapshotter>) -> anyhow::Result<Models> {
    if !is_of(log, &Models::open(db)?).await? {
        warn!(
            "what was folded is of another log than this one: a backup was restored, or a broker exchanged; it is folded anew"
        );
        db.clear()?;
    }
    if let Some(keeper) = keeper {
        keeper.fill(db).await?;
    }
    Ok(Models::open(db)?)
}

/// Folds what is read, and tells how far that is and what changed.
fn fold_on(
    models: Models,
    waiting: mpsc::Receiver<Vec<Recorded>>,
    progress: &watch::Sender<Applied>,
    changes: &mpsc::Sender<Vec<Recorded>>,
) -> Models {
    fold::fold(models, waiting, |models, batch| {
        progress.send_replace(Applied::of(models));
        // Notices are a courtesy: a page that misses one asks again by itself.
        if batch.len() <= NOTICED {
            drop(changes.try_send(batch));
        }
    })
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
    let keys: Vec<String> = args.head_key.iter().cloned().chain([key.public_key()]).collect();
    let keeper = Snapshotter::open(&js, log.clone(), key.clone(), &args.data).await;
    let opening = open_models(&db, &log, keeper.as_ref().filter(|_| args.snapshot_every > 0));
    let models = Box::pin(shutdown.run_until_cancelled(opening)).await.context("stopped while starting")??;
    let snapshot_copies = models.snapshot_copies();
    let (tables, adoption) = (models.tables(), models.adoption());
    let (progress, applied) = watch::channel(Applied::of(&models));
    let tasks = TaskTracker::new();

    let (events, waiting) = mpsc::channel(READ_AHEAD);
    let (changes, changed) = mpsc::channel(CHANGES);
    tasks.spawn(fold::read(log.clone(), models.next(), models.adoption(), events, shutdown.clone()));
    let folding = tokio::task::spawn_blocking(move || fold_on(models, waiting, &progress, &changes));

    let telemetry = Arc::new(Telemetry::default());
    let background = Background::new(tasks.clone(), shutdown.clone());
    let traveller = Traveller::open(log.clone(), &args.data.join("travel"), background.clone())
        .context("opening what time travel keeps")?;
    let work = Work {
        projector: ProjectorId::generate(),
        keys,
        log: log.clone(),
        db: db.clone(),
        tables: tables.clone(),
        adoption,
        applied: applied.clone(),
        scratch: args.data.join("verify"),
        background,
        state: Arc::default(),
    };
    info!(projector = %work.projector, "operators ask it by this id");
    let floor = log.last_seq().await?;
    let read = ReadModels { tables, telemetry };
    let queries = Queries { read, log, applied: applied.clone(), floor };
    let patience = args.stuck_after.map(|seconds| Millis(seconds.saturating_mul(1_000)));
    let ops = Ops::new(queries.clone(), work, traveller, patience, nats.nats_creds.clone());
    tasks.spawn(change_feed::of_events(client.clone(), queries.clone(), changed));
    tasks.spawn(tree_head::publish(js.clone(), queries.read.tables.clone(), key, shutdown.clone()));
    if let Some(keeper) = keeper {
        let tables = queries.read.tables.clone();
        let until = (queries.applied.clone(), floor);
        tasks.spawn(keeper.keep(tables, snapshot_copies, until, args.snapshot_every, shutdown.clone()));
    }
    tasks.spawn(change_feed::of_heartbeats(js, queries.clone(), shutdown.clone()));

    ops.work.go_on()?;
    let server =
        Server::start(&client, "gpubnb-projector", shutdown.clone()).await.map_err(anyhow::Error::from_boxed)?;
    serve::serve(&server, &queries).await.map_err(anyhow::Error::from_boxed)?;
    ops::serve(&server, &ops).await.map_err(anyhow::Error::from_boxed)?;
    tasks.spawn(gauges::take(ops, shutdown.clone()));
    let mut folded = applied;
    let caught_up = folded.wait_for(|applied| applied.seq >= floor);
    if let Some(Ok(_)) = shutdown.run_until_cancelled(caught_up).await {
        ready.set();
        info!("ready");
    }

    shutdown.cancelled().await;
    server.finish().await;
    tasks.close();
    folding.await.context("the fold")?;
    tasks.wait().await;
    db.flush().await.context("flushing the read models")?;
    info!("stopped");
    Ok(())
}
