//! Puts the worker together: identity, credential, hardware, listing, and the loops.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use gpubnb_events::{
    HourlyRate,
    command::{LeaseWish, ListMachine, Listed},
    nats::machine_jetstream,
    rpc::Caller,
    spec::{Offer, OwnerPolicy},
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::info;

use crate::{
    attempt::{self, Images, Tools},
    config::{EnrollArgs, RunArgs},
    credential::Credential,
    dispatch, docker,
    gpu::Gpus,
    hand::Hand,
    hardware,
    heartbeat::beat,
    identity::{Enrollment, Identity},
    market::{Market, http},
    platform::Platform,
    sync::reconcile,
};

/// How long attempts may take to end when the machine may not speak any more.
const AFTER_REVOCATION: Duration = Duration::from_secs(15);

/// Trades a one-time code for this machine's right to work.
pub async fn enroll(state: &Path, args: &EnrollArgs) -> anyhow::Result<()> {
    let identity = Identity::open(state)?;
    let market_ca = args.market_ca.as_deref().map(std::path::absolute).transpose()?;
    let market = Market::new(http(&args.market, market_ca.as_deref())?, &args.market);
    let enrolled = market.enroll(&identity.keys, identity.machine, &args.code).await?;
    identity.enrolled(&Enrollment { market: args.market.clone(), market_ca })?;
    println!("Machine {} is enrolled for account {}.", identity.machine, enrolled.credential.owner);
    println!("Next: gpubnb-provider run --name \"my machine\" --price 0.10");
    Ok(())
}

/// Works until shutdown. Containers that run then go on, and are taken up again at the next start.
pub async fn run(state: &Path, args: RunArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    let identity = Arc::new(Identity::open(state)?);
    let enrollment = identity.enrollment()?;
    let machine = identity.machine;
    let docker = docker::connect().await.context("Docker does not answer: is dockerd running, and may you use it?")?;
    let gpus = Arc::new(Gpus::probe(args.simulate_gpus, args.nvml.as_deref()));
    let offer = Offer {
        name: args.name.clone(),
        region: args.region.clone(),
        hardware: hardware::probe(&identity.state, &gpus)?,
        price: HourlyRate(args.price),
        slots: args.slots,
        policy: OwnerPolicy { may_evict: false, egress: args.allow_egress },
    };
    let http = http(&enrollment.market, enrollment.market_ca.as_deref())?;
    let market = Market::new(http.clone(), &enrollment.market);
    let credential = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        credential = Credential::obtain(Arc::clone(&identity), market) => credential?,
    };
    let (told, connects) = watch::channel(0);
    let client = credential.connect(told).await?;
    let js = machine_jetstream(client.clone());
    let platform = Platform::new(Caller::new(client.clone()), machine);
    let list = ListMachine { offer };
    let listed = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        listed = platform.insist::<Listed>("list", &list) => listed,
    };
    let listed = match listed {
        Ok(listed) => listed,
        Err(refusal) => bail!("the market does not list this machine: {refusal}"),
    };
    info!(%machine, gpus = list.offer.hardware.gpus.len(), "listed");

    let tools = Arc::new(Tools {
        machine,
        docker,
        images: Images::default(),
        js: js.clone(),
        platform: platform.clone(),
        hand: Arc::new(Hand::new(args.slots)),
        leases: identity.state.join("leases"),
        hardware: list.offer.hardware,
        runtime: args.runtime.clone(),
        max_log: args.max_log_mib << 20,
        http,
        identity,
    });
    let hand = Arc::clone(&tools.hand);
    let tasks = TaskTracker::new();
    let every = Duration::from_secs(args.heartbeat);
    tasks.spawn(beat(client.clone(), machine, gpus, Arc::clone(&hand), every, shutdown.clone()));
    attempt::take_up_again(&tools, &tasks, &shutdown).await.context("looking for jobs that still run")?;
    tasks.spawn(reconcile(platform, Arc::clone(&hand), shutdown.clone()));
    tasks.spawn(dispatch::pull(js, connects, listed, tools, tasks.clone(), shutdown.clone()));

    let revoked = credential.keep_fresh(&client, &shutdown).await;
    if revoked.is_some() {
        give_up(&hand).await;
        shutdown.cancel();
    }
    tasks.close();
    tasks.wait().await;
    if let Some(why) = revoked {
        return Err(why.context("this machine may not work on the market any more"));
    }
    info!("stopped; jobs that run go on and are taken up again at the next start");
    Ok(())
}

/// Nothing that this machine still runs counts: it is stopped and removed.
async fn give_up(hand: &Hand) {
    for held in hand.leases() {
        hand.wish(held.lease, LeaseWish::Abandon);
    }
    let deadline = tokio::time::Instant::now() + AFTER_REVOCATION;
    while !hand.leases().is_empty() && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
