//! Starts the notifier's tasks, and stops them at shutdown.

use std::sync::Arc;

use anyhow::Context as _;
use gpubnb_dialer::{AllowedHost, Dialer};
use gpubnb_events::{SystemClock, subject::NOTIFIER_INBOX};
use gpubnb_log::{Log, stream::NOTIFICATIONS};
use gpubnb_query::QueryClient;
use gpubnb_runtime::{
    monitor,
    nats::{NatsArgs, jetstream},
    rpc::Caller,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::info;

use crate::{
    config::RunArgs,
    mail::{self, Mailer},
    notice::Notices,
    tries::{Tries, start_counters},
    watch::Watch,
    webhook::{self, Sender},
};

/// Sends until shutdown.
pub async fn run(nats: NatsArgs, args: RunArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    // Another part of the process may have installed it.
    drop(rustls::crypto::ring::default_provider().install_default());
    let ready = monitor::start(&args.monitor, "gpubnb-notifier", shutdown.clone()).await?;
    let client = nats.connect("notifier", NOTIFIER_INBOX).await?;
    let js = jetstream(client.clone());
    let missing = || format!("{NOTIFICATIONS} is missing: start gpubnb-services with --provision first");
    let settings = js.get_key_value(NOTIFICATIONS).await.with_context(missing)?;
    let log = Log::open(js.clone()).await.context("MARKET is missing: start gpubnb-services with --provision first")?;
    start_counters();
    let (clock, tries) = (Arc::new(SystemClock), Tries::new(js.clone()));
    let tasks = TaskTracker::new();

    let notices = Notices::new(QueryClient::new(Caller::new(client)), settings.clone());
    let watch = Watch::open(log, js.clone(), settings.clone(), notices, clock.clone()).await?;
    tasks.spawn(watch.run(shutdown.clone()));

    let mut dialer = Dialer::default();
    if let Some(text) = &args.webhook_host {
        let (host, port) = text.rsplit_once(':').context("--webhook-host is HOST:PORT")?;
        let port = port.parse().context("--webhook-host is HOST:PORT")?;
        dialer = dialer.allowing(AllowedHost { host: host.to_owned(), port });
    }
    let sender = Sender::new(dialer, args.webhook_host, settings.clone(), args.url.clone(), clock.clone());
    tasks.spawn(webhook::deliver(js.clone(), Arc::new(sender), tries.clone(), shutdown.clone()));

    if let Some((smtp, from)) = args.smtp.as_ref().zip(args.mail_from) {
        let mailer = Mailer::new(smtp, args.url.clone(), from, settings, clock)?;
        mailer.say_so().await?;
        tasks.spawn(mail::deliver(js, mailer, tries, shutdown.clone()));
    }
    ready.set();
    info!("ready");
    shutdown.cancelled().await;
    tasks.close();
    tasks.wait().await;
    info!("stopped");
    Ok(())
}
