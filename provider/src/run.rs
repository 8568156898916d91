//! Puts the worker together: identity, credential, hardware, listing, and the loops.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use async_nats::Client;
use bollard::Docker;
use gpubnb_events::{
    Clock as _, HourlyRate, Millis, SystemClock,
    command::{Done, ListMachine, Listed, RecordTest},
    event::Check,
    spec::{Hardware, Offer, OwnerPolicy},
};
use gpubnb_runtime::{nats::machine_jetstream, rpc::Caller};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{
    attempt::{self, Allowed, CacheLimits, Images, Outputs, Tools},
    config::{EnrollArgs, RunArgs},
    control::{Desk, Wanted},
    credential::Credential,
    dispatch, docker,
    gpu::Gpus,
    hand::{Hand, Wish},
    hardware,
    heartbeat::beat,
    identity::{Enrollment, Identity},
    market::{Market, http},
    owner::{self, Policy},
    platform::Platform,
    selftest::{self, Measure, Subject},
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
    let docker = docker::connect().await.context("Docker does not answer: is dockerd running, and may you use it?")?;
    let gpus = Arc::new(Gpus::probe(args.simulate_gpus, args.nvml.as_deref()));
    let http = http(&enrollment.market, enrollment.market_ca.as_deref())?;
    let market = Market::new(http.clone(), &enrollment.market);
    let credential = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        credential = Credential::obtain(Arc::clone(&identity), market) => credential?,
    };
    let checks = selftest::test(&Subject {
        state: &identity.state,
        docker: Some(&docker),
        gpus: &gpus,
        market: Some((&http, &enrollment.market)),
        runtime: args.runtime.as_deref(),
        cdi: args.cdi,
        measure: Measure::Kept,
    })
    .await;
    fit(&checks, args.unfit)?;
    let (told, connects) = watch::channel(0);
    let client = credential.connect(told).await?;
    let platform = Platform::new(Caller::new(client.clone()), identity.machine);
    let offer = offer(&args, hardware::probe(&identity.state, &gpus)?);
    let hardware = offer.hardware.clone();
    let list = ListMachine { offer };
    let listed = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        listed = platform.insist::<Listed>("list", &list) => listed,
    };
    let listed = match listed {
        Ok(listed) => listed,
        Err(refusal) => bail!("the market does not list this machine: {refusal}"),
    };
    info!(machine = %identity.machine, gpus = hardware.gpus.len(), "listed");
    // That it is not recorded harms nobody: it is made again at the next start.
    if let Err(e) = platform.ask::<Done>("tested", &RecordTest { checks }).await {
        warn!(error = %e, "the self-test is not recorded");
    }

    let owner = docker::file_owner(&docker).await?;
    let tools = tools(&args, &client, docker, owner, http, identity, hardware);
    tools.outputs.clear().await;
    tools.outputs.bounded().await;
    tools.images.tidy(&tools.docker).await;
    let work = Work {
        args,
        market: enrollment.market,
        tools,
        gpus,
        platform,
        client: client.clone(),
        shutdown: shutdown.clone(),
    };
    let tasks = work.start(listed, connects).await?;
    let revoked = credential.keep_fresh(&client, &shutdown).await;
    if revoked.is_some() {
        give_up(&work.tools.hand).await;
        shutdown.cancel();
    }
    tasks.close();
    tasks.wait().await;
    work.tools.outputs.clear().await;
    if let Some(why) = revoked {
        return Err(why.context("this machine may not work on the market any more"));
    }
    info!("stopped; jobs that run go on and are taken up again at the next start");
    Ok(())
}

/// What its owner allows of images.
fn allowed(args: &RunArgs) -> Allowed {
    let unused = Millis(args.image_days * 24 * 3_600_000);
    Allowed {
        policy: args.images,
        registries: args.registry.clone(),
        largest: args.image_gib << 30,
        cache: CacheLimits { bytes: args.image_cache_gib << 30, unused },
    }
}

/// Whether the machine may be listed.
fn fit(checks: &[Check], although: bool) -> anyhow::Result<()> {
    for check in checks.iter().filter(|check| !check.passed) {
        warn!(check = check.id, actual = check.actual, needed = check.required, "self-test: {}", check.remedy);
    }
    let unfit = selftest::unfit(checks);
    if unfit.is_empty() || although {
        return Ok(());
    }
    let reasons: Vec<_> = unfit.iter().map(|check| format!("{}: {}", check.id, check.remedy)).collect();
    bail!("the machine is not fit, and is not listed (--unfit lists it all the same). {}", reasons.join(" "))
}

