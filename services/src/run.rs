//! Starts a replica with its tasks, and stops them at shutdown.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use async_nats::jetstream::Context;
use gpubnb_domain::{Settings, World};
use gpubnb_events::{CommandId, SystemClock, spec::Mebibytes, subject::SERVICES_INBOX};
use gpubnb_log::{
    Log,
    stream::{OUTPUTUSE, provision},
};
use gpubnb_runtime::{monitor, nats::jetstream, permit::PermitKey, rpc::Server};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::info;

use crate::{
    account_secrets::AccountSecrets,
    aggregate_lock::AggregateLocks,
    config::Config,
    credentials::{Issuer, Revoker, Sealing},
    endpoint::{self, EndpointContext, FileTransfer},
    enrollment::Enrollments,
    execute::Executor,
    gauges,
    job_output::JobOutput,
    output_room::OutputRooms,
    process::{Leadership, SilenceLimits, manage, watch},
    redispatch,
    replica::Replica,
    secrets::JobSecrets,
    snapshot::WorldSnapshots,
};

/// Runs one replica until shutdown.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let ready = monitor::start(&config.monitor, "gpubnb-services", shutdown.clone()).await?;
    // Three connections: `serve` answers commands and may publish to inboxes only; `append` writes events; `output`
    // writes the output of jobs.
    let serving = config.nats.connect("serve", SERVICES_INBOX).await?;
    let appending = config.nats.connect("append", SERVICES_INBOX).await?;
    let js = jetstream(appending);
    if config.provision {
        provision_streams(&config, &js).await?;
    }
    let tasks = TaskTracker::new();
    let (executor, snapshots) = Box::pin(start_replica(&config, &js, &tasks, &shutdown)).await?;

    let replica_id = CommandId::generate().to_string();
    let sealing = Arc::new(Sealing::open(&config.nats.nats_creds)?);
    let secrets = JobSecrets::open(&js, Arc::clone(&sealing)).await.context("the bucket of jobs' secrets")?;
    let account_secrets = AccountSecrets::open(&js, sealing).await.context("the bucket of accounts' secrets")?;
    spawn_processes(&config, &executor, &replica_id, snapshots, secrets.clone(), &tasks, &shutdown);

    let output = Arc::new(open_output(&config).await?);
    tasks.spawn(Arc::clone(&output).count(Arc::clone(&executor.clock), shutdown.clone()));
    let endpoints = Box::pin(endpoint_context(&config, executor, (secrets, account_secrets), output)).await?;
    tasks.spawn(endpoints.revoker.clone().run(shutdown.clone()));
    let server =
        Server::start(&serving, "gpubnb-services", shutdown.clone()).await.map_err(anyhow::Error::from_boxed)?;
    Box::pin(endpoint::serve(&server, endpoints)).await.map_err(anyhow::Error::from_boxed)?;
    // The subscriptions are sent before anybody is told that this replica is ready.
    serving.flush().await.context("the broker is away")?;
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

/// Creates the missing streams. Only the `bootstrap` credential may change streams; its connection is closed at the end
/// of this function.
async fn provision_streams(config: &Config, js: &Context) -> anyhow::Result<()> {
    let bootstrap = config.nats.connect("bootstrap", SERVICES_INBOX).await?;
    let (owner, streams) = (jetstream(bootstrap), config.streams());
    wait_for_leader(&owner).await;
    redispatch::rebuild_if_lost(js, &owner, &streams, &config.rules.settings()).await?;
    Ok(provision(&owner, &streams).await?)
}

