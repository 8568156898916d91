//! Puts the worker together: identity, hardware, listing, and the loops.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use gpubnb_events::{
    HourlyRate,
    command::{ListMachine, Listed},
    nats::{NatsArgs, jetstream},
    rpc::Caller,
    spec::{Offer, OwnerPolicy},
    subject::machine_inbox,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::info;

use crate::{
    attempt::{self, Images, Tools},
    config::RunArgs,
    dispatch, docker,
    gpu::Gpus,
    hand::Hand,
    hardware,
    heartbeat::beat,
    identity::Identity,
    platform::Platform,
    sync::reconcile,
};

/// Works until shutdown. Containers that run then go on, and are taken up again at the next start.
pub async fn run(nats: NatsArgs, args: RunArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    let identity = Identity::open(&args.state)?;
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
    let client = nats.connect("machine", &machine_inbox(machine)).await?;
    let js = jetstream(client.clone());
    let platform = Platform::new(Caller::new(client.clone()), machine);
    let list = ListMachine { owner: args.owner, offer };
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
    });
    let tasks = TaskTracker::new();
    let every = Duration::from_secs(args.heartbeat);
    tasks.spawn(beat(client, machine, gpus, Arc::clone(&tools.hand), every, shutdown.clone()));
    attempt::take_up_again(&tools, &tasks, &shutdown).await.context("looking for jobs that still run")?;
    tasks.spawn(reconcile(platform, Arc::clone(&tools.hand), shutdown.clone()));
    tasks.spawn(dispatch::pull(js, listed, tools, tasks.clone(), shutdown.clone()));

    shutdown.cancelled().await;
    tasks.close();
    tasks.wait().await;
    info!("stopped; jobs that run go on and are taken up again at the next start");
    Ok(())
}
