//! Puts a replica together and takes it apart again.

use std::sync::Arc;

use anyhow::Context as _;
use gpubnb_events::{
    CommandId, Log, SystemClock, nats::jetstream, rpc::Server, stream::provision, subject::SERVICES_INBOX,
    transfer::TransferKey,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::info;

use crate::{
    config::Config,
    endpoint::{self, Endpoints, Upload},
    execute::Executor,
    process::{Leadership, Patience, manage, watch},
    turns::Turns,
    view::View,
};

/// Runs one replica until shutdown.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    // Two connections: one serves and may publish to inboxes only, the other appends.
    let serving = config.nats.connect("serve", SERVICES_INBOX).await?;
    let appending = config.nats.connect("append", SERVICES_INBOX).await?;
    let js = jetstream(appending);
    if config.provision {
        // Streams are another credential's affair: this connection is closed again at once.
        let bootstrap = config.nats.connect("bootstrap", SERVICES_INBOX).await?;
        provision(&jetstream(bootstrap), &config.streams()).await?;
    }
    let log = Log::open(js.clone()).await.context("MARKET is missing: start once with --provision")?;
    let executor = Executor {
        log: log.clone(),
        view: Arc::new(View::new()),
        clock: Arc::new(SystemClock),
        settings: Arc::new(config.settings()),
        turns: Turns::default(),
    };
    let replica = CommandId::generate().to_string();
    let tasks = TaskTracker::new();
    let (view, settings, stop) = (Arc::clone(&executor.view), Arc::clone(&executor.settings), shutdown.clone());
    tasks.spawn(async move { view.fold(&log, &settings, stop).await });
    while executor.catch_up().await.map_err(anyhow::Error::new)? {
        anyhow::ensure!(!shutdown.is_cancelled(), "stopped while catching up");
    }

    let leadership = Leadership::default();
    let held = leadership.clone();
    let (held_js, held_replica, stop) = (js.clone(), replica.clone(), shutdown.clone());
    tasks.spawn(async move { held.hold(held_js, held_replica, stop).await });
    tasks.spawn(manage(executor.clone(), leadership.clone(), shutdown.clone()));
    let patience = Patience { suspect_after: config.suspect_after, lost_after: config.lost_after };
    tasks.spawn(watch(executor.clone(), js, leadership, replica.clone(), patience, config.streams(), shutdown.clone()));

    let upload = match (&config.edge_url, &config.transfer_key) {
        (Some(url), Some(path)) => {
            let key = TransferKey::read(path).with_context(|| format!("reading {}", path.display()))?;
            Some(Upload { url: url.trim_end_matches('/').to_owned(), key })
        }
        _ => None,
    };
    let server =
        Server::start(&serving, "gpubnb-services", shutdown.clone()).await.map_err(anyhow::Error::from_boxed)?;
    endpoint::serve(&server, Endpoints { executor, upload }).await.map_err(anyhow::Error::from_boxed)?;
    info!(replica, "ready");

    shutdown.cancelled().await;
    server.finish().await;
    tasks.close();
    tasks.wait().await;
    info!("stopped");
    Ok(())
}