fn offer(args: &RunArgs, hardware: Hardware) -> Offer {
    let spare = args.hours.is_some() || args.idle_minutes.is_some();
    Offer {
        name: args.name.clone(),
        region: args.region.clone(),
        hardware,
        price: HourlyRate(args.price),
        slots: args.slots,
        policy: OwnerPolicy {
            may_evict: spare,
            egress: args.allow_egress,
            idle_minutes: args.idle_minutes,
            hours: args.hours.as_ref().map(ToString::to_string),
        },
    }
}

fn tools(
    args: &RunArgs,
    client: &Client,
    docker: Docker,
    owner: (u32, u32),
    http: reqwest::Client,
    identity: Arc<Identity>,
    hardware: Hardware,
) -> Arc<Tools> {
    let machine = identity.machine;
    Arc::new(Tools {
        machine,
        docker,
        images: Images::new(&identity.state, allowed(args)),
        js: machine_jetstream(client.clone()),
        platform: Platform::new(Caller::new(client.clone()), machine),
        hand: Arc::new(Hand::new(args.slots)),
        leases: identity.state.join("leases"),
        hardware,
        runtime: args.runtime.clone(),
        cdi: args.cdi,
        max_log: args.max_log_mib << 20,
        reclaim_grace: Duration::from_secs(args.reclaim_grace.into()),
        outputs: Outputs::new(&identity.state, owner, args.output_quota),
        http,
        identity,
    })
}

/// A worker that is about to begin.
struct Work {
    args: RunArgs,
    market: String,
    tools: Arc<Tools>,
    gpus: Arc<Gpus>,
    platform: Platform,
    client: Client,
    shutdown: CancellationToken,
}

impl Work {
    /// Starts the loops.
    async fn start(&self, listed: Listed, connects: watch::Receiver<u64>) -> anyhow::Result<TaskTracker> {
        let Self { args, tools, gpus, platform, client, shutdown, .. } = self;
        let (tasks, hand, wanted) = (TaskTracker::new(), Arc::clone(&tools.hand), Arc::<Wanted>::default());
        attempt::take_up_again(tools, &tasks, shutdown).await.context("looking for jobs that still run")?;
        let (told, turn) = watch::channel(None);
        let (seen, away) = (Arc::clone(&wanted), turn.clone());
        tasks.spawn(beat(
            client.clone(),
            tools.machine,
            Arc::clone(gpus),
            Arc::clone(&hand),
            move || seen.state(away.borrow().is_some()),
            Duration::from_secs(args.heartbeat),
            shutdown.clone(),
        ));
        let policy = Policy {
            idle: args.idle_minutes.map(|minutes| Duration::from_secs(60 * u64::from(minutes))),
            hours: args.hours.clone(),
        };
        tasks.spawn(owner::watch(
            policy,
            Arc::clone(gpus),
            Arc::clone(&hand),
            platform.clone(),
            told,
            shutdown.clone(),
        ));
        let desk = Desk {
            name: args.name.clone(),
            market: self.market.clone(),
            slots: args.slots,
            since: SystemClock.now(),
            client: client.clone(),
            platform: platform.clone(),
            hand: Arc::clone(&hand),
            gpus: Arc::clone(gpus),
            turn,
            wanted: Arc::clone(&wanted),
            shutdown: shutdown.clone(),
        };
        tasks.spawn(Arc::new(desk).serve(tools.identity.state.clone()));
        tasks.spawn(reconcile(platform.clone(), hand, wanted, shutdown.clone()));
        let pull =
            dispatch::pull(tools.js.clone(), connects, listed, Arc::clone(tools), tasks.clone(), shutdown.clone());
        tasks.spawn(pull);
        Ok(tasks)
    }
}

/// Nothing that this machine still runs counts: it is stopped and removed.
async fn give_up(hand: &Hand) {
    hand.wish_all(Wish::Abandon);
    let deadline = tokio::time::Instant::now() + AFTER_REVOCATION;
    while !hand.leases().is_empty() && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
