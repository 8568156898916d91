//! The start of the process: connecting to the broker, opening buckets and object stores, and printing the invitation
//! for the first operator.

use std::{fs, sync::Arc, time::Duration};

use anyhow::Context as _;
use async_nats::jetstream::{Context, kv::Store};
use gpubnb_dialer::Dialer;
use gpubnb_events::{Clock as _, Millis, SystemClock, subject::UI_INBOX};
use gpubnb_files::Files;
use gpubnb_log::stream::{
    ARTIFACTS, ARTIFACTS_KEPT, CREDENTIALS, DATASETS, INPUTS, INPUTS_KEPT, NOTIFICATIONS, SESSIONS, UPLOADS,
};
use gpubnb_query::QueryClient;
use gpubnb_registry::Registries;
use gpubnb_runtime::{
    monitor,
    nats::{NatsArgs, jetstream},
    permit::PermitKey,
    rpc::Caller,
};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::info;

use crate::{
    access::{OpenStreams, RateLimits, Rates, Sessions, Users},
    app::{App, Broker},
    config::RunArgs,
    image_names::ImageNames,
    serve::serve,
    state::{Changes, Datasets, MachineCache, Notifications, RecentSums, Uploads, WorkerProgram, watch_stores},
    templates::Templates,
};

/// The time for which an invitation of an operator is valid.
const INVITE_LIFE: Millis = Millis(3_600_000);
/// The maximum number of searches through logs at the same time.
const MAX_SEARCHES: usize = 4;
/// The end of an error message about a missing bucket.
const MISSING: &str = "is missing: start gpubnb-services with --provision first";

/// Serves until shutdown.
pub async fn run(nats: NatsArgs, args: RunArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    let ready = monitor::start(&args.monitor, "gpubnb-ui", shutdown.clone()).await?;
    let client = nats.connect("ui", UI_INBOX).await?;
    let js = jetstream(client.clone());
    let caller = Caller::new(client.clone());
    let key = nats.nats_creds.join("transfer.key");
    let users = open_users(&js).await?;
    if users.is_first_run().await.map_err(|p| anyhow::anyhow!(p.detail))? {
        let scheme = if args.tls_cert.is_some() { "https" } else { "http" };
        print_link(&users, &format!("{scheme}://{}", args.listen)).await?;
    }
    let authority = nats.nats_ca.as_ref().map(fs::read_to_string).transpose().context("reading --nats-ca")?;
    let (changes, machines, queries) = (Changes::new(), MachineCache::new(), QueryClient::new(caller.clone()));
    let tasks = TaskTracker::new();
    tasks.spawn(changes.clone().listen(client, machines.clone(), shutdown.clone()));
    tasks.spawn(machines.clone().run(queries.clone(), shutdown.clone()));
    let inputs = open_files(&js, &args, INPUTS, args.files_inputs_gib, INPUTS_KEPT).await?;
    let artifacts = open_files(&js, &args, ARTIFACTS, args.files_artifacts_gib, ARTIFACTS_KEPT).await?;
    tasks.spawn(watch_stores([(INPUTS, inputs.clone()), (ARTIFACTS, artifacts.clone())], shutdown.clone()));
    let sessions = Sessions::new(bucket(&js, SESSIONS).await?);
    let uploads = Uploads::new(bucket(&js, UPLOADS).await?, Arc::new(SystemClock), [INPUTS, ARTIFACTS]);
    let notifications = Notifications::new(bucket(&js, NOTIFICATIONS).await?, js.clone());
    let datasets = Datasets::new(bucket(&js, DATASETS).await?);
    tasks.spawn(datasets.clone().listen(shutdown.clone()));
    tasks.spawn(notifications.clone().listen(shutdown.clone()));
    tasks.spawn(users.clone().listen(shutdown.clone()));
    tasks.spawn(sessions.clone().listen(shutdown.clone()));
    let terms = args.terms.as_ref().map(fs::read_to_string).transpose().context("reading --terms")?;
    let permit_key = PermitKey::read(&key).with_context(|| format!("reading {}", key.display()))?;
    let templates = Arc::new(Templates::open(args.templates.clone()));
    tasks.spawn(Arc::clone(&templates).watch(shutdown.clone()));
    let app = App {
        templates,
        image_names: Arc::new(image_names(&args)),
        webhook_host: args.webhook_host.as_deref().map(Into::into),
        terms: terms.unwrap_or_default().into(),
        url: args.url.as_ref().map(|url| url.as_str().trim_end_matches('/').into()),
        passkeys: users.passkeys(permit_key.clone(), args.url.as_ref())?,
        sign_ins: users.sign_ins(),
        links: users.links(),
        users,
        sessions,
        notifications,
        rate_limits: RateLimits::new(rates(&args)),
        streams: OpenStreams::default(),
        worker: WorkerProgram::new(args.worker.clone()),
        uploads,
        datasets,
        behind_proxy: args.behind_proxy,
        broker: Broker { url: args.machines_nats.clone().unwrap_or_else(|| nats.nats.clone()), authority },
        queries,
        caller,
        artifacts,
        inputs,
        js,
        searches: Arc::new(Semaphore::new(MAX_SEARCHES)),
        changes,
        ledger_sums: RecentSums::default(),
        machines,
        permit_key,
        clock: Arc::new(SystemClock),
    };
    ready.set();
    serve(app, &args, shutdown).await?;
    tasks.close();
    tasks.wait().await;
    info!("stopped");
    Ok(())
}