/// Waits until the brokers of a cluster have chosen a leader, at most a minute. Until then they answer no question
/// about streams. A single broker answers at once.
async fn wait_for_leader(js: &Context) {
    const TRIES: u32 = 30;
    for _ in 0..TRIES {
        match js.query_account().await {
            Ok(_) => return,
            Err(e) => info!(error = %e, "waiting until the broker answers questions about streams"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Folds the log, from a snapshot if there is one, until the replica has caught up. The fold then continues as a task.
async fn start_replica(
    config: &Config,
    js: &Context,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> anyhow::Result<(Executor, WorldSnapshots)> {
    let log = Log::open(js.clone()).await.context("MARKET is missing: start once with --provision")?;
    // An account may take a quarter of the store of files, so no output may be larger. But the limit is at least 1 GiB,
    // because a job that names no size of its output asks for 1 GiB.
    let max_output = Mebibytes((config.artifacts_mib / 4).max(1_024).into());
    let settings = Arc::new(Settings { max_output, ..config.rules.settings() });
    let key = config.nats.signing_key("append")?;
    let snapshots = WorldSnapshots::open(js, log.clone(), key, &settings).await;
    let newest = async { if config.snapshot_every > 0 { snapshots.newest().await } else { World::default() } };
    let world = Box::pin(shutdown.run_until_cancelled(newest)).await.context("stopped while starting")?;
    let replica = Arc::new(Replica::new(world));
    let mut applied = replica.watch_applied();
    let last = log.last_seq().await?;
    tasks.spawn({
        let (replica, log, settings, stop) = (replica.clone(), log.clone(), settings.clone(), shutdown.clone());
        async move { replica.fold(&log, &settings, stop).await }
    });
    // A command waits for the fold for a few seconds only, and a long log takes longer.
    tokio::select! {
        () = shutdown.cancelled() => anyhow::bail!("stopped while catching up"),
        caught_up = applied.wait_for(|applied| *applied >= last) => caught_up.map(drop)?,
    }
    let (clock, locks) = (Arc::new(SystemClock), AggregateLocks::default());
    Ok((Executor { log, replica, clock, settings, locks }, snapshots))
}

/// Spawns the background tasks: leadership, the process managers, snapshots and gauges.
fn spawn_processes(
    config: &Config,
    executor: &Executor,
    replica_id: &str,
    snapshots: WorldSnapshots,
    secrets: JobSecrets,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) {
    let (leadership, js) = (Leadership::default(), executor.log.jetstream());
    let (replica, clock) = (Arc::clone(&executor.replica), Arc::clone(&executor.clock));
    let (lead, lead_js, holder, stop) = (leadership.clone(), js.clone(), replica_id.to_owned(), shutdown.clone());
    tasks.spawn(async move { lead.hold(lead_js, holder, stop).await });
    tasks.spawn(manage(executor.clone(), secrets, leadership.clone(), shutdown.clone()));
    tasks.spawn(snapshots.store_periodically(
        Arc::clone(&replica),
        leadership.clone(),
        config.snapshot_every,
        shutdown.clone(),
    ));
    tasks.spawn(gauges::record(replica, clock, leadership.clone(), shutdown.clone()));
    let limits = SilenceLimits { suspect_after: config.suspect_after, lost_after: config.lost_after };
    let (executor, replica_id, streams) = (executor.clone(), replica_id.to_owned(), config.streams());
    tasks.spawn(watch(executor, js, leadership, replica_id, limits, streams, shutdown.clone()));
}

/// Opens the stream of output over a connection of its own.
async fn open_output(config: &Config) -> anyhow::Result<JobOutput> {
    let js = jetstream(config.nats.connect("output", SERVICES_INBOX).await?);
    let bucket = js.get_key_value(OUTPUTUSE).await.context("OUTPUTUSE is missing: start once with --provision")?;
    let kept = config.streams().output;
    let rooms = OutputRooms::new(bucket, u64::from(kept.mib) << 20, kept.age);
    let output = JobOutput::open(js, u64::from(config.job_log_mib) << 20, rooms).await;
    output.context("the stream OUTPUT is missing: start once with --provision")
}

/// The state that the endpoints share.
async fn endpoint_context(
    config: &Config,
    executor: Executor,
    (secrets, account_secrets): (JobSecrets, AccountSecrets),
    output: Arc<JobOutput>,
) -> anyhow::Result<EndpointContext> {
    let (js, keys) = (executor.log.jetstream(), &config.nats.nats_creds);
    let issuer = Arc::new(Issuer::open(keys, Duration::from_secs(config.credential_life))?);
    let enrollments = Enrollments::open(&js).await.context("the bucket of enrollments")?;
    let (replica, clock) = (Arc::clone(&executor.replica), Arc::clone(&executor.clock));
    let revoker = Revoker::open(&config.nats, enrollments, js, replica, clock, issuer.lifetime()).await?;
    let (dead_letters, machine_rate) = (Arc::default(), endpoint::new_machine_rate());
    Ok(EndpointContext {
        executor,
        file_transfer: file_transfer(config)?,
        issuer,
        revoker,
        secrets,
        account_secrets,
        dead_letters,
        output,
        output_rate: endpoint::new_output_rate(),
        machine_rate,
    })
}

/// The address and the key with which workers move files; `None` without `--edge-url`.
fn file_transfer(config: &Config) -> anyhow::Result<Option<FileTransfer>> {
    let Some(url) = &config.edge_url else { return Ok(None) };
    let path = config.nats.nats_creds.join("transfer.key");
    let key = PermitKey::read(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok(Some(FileTransfer { url: url.trim_end_matches('/').to_owned(), key }))
}
