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
    config::Config,
    credentials::{Issuer, Revoker, Sealing},
    endpoint::{self, Endpoints, Files},
    enrollment::Enrollments,
    execute::Executor,
    gauges,
    process::{Leadership, Patience, manage, watch},
    redispatch,
    secrets::JobEnv,
    snapshot::Keeper,
    turns::Turns,
    view::View,
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
    let keeper = Keeper::open(&js, log.clone(), key, &settings).await;
    let found = async { if config.snapshot_every > 0 { keeper.found().await } else { World::default() } };
    let world = Box::pin(shutdown.run_until_cancelled(found)).await.context("stopped while starting")?;
    let executor = Executor {
        log: log.clone(),
        view: Arc::new(View::new(world)),
        clock: Arc::new(SystemClock),
        settings: Arc::new(settings),
        turns: Turns::default(),
    };
    let replica = CommandId::generate().to_string();
    let tasks = TaskTracker::new();
    let (view, settings, stop) = (Arc::clone(&executor.view), Arc::clone(&executor.settings), shutdown.clone());
    tasks.spawn(async move { view.fold(&log, &settings, stop).await });
    let last = executor.log.last_seq().await?;
    let mut folded = executor.view.changes();
    // A long log takes longer than any command would wait.
    tokio::select! {
        () = shutdown.cancelled() => anyhow::bail!("stopped while catching up"),
        reached = folded.wait_for(|applied| *applied >= last) => reached.map(drop)?,
    }

    let keys = &config.nats.nats_creds;
    let secrets = JobEnv::open(&js, Sealing::open(keys)?).await.context("the bucket of secrets")?;
    look_after(&config, &executor, &replica, keeper, secrets.clone(), &tasks, &shutdown);

    let files = files(&config)?;
    let log_js = executor.log.jetstream();
    let issuer = Arc::new(Issuer::open(keys, Duration::from_secs(config.credential_life))?);
    let enrollments = Enrollments::open(&log_js).await.context("the bucket of enrollments")?;
    let (view, clock) = (Arc::clone(&executor.view), Arc::clone(&executor.clock));
    let revoker = Revoker::open(&config.nats, enrollments, log_js, view, clock, issuer.life()).await?;
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
            letters: Arc::default(),
            pace: endpoint::machine_pace(),
        },
    ))
    .await
    .map_err(anyhow::Error::from_boxed)?;
    if let Some(path) = &config.ready_file {
        std::fs::write(path, &replica).with_context(|| format!("writing {}", path.display()))?;
    }
    ready.set();
    info!(replica, "ready");

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
    replica: &str,
    keeper: Keeper,
    secrets: JobEnv,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) {
    let (leadership, js) = (Leadership::default(), executor.log.jetstream());
    let (view, clock) = (Arc::clone(&executor.view), Arc::clone(&executor.clock));
    let (held, held_js, holder, stop) = (leadership.clone(), js.clone(), replica.to_owned(), shutdown.clone());
    tasks.spawn(async move { held.hold(held_js, holder, stop).await });
    tasks.spawn(manage(executor.clone(), secrets, leadership.clone(), shutdown.clone()));
    tasks.spawn(keeper.keep(Arc::clone(&view), leadership.clone(), config.snapshot_every, shutdown.clone()));
    tasks.spawn(gauges::take(view, clock, leadership.clone(), shutdown.clone()));
    let patience = Patience { suspect_after: config.suspect_after, lost_after: config.lost_after };
    let (executor, replica, streams) = (executor.clone(), replica.to_owned(), config.streams());
    tasks.spawn(watch(executor, js, leadership, replica, patience, streams, shutdown.clone()));
}

/// Where workers get and put files, if the edge has an address for them.
fn files(config: &Config) -> anyhow::Result<Option<Files>> {
    let Some(url) = &config.edge_url else { return Ok(None) };
    let path = config.nats.nats_creds.join("transfer.key");
    let key = TransferKey::read(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok(Some(Files { url: url.trim_end_matches('/').to_owned(), key }))
}
