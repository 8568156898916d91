//! Puts the process together: connections, buckets, stores, and what prints a link for the first operator.

use std::{fs, sync::Arc};

use anyhow::Context as _;
use async_nats::jetstream::Context;
use gpubnb_events::{Clock as _, Millis, SystemClock, subject::UI_INBOX};
use gpubnb_log::stream::{ARTIFACTS, CREDENTIALS, INPUTS, SESSIONS};
use gpubnb_query::QueryClient;
use gpubnb_runtime::{
    monitor,
    nats::{NatsArgs, jetstream},
    permit::TransferKey,
    rpc::Caller,
};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::info;

use crate::{
    access::{Pace, Paces, People, Sessions, Streams},
    app::{App, Broker},
    config::RunArgs,
    live::{Board, Changes},
    serve::serve,
    transfer::Room,
};

/// How long an invitation to run the platform is good.
const INVITE_LIFE: Millis = Millis(3_600_000);
/// Searches through whole logs at once.
const SEARCHES: usize = 4;
const MISSING: &str = "is missing: start gpubnb-services with --provision first";

/// Serves until shutdown.
pub async fn run(nats: NatsArgs, args: RunArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    let ready = monitor::start(&args.monitor, "gpubnb-ui", shutdown.clone()).await?;
    let client = nats.connect("ui", UI_INBOX).await?;
    let js = jetstream(client.clone());
    let caller = Caller::new(client.clone());
    let key = nats.nats_creds.join("transfer.key");
    let people = people(&js).await?;
    if people.first_run().await.map_err(|p| anyhow::anyhow!(p.detail))? {
        let scheme = if args.tls_cert.is_some() { "https" } else { "http" };
        print_link(&people, &format!("{scheme}://{}", args.listen)).await?;
    }
    let authority = nats.nats_ca.as_ref().map(fs::read_to_string).transpose().context("reading --nats-ca")?;
    let (changes, board, queries) = (Changes::new(), Board::new(), QueryClient::new(caller.clone()));
    let tasks = TaskTracker::new();
    tasks.spawn(changes.clone().listen(client, board.clone(), shutdown.clone()));
    tasks.spawn(board.clone().keep(queries.clone(), shutdown.clone()));
    let sessions = js.get_key_value(SESSIONS).await.with_context(|| format!("SESSIONS {MISSING}"))?;
    let sessions = Sessions::new(sessions);
    tasks.spawn(people.clone().listen(shutdown.clone()));
    tasks.spawn(sessions.clone().listen(shutdown.clone()));
    let app = App {
        people,
        sessions,
        paces: Paces::new(Pace {
            requests_per_second: args.requests_per_second,
            sign_ins_per_minute: args.sign_ins_per_minute,
            sign_ups_per_minute: args.sign_ups_per_minute,
        }),
        streams: Streams::default(),
        room: Room::default(),
        behind_proxy: args.behind_proxy,
        broker: Broker { url: args.machines_nats.clone().unwrap_or_else(|| nats.nats.clone()), authority },
        queries,
        caller,
        artifacts: js.get_object_store(ARTIFACTS).await.with_context(|| format!("ARTIFACTS {MISSING}"))?,
        inputs: js.get_object_store(INPUTS).await.with_context(|| format!("INPUTS {MISSING}"))?,
        js,
        searches: Arc::new(Semaphore::new(SEARCHES)),
        changes,
        board,
        transfer: TransferKey::read(&key).with_context(|| format!("reading {}", key.display()))?,
        clock: Arc::new(SystemClock),
    };
    ready.set();
    serve(app, &args, shutdown).await?;
    tasks.close();
    tasks.wait().await;
    info!("stopped");
    Ok(())
}

async fn people(js: &Context) -> anyhow::Result<People> {
    Ok(People::new(js.get_key_value(CREDENTIALS).await.with_context(|| format!("CREDENTIALS {MISSING}"))?))
}

/// Prints a link that makes whoever opens it first an operator.
pub async fn operator_link(nats: NatsArgs, url: &str) -> anyhow::Result<()> {
    let js = jetstream(nats.connect("ui", UI_INBOX).await?);
    print_link(&people(&js).await?, url.trim_end_matches('/')).await
}

async fn print_link(people: &People, url: &str) -> anyhow::Result<()> {
    let invite = people.invite_operator(SystemClock.now().plus(INVITE_LIFE)).await;
    let secret = invite.map_err(|p| anyhow::anyhow!(p.detail))?;
    // Printed, not logged: logs are kept and passed on.
    println!("Whoever opens this first becomes an operator (within an hour, once): {url}/operator/{secret}");
    Ok(())
}
