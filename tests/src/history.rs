//! Writes invented events into the log as fast as the broker takes them, for tests and benchmarks of long logs.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::{HeaderMap, jetstream};
use gpubnb_events::{
    AccountId, Clock as _, Event, HourlyRate, JobId, Lease, MachineId, MicroUsd, Millis, Seconds, Seq, SystemClock,
    event::{
        Accepted, AccountOpened, Completed, FundsDeposited, JobAssigned, JobSubmitted, MachineListed, Settled, Started,
    },
    ledger::{LedgerAccount, Posting},
    message::header,
    spec::{
        Gpu, Hardware, Limits, Mebibytes, Metering, Offer, OwnerPolicy, Placement, PlacementExplanation, Terms, Usage,
    },
    subject::{self, SERVICES_INBOX},
    template,
};
use gpubnb_runtime::nats;

use crate::market::Market;

const ACCOUNTS: usize = 2_000;
const MACHINES: usize = 500;
/// Largest number of publishes that wait for the broker's ack at the same time.
const MAX_PENDING_ACKS: usize = 1_000;
/// How long one ack may take. A slow disk is no reason to give up, since nobody waits for these events.
const MAX_WAIT_FOR_ACK: Duration = Duration::from_secs(60);

/// Writes accounts, machines and completed jobs until the log has about `events` events. Returns the log's last
/// sequence. The services must be stopped: the leases in the events are computed in advance from the sequences, so
/// nobody else may append an event.
pub async fn write(market: &Market, events: u64) -> anyhow::Result<Seq> {
    let mut js = nats::jetstream(market.nats_args("services").connect("append", SERVICES_INBOX).await?);
    js.set_timeout(MAX_WAIT_FOR_ACK);
    let log = gpubnb_log::Log::open(js.clone()).await?;
    let mut next = log.last_seq().await?.0 + 1;
    let accounts: Vec<_> = (0..ACCOUNTS).map(|_| AccountId::generate()).collect();
    let machines: Vec<_> = (0..MACHINES).map(|_| MachineId::generate()).collect();
    let provider = accounts[0];
    let opened = accounts.iter().flat_map(|account| {
        let (deposit, amount) = (gpubnb_events::CommandId::generate(), MicroUsd::dollars(1_000));
        [AccountOpened { account: *account }.into(), FundsDeposited { account: *account, deposit, amount }.into()]
    });
    let listed = machines.iter().map(|machine| {
        let offer = offer(7);
        MachineListed { machine: *machine, owner: provider, public_key: None, offer }.into()
    });
    let mut acks = Vec::new();
    let mut jobs = 0_usize;
    let mut batch: Vec<Event> = opened.chain(listed).collect();
    while next < events {
        for event in batch.drain(..) {
            acks.push(publish(&js, &event, next).await?);
            next += 1;
        }
        if acks.len() >= MAX_PENDING_ACKS {
            for ack in acks.drain(..) {
                ack.await?;
            }
        }
        let (account, machine) = (accounts[jobs % ACCOUNTS], machines[jobs % MACHINES]);
        batch.extend(job_events(account, provider, machine, Seq(next))?);
        jobs += 1;
    }
    for ack in acks {
        ack.await?;
    }
    Ok(log.last_seq().await?)
}

/// Publishes an event without a guard. The sequence makes the message's id unique.
pub(crate) async fn publish(
    js: &jetstream::Context,
    event: &Event,
    seq: u64,
) -> anyhow::Result<jetstream::context::PublishAckFuture> {
    let mut headers = HeaderMap::new();
    headers.insert(header::ID, format!("bench.{seq}"));
    headers.insert(header::TYPE, event.wire_name());
    headers.insert(header::ACTOR, "platform");
    let body = serde_json::to_vec(event)?;
    Ok(js.publish_with_headers(subject::address(event).subject, headers, body.into()).await?)
}

/// The six events of a completed job, from `JobSubmitted` to `Settled`. The first event gets the sequence `seq`.
pub(crate) fn job_events(
    account: AccountId,
    provider: AccountId,
    machine: MachineId,
    seq: Seq,
) -> anyhow::Result<[Event; 6]> {
    let template = template::find("noop").context("the template is missing")?;
    let job = JobId::generate();
    let hold = MicroUsd(10_000);
    let lease = Lease(seq.next());
    let terms = Terms { price: HourlyRate(MicroUsd(360_000)), fee_basis_points: 1_000, provider };
    let spec = template.spec("bench");
    let limits = Limits { time: Seconds(60), budget: hold, max_attempts: 3, queue: Seconds(600), max_price: None };
    let placement = Placement::default();
    let why = PlacementExplanation { candidates: 1, rejected: Vec::new(), chosen: None };
    let run = Millis(1_000);
    let (cost, fee) = (MicroUsd(100), MicroUsd(10));
    let metering = Metering {
        broker: run,
        worker: Some(run),
        limit: Millis(60_000),
        budget: Some(Millis(100_000)),
        billed: run,
        started: Seq(seq.0 + 3),
        ended: Seq(seq.0 + 4),
    };
    let posting = |account, amount| Posting { account, amount };
    let settled = Settled {
        rule: 2,
        job,
        consumer: account,
        provider: Some(provider),
        submission: seq,
        lease: Some(lease),
        outcome: Seq(seq.0 + 4),
        metering: Some(metering),
        cost,
        fee,
        earned: cost - fee,
        postings: vec![
            posting(LedgerAccount::Held(account), -hold),
            posting(LedgerAccount::Available(account), hold - cost),
            posting(LedgerAccount::Available(provider), cost - fee),
            posting(LedgerAccount::Fees, fee),
        ],
    };
    let occurred_at = SystemClock.now();
    Ok([
        JobSubmitted { account, job, spec, placement, limits, hold }.into(),
        JobAssigned { job, submission: seq, machine, terms, placement: why, attempt: 1 }.into(),
        Accepted { job, lease }.into(),
        Started { job, lease, image_digest: "sha256:0".to_owned() }.into(),
        Completed {
            job,
            lease,
            outputs: Vec::new(),
            left_out: Vec::new(),
            usage: Usage { run },
            traffic: None,
            occurred_at,
            signature: None,
            log: None,
        }
        .into(),
        settled.into(),
    ])
}

/// The offer of an invented machine with one GPU. The number determines its GPU model, region and price.
pub(crate) fn offer(number: u32) -> Offer {
    let gpu = Gpu {
        uuid: format!("GPU-{number}"),
        model: ["NVIDIA GeForce RTX 4090", "NVIDIA RTX A6000", "NVIDIA H100"][number as usize % 3].to_owned(),
        memory: Mebibytes(24_576),
        capability: Some("8.9".to_owned()),
        pci: None,
    };
    Offer {
        name: format!("machine {number}"),
        region: format!("region-{}", number % 12),
        hardware: Hardware {
            cpu_model: "bench".to_owned(),
            cpu_cores: 16,
            memory: Mebibytes(65_536),
            disk: Mebibytes(200_000),
            gpus: vec![gpu],
            driver: Some("570.10".to_owned()),
            cuda: Some("12.8".to_owned()),
            simulated: true,
        },
        price: HourlyRate(MicroUsd(100_000 + i64::from(number % 997) * 1_000)),
        slots: 1,
        policy: OwnerPolicy::default(),
    }
}
