//! A market on three brokers goes on when one of them is killed, or gives up its lead.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use gpubnb_events::{CommandId, subject::SERVICES_INBOX};
use gpubnb_log::stream::{CREDENTIALS, INPUTS, MARKET, SESSIONS, bucket_stream, store_stream};
use gpubnb_runtime::nats::jetstream;
use gpubnb_tests::{
    api_client::ApiClient,
    system::{MarketSettings, System},
    wait::wait_until,
};
use serde_json::{Value, json};

/// The number of the broker that leads MARKET; `None` while there is none.
async fn leader(system: &System) -> Option<usize> {
    let client = system.nats_args("services").connect("append", SERVICES_INBOX).await.ok()?;
    let info = jetstream(client).get_stream(MARKET).await.ok()?.cached_info().clone();
    info.cluster?.leader?.strip_prefix('n')?.parse().ok()
}

/// Deposits $1 again and again, until `stop` is true. A deposit that fails is repeated with the same id. Returns the
/// ids of the deposits, and the longest time between two of them.
async fn deposit_until(consumer: ApiClient, stop: Arc<AtomicBool>) -> (Vec<String>, Duration) {
    let (mut made, mut longest, mut last) = (Vec::new(), Duration::ZERO, Instant::now());
    let session = consumer.browser_session();
    while !stop.load(Ordering::Relaxed) {
        let id = CommandId::generate().to_string();
        while session.post("/wallet/deposits", &json!({ "deposit": id, "amount_usd": "1" })).await.is_err() {
            assert!(last.elapsed() < Duration::from_secs(60), "no deposit for a minute");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        (longest, last) = (longest.max(last.elapsed()), Instant::now());
        made.push(id);
    }
    (made, longest)
}

/// The brokers of MARKET that have all messages, besides its leader.
async fn current_followers(system: &System) -> usize {
    let Ok(client) = system.nats_args("services").connect("append", SERVICES_INBOX).await else { return 0 };
    let Ok(stream) = jetstream(client).get_stream(MARKET).await else { return 0 };
    let replicas = stream.cached_info().cluster.as_ref().map(|cluster| cluster.replicas.clone()).unwrap_or_default();
    replicas.iter().filter(|replica| replica.current && !replica.offline).count()
}

#[tokio::test]
async fn a_broker_that_dies_or_steps_down_loses_and_doubles_nothing() {
    let settings = MarketSettings { brokers: 3, ready_timeout: Duration::from_secs(120), ..MarketSettings::default() };
    let mut system = System::start(settings).await.unwrap();
    wait_until("every broker has the log", async || current_followers(&system).await == 2).await;
    // A broker that lags behind answers no read of a bucket or a store: who just signed in would be a stranger.
    let owner = jetstream(system.nats_args("services").connect("bootstrap", SERVICES_INBOX).await.unwrap());
    for stream in [bucket_stream(SESSIONS), bucket_stream(CREDENTIALS), store_stream(INPUTS)] {
        assert!(!owner.get_stream(&stream).await.unwrap().cached_info().config.allow_direct, "{stream}");
    }
    let load = |system: &System| {
        let stop = Arc::new(AtomicBool::new(false));
        (tokio::spawn(deposit_until(system.consumer.clone(), Arc::clone(&stop))), stop)
    };

    // The leader is killed.
    let killed = leader(&system).await.unwrap();
    let (deposits, stop) = load(&system);
    tokio::time::sleep(Duration::from_secs(2)).await;
    system.brokers[killed].take().unwrap().kill();
    wait_until("another broker leads", async || leader(&system).await.is_some_and(|n| n != killed)).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    stop.store(true, Ordering::Relaxed);
    let (mut made, gap) = deposits.await.unwrap();

    // The broker comes back, and the leader gives up its lead.
    system.start_broker(killed).await.unwrap();
    wait_until("the broker has caught up", async || current_followers(&system).await == 2).await;
    let before = leader(&system).await.unwrap();
    let owner = system.nats_args("services").connect("bootstrap", SERVICES_INBOX).await.unwrap();
    let (deposits, stop) = load(&system);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let answer = owner.request(format!("$JS.API.STREAM.LEADER.STEPDOWN.{MARKET}"), "".into()).await.unwrap();
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert_eq!(answer["success"], true, "{answer}");
    wait_until("another broker leads", async || leader(&system).await.is_some_and(|n| n != before)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.store(true, Ordering::Relaxed);
    let (more, step_down_gap) = deposits.await.unwrap();
    made.extend(more);
    println!("{} deposits; a kill took {gap:?}, a step-down {step_down_gap:?}", made.len());

    // Each deposit that was confirmed is there once.
    let expected = (100 + i64::try_from(made.len()).unwrap()) * 1_000_000;
    let available = async || {
        let wallet = system.consumer.get("/wallet").await.ok()?;
        wallet["balance"]["available"].as_i64()
    };
    wait_until("every deposit is in the wallet", async || available().await.is_some_and(|sum| sum >= expected)).await;
    assert_eq!(available().await, Some(expected));
}
