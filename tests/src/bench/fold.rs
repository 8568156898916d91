//! `fold_rate`: the number of events per second that are folded into all read models, from the first event on. The
//! baseline is the slower of two limits that are measured in the same run: reading and decoding the same events from
//! the broker, and writing the same rows into sled.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, pull},
    stream::{Config, Stream},
};
use futures_util::StreamExt;
use gpubnb_events::{
    AccountId, Event, MachineId, MicroUsd, Seq,
    event::{AccountOpened, FundsDeposited},
    message::header,
};
use gpubnb_log::Log;
use gpubnb_projector::fold;
use gpubnb_store::Database;
use sled::transaction::TransactionError;
use tokio::time::Instant;

use super::{RawBroker, report::Figure};
use crate::history::{job_events, publish};

/// Jobs in the history. Each job has six events.
const JOBS: u64 = 30_000;
const ACCOUNTS: usize = 200;
const ROUNDS: usize = 3;
/// Messages in one pull request to the broker.
const BATCH: usize = 5_000;
/// sled's cache, MiB. This is the projector's default.
const CACHE_MIB: u64 = 16;

pub(super) async fn measure() -> anyhow::Result<Vec<Figure>> {
    let broker = RawBroker::start(false).await?;
    let js = jetstream::new(broker.client.clone());
    let market = Config {
        name: "MARKET".to_owned(),
        subjects: vec!["market.>".to_owned()],
        allow_direct: true,
        duplicate_window: Duration::from_millis(100),
        ..Config::default()
    };
    let stream = js.create_stream(market).await?;
    println!("fold_rate: writing {} events", JOBS * 6);
    write_history(&js).await?;
    let log = Log::open(js.clone()).await?;
    let last = log.last_seq().await?;
    let (mut fold_rates, mut read_rates, mut sled_rates) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let dir = tempfile::tempdir()?;
        let db = Database::open(dir.path(), CACHE_MIB)?;
        let began = Instant::now();
        let models = fold::catch_up(&log, &db, last).await?;
        fold_rates.push(per_second(last, began));
        anyhow::ensure!(models.states().all(|(_, _, stopped)| stopped.is_none()), "a model stopped");
        let began = Instant::now();
        read_all(&stream, last).await?;
        read_rates.push(per_second(last, began));
        sled_rates.push(write_rows(&db, last)?);
    }
    let (drain, sled) = (super::quantile(&mut read_rates, 0.5), super::quantile(&mut sled_rates, 0.5));
    println!("fold_rate: limits: drain and decode {drain:.0}/s, rows into sled, in transactions, {sled:.0}/s");
    let slower =
        if drain < sled { ("raw decoded drain", drain) } else { ("raw sled transactions writing the rows", sled) };
    let value = (super::quantile(&mut fold_rates, 0.5), "events/s");
    Ok(vec![Figure::new("fold_rate", value, slower, ROUNDS, (">= 0.6", |f| f.ratio >= 0.6))])
}

// The counts are so small that the conversion is exact.
#[allow(clippy::cast_precision_loss)]
fn per_second(events: Seq, began: Instant) -> f64 {
    events.0 as f64 / began.elapsed().as_secs_f64()
}

/// Reads and decodes all events up to the sequence `last`.
async fn read_all(stream: &Stream, last: Seq) -> anyhow::Result<()> {
    let config = pull::Config { ack_policy: AckPolicy::None, ..Default::default() };
    let consumer = stream.create_consumer(config).await?;
    let mut messages = consumer.stream().max_messages_per_batch(BATCH).messages().await?;
    while let Some(message) = messages.next().await {
        let message = message?;
        let headers = message.headers.as_ref().context("a message without headers")?;
        let wire_name = headers.get(header::TYPE).context("a message without a type")?;
        std::hint::black_box(Event::decode(wire_name.as_str(), &message.payload)?);
        if message.info().map_err(anyhow::Error::from_boxed)?.stream_sequence >= last.0 {
            return Ok(());
        }
    }
    anyhow::bail!("the stream ended before the last event")
}

/// Copies the final rows of every model into a new sled database, in as many transactions as the fold used. Returns
/// the events per second. The fold itself writes more, because it changes most rows several times.
fn write_rows(from: &Database, last: Seq) -> anyhow::Result<f64> {
    let dir = tempfile::tempdir()?;
    let mut trees = Vec::new();
    for model in gpubnb_model::all() {
        let rows: Result<Vec<_>, _> = from.current_table(model.model_version())?.all().collect();
        trees.push((model.name(), rows?));
    }
    let db = sled::Config::new().path(dir.path()).cache_capacity(CACHE_MIB << 20).open()?;
    let transactions = usize::try_from(last.0)?.div_ceil(fold::BATCH);
    let began = Instant::now();
    for (name, rows) in trees {
        let tree = db.open_tree(name)?;
        for chunk in rows.chunks(rows.len().div_ceil(transactions).max(1)) {
            let written: Result<(), TransactionError> = tree.transaction(|tree| {
                for (key, value) in chunk {
                    tree.insert(&**key, &**value)?;
                }
                Ok(())
            });
            written?;
        }
    }
    Ok(per_second(last, began))
}

/// Writes the accounts and the jobs into the stream.
async fn write_history(js: &jetstream::Context) -> anyhow::Result<()> {
    let accounts: Vec<_> = (0..ACCOUNTS).map(|_| AccountId::generate()).collect();
    let (machine, provider) = (MachineId::generate(), AccountId::generate());
    let mut next = 1;
    let mut acks = Vec::new();
    for account in &accounts {
        let deposit = gpubnb_events::CommandId::generate();
        let amount = MicroUsd::dollars(1_000);
        for event in
            [AccountOpened { account: *account }.into(), FundsDeposited { account: *account, deposit, amount }.into()]
        {
            acks.push(publish(js, &event, next).await?);
            next += 1;
        }
    }
    for job in 0..JOBS {
        let account = accounts[usize::try_from(job)? % accounts.len()];
        for event in job_events(account, provider, machine, Seq(next))? {
            acks.push(publish(js, &event, next).await?);
            next += 1;
        }
        if acks.len() >= 1_000 {
            for ack in acks.drain(..) {
                ack.await?;
            }
        }
    }
    for ack in acks {
        ack.await?;
    }
    Ok(())
}
