//! Puts a replica together and takes it apart again.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use async_nats::jetstream::Context;
use gpubnb_domain::World;
use gpubnb_events::{CommandId, SystemClock, subject::SERVICES_INBOX};
use gpubnb_log::{Log, stream::provision};
use gpubnb_runtime::{monitor, nats::jetstream, permit::TransferKey, rpc::Server};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::info;

use crate::{
    aggregate_lock::AggregateLocks,
    config::Config,
    credentials::{Issuer, Revoker, Sealing},
    endpoint::{self, Endpoints, Files},
    enrollment::Enrollments,
    execute::Executor,
    gauges,
    process::{Leadership, SilenceLimits, manage, watch},
    redispatch,
    replica::Replica,
    secrets::JobEnv,
    snapshot::WorldSnapshots,
};

/// Makes sure that every stream is there. Streams are another credential's affair: its connection is closed again at once.
async fn provisioned(config: &Config, js: &Context) -> anyhow::Result<()> {
    let bootstrap = config.nats.connect("bootstrap", SERVICES_INBOX).await?;
    let (owner, streams) = (jetstream(bootstrap), config.streams());
    redispatch::where_lost(js, &owner, &streams).await?;
    Ok(provision(&owner, &streams).await?)
}

/// Runs one replica until shutdown.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let ready = monitor::start(&config.monitor, "gpubnb-services", shutdown.clone()).await?;
    // Two connections: one serves and may publish to inboxes only, the other appends.
    let serving = config.nats.connect("serve", SERVICES_INBOX).await?;
    let appending = config.nats.connect("append", SERVICES_INBOX).await?;
    let js = jetstream(appending);
    if config.provision {
        provisioned(&config, &js).await?;
    }
    let log = Log::open(js.clone()).await.context("MARKET is missing: start once with --provision")?;
    let (settings, key) = (config.settings(), config.nats.signing_key("append")?);
    let snapshots = WorldSnapshots::open(&js, log.clone(), key, &settings).await;
    let found = async { if config.snapshot_every > 0 { snapshots.found().await } else { World::default() } };
    let world = Box::pin(shutdown.run_until_cancelled(found)).await.context("stopped while starting")?;
    let executor = Executor {
        log: log.clone(),
        replica: Arc::new(Replica::new(world)),
        clock: Arc::new(SystemClock),
        settings: Arc::new(settings),
        locks: AggregateLocks::default(),
    };
    let replica_id = CommandId::generate().to_string();
    let tasks = TaskTracker::new();
    let (replica, settings, stop) = (Arc::clone(&executor.replica), Arc::clone(&executor.settings), shutdown.clone());
    tasks.spawn(async move { replica.fold(&log, &settings, stop).await });
    let last = executor.log.last_seq().await?;
    let mut folded = executor.replica.changes();
    // A long log takes longer than any command would wait.
    tokio::select! {
        () = shutdown.cancelled() => anyhow::bail!("stopped while catching up"),
        reached = folded.wait_for(|applied| *applied >= last) => reached.map(drop)?,
    }

    let keys = &config.nats.nats_creds;
    let secrets = JobEnv::open(&js, Sealing::open(keys)?).await.context("the bucket of secrets")?;
    look_after(&config, &executor, &replica_id, snapshots, secrets.clone(), &tasks, &shutdown);

    let files = files(&config)?;
    let log_js = executor.log.jetstream();
    let issuer = Arc::new(Issuer::open(keys, Duration::from_secs(config.credential_life))?);
    let enrollments = Enrollments::open(&log_js).await.context("the bucket of enrollments")?;
    let (replica, clock) = (Arc::clone(&executor.replica), Arc::clone(&executor.clock));
    let revoker = Revoker::open(&config.nats, enrollments, log_js, replica, clock, issuer.life()).await?;
    tasks.spawn(revoker.clone().work(shutdown.clone()));
    let server =
        Server::start(&serving, "gpubnb-services", shutdown.clone()).await.map_err(anyhow::Error::from_boxed)?;
    Box::pin(endpoint::serve(
        &server,
        Endpoints {
            executor,
            files,
            issuer,
            revoker,
            secrets,
            dead_letters: Arc::default(),
            machine_rate: endpoint::machine_rate(),
        },
    ))
    .await
    .map_err(anyhow::Error::from_boxed)?;
    if let Some(path) = &config.ready_file {
        std::fs::write(path, &replica_id).with_context(|| format!("writing {}", path.display()))?;
    }
    ready.set();
    info!(replica = replica_id, "ready");

    shutdown.cancelled().await;
    server.finish().await;
    tasks.close();
    tasks.wait().await;
    info!("stopped");
    Ok(())
}

/// Spawns what no command asks for: leadership, the process managers, what is kept and what is measured.
fn look_after(
    config: &Config,
    executor: &Executor,
    replica_id: &str,
    snapshots: WorldSnapshots,
    secrets: JobEnv,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) {
    let (leadership, js) = (Leadership::default(), executor.log.jetstream());
    let (replica, clock) = (Arc::clone(&executor.replica), Arc::clone(&executor.clock));
    let (held, held_js, holder, stop) = (leadership.clone(), js.clone(), replica_id.to_owned(), shutdown.clone());
    tasks.spawn(async move { held.hold(held_js, holder, stop).await });
    tasks.spawn(manage(executor.clone(), secrets, leadership.clone(), shutdown.clone()));
    tasks.spawn(snapshots.keep(Arc::clone(&replica), leadership.clone(), config.snapshot_every, shutdown.clone()));
    tasks.spawn(gauges::take(replica, clock, leadership.clone(), shutdown.clone()));
    let patience = SilenceLimits { suspect_after: config.suspect_after, lost_after: config.lost_after };
    let (executor, replica_id, streams) = (executor.clone(), replica_id.to_owned(), config.streams());
    tasks.spawn(watch(executor, js, leadership, replica_id, patience, streams, shutdown.clone()));
}

/// Where workers get and put files, if the edge has an address for them.
fn files(config: &Config) -> anyhow::Result<Option<Files>> {
    let Some(url) = &config.edge_url else { return Ok(None) };
    let path = config.nats.nats_creds.join("transfer.key");
    let key = TransferKey::read(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok(Some(Files { url: url.trim_end_matches('/').to_owned(), key }))
}