fn rates(args: &RunArgs) -> Rates {
    Rates {
        requests_per_second: args.requests_per_second,
        sign_ins_per_minute: args.sign_ins_per_minute,
        sign_ups_per_minute: args.sign_ups_per_minute,
    }
}

fn image_names(args: &RunArgs) -> ImageNames {
    // Another part of the process may have installed it.
    drop(rustls::crypto::ring::default_provider().install_default());
    let registries = Registries { dialer: Dialer::default(), private: args.private_registry.clone() };
    ImageNames::new(registries, args.approve_image.clone(), Arc::new(SystemClock))
}

/// Opens a store of files: in the broker, or where `--files` says.
async fn open_files(js: &Context, args: &RunArgs, name: &str, gib: u64, kept: Duration) -> anyhow::Result<Files> {
    let Some(address) = &args.files else {
        return Files::in_broker(js, name).await.with_context(|| format!("{name} {MISSING}"));
    };
    let environment =
        std::env::vars_os().filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
    let kept = Millis(kept.as_millis().try_into().unwrap_or(u64::MAX));
    let files = Files::at(address, &name.to_ascii_lowercase(), gib << 30, kept, environment);
    let files = files.with_context(|| format!("opening {address}"))?;
    // A wrong key or address is better known now than at the first upload.
    files.check().await.with_context(|| format!("writing to {address}"))?;
    Ok(files)
}

/// Opens a bucket.
async fn bucket(js: &Context, name: &str) -> anyhow::Result<Store> {
    js.get_key_value(name).await.with_context(|| format!("{name} {MISSING}"))
}

/// Opens the bucket of the users.
async fn open_users(js: &Context) -> anyhow::Result<Users> {
    Ok(Users::new(bucket(js, CREDENTIALS).await?))
}

/// Prints a link that makes the first user who accepts it an operator.
pub async fn operator_link(nats: NatsArgs, url: &str) -> anyhow::Result<()> {
    let js = jetstream(nats.connect("ui", UI_INBOX).await?);
    print_link(&open_users(&js).await?, url.trim_end_matches('/')).await
}

async fn print_link(users: &Users, url: &str) -> anyhow::Result<()> {
    let invite = users.invite_operator(SystemClock.now().plus(INVITE_LIFE)).await;
    let secret = invite.map_err(|p| anyhow::anyhow!(p.detail))?;
    // The link is secret. It is not logged, because logs are stored and shared.
    println!("The first person who opens this link within an hour becomes an operator: {url}/operator/{secret}");
    Ok(())
}
