//! `submit_rate`: the number of jobs per second that 64 clients submit through the command endpoint, each with its own
//! account. The baseline is plain publishes by 64 clients, which the broker guards and writes to disk in the same way.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream::{self, message::PublishMessage, stream::Config};
use gpubnb_events::{
    AccountId, Actor, CommandId, JobId, MicroUsd, Seconds,
    command::{Deposit, Done, OpenAccount, SubmitJob, Submitted},
    spec::Placement,
    subject, template,
};
use gpubnb_runtime::rpc::Caller;
use tokio::{task::JoinSet, time::Instant};

use super::{RawBroker, report::Figure};
use crate::system::{MarketSettings, System};

const CLIENTS: usize = 64;
const ROUNDS: usize = 4;
/// Length of a round.
const ROUND: Duration = Duration::from_secs(4);

pub(super) async fn measure() -> anyhow::Result<Vec<Figure>> {
    let system = System::start(MarketSettings::default()).await?;
    let caller = Caller::new(system.nats_args("ui").connect("ui", subject::UI_INBOX).await?);
    let raw = RawBroker::start(true).await?;
    let js = jetstream::new(raw.client.clone());
    let stream = Config { name: "RAW".to_owned(), subjects: vec!["raw.>".to_owned()], ..Config::default() };
    js.create_stream(stream).await?;
    let mut accounts = Vec::new();
    for _ in 0..CLIENTS {
        accounts.push(open_account(&caller).await?);
    }
    let (mut ours, mut base) = (Vec::new(), Vec::new());
    let mut published = vec![0_u64; CLIENTS];
    for _ in 0..ROUNDS {
        base.push(raw_round(&js, &mut published).await?);
        ours.push(submit_round(&caller, &accounts).await?);
    }
    let figure = Figure::new(
        "submit_rate",
        (super::quantile(&mut ours, 0.5), "jobs/s"),
        ("raw guarded publishes, 64 clients", super::quantile(&mut base, 0.5)),
        ROUNDS,
        (">= 0.4", |f| f.ratio >= 0.4),
    );
    Ok(vec![figure])
}

/// Opens an account and deposits play money.
async fn open_account(caller: &Caller) -> anyhow::Result<AccountId> {
    let account = AccountId::generate();
    let actor = Actor::Account(account);
    let _: Done = caller.call(subject::command("account", "open"), actor, &OpenAccount {}).await?;
    let deposit = Deposit { deposit: CommandId::generate(), amount: MicroUsd::dollars(100_000) };
    let _: Done = caller.call(subject::command("account", "deposit"), actor, &deposit).await?;
    Ok(account)
}

fn submission() -> Option<SubmitJob> {
    let template = template::find("noop")?;
    Some(SubmitJob {
        job: JobId::generate(),
        spec: template.spec("bench"),
        placement: Placement::default(),
        time: Seconds(60),
        budget: Some(MicroUsd(10_000)),
        max_attempts: None,
        queue: None,
        env: std::collections::BTreeMap::new(),
    })
}

/// Submits jobs for one round. Returns the jobs per second.
async fn submit_round(caller: &Caller, accounts: &[AccountId]) -> anyhow::Result<f64> {
    let began = Instant::now();
    let mut clients = JoinSet::new();
    for account in accounts.iter().copied() {
        let caller = caller.clone();
        clients.spawn(async move {
            let mut done = 0_u64;
            while began.elapsed() < ROUND {
                let Some(body) = submission() else { break };
                let answer: Result<Submitted, _> =
                    caller.call(subject::command("job", "submit"), Actor::Account(account), &body).await;
                answer.map_err(anyhow::Error::new)?;
                done += 1;
            }
            anyhow::Ok(done)
        });
    }
    rate(clients, began).await
}

/// Publishes guarded messages for one round. `published` holds the last sequence of each client's subject. Returns the
/// messages per second.
async fn raw_round(js: &jetstream::Context, published: &mut [u64]) -> anyhow::Result<f64> {
    let began = Instant::now();
    let mut clients = JoinSet::new();
    let body = Arc::new(serde_json::to_vec(&submission())?);
    let before = published.to_vec();
    let (sent, mut received) = tokio::sync::mpsc::unbounded_channel();
    for (client, mut last) in before.into_iter().enumerate() {
        let (js, body, sent) = (js.clone(), Arc::clone(&body), sent.clone());
        clients.spawn(async move {
            let mut done = 0_u64;
            while began.elapsed() < ROUND {
                let message = PublishMessage::build()
                    .payload(body.as_slice().to_vec().into())
                    .message_id(JobId::generate().to_string())
                    .expected_last_subject_sequence(last);
                last = js.send_publish(format!("raw.{client}"), message).await?.await?.sequence;
                done += 1;
            }
            sent.send((client, last))?;
            anyhow::Ok(done)
        });
    }
    drop(sent);
    let measured = rate(clients, began).await;
    while let Some((client, last)) = received.recv().await {
        if let Some(sequence) = published.get_mut(client) {
            *sequence = last;
        }
    }
    measured
}

/// Waits for all clients. Returns the number of their operations per second.
async fn rate(mut clients: JoinSet<anyhow::Result<u64>>, began: Instant) -> anyhow::Result<f64> {
    let mut all = 0;
    while let Some(done) = clients.join_next().await {
        all += done??;
    }
    // The count is so small that the conversion is exact.
    #[allow(clippy::cast_precision_loss)]
    Ok(all as f64 / began.elapsed().as_secs_f64())
}
