//! Starts the worker: opens its identity, gets its credential, tests and lists the machine, and starts the tasks that
//! run until shutdown.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use async_nats::Client;
use bollard::Docker;
use gpubnb_dialer::Dialer;
use gpubnb_door::Rate;
use gpubnb_events::{
    Clock as _, HourlyRate, Millis, SystemClock,
    command::{DesiredMachineState, Done, Inventory, ListMachine, Listed, RecordTest},
    event::Check,
    spec::{Egress, Hardware, Offer, OwnerPolicy},
};
use gpubnb_registry::Registries;
use gpubnb_runtime::{nats::machine_jetstream, rpc::Caller};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{
    attempt::{self, CacheLimits, DatasetCache, DoorRules, ImageRules, Images, JobDisks, Tools},
    config::{DEFAULT_STATE, EnrollArgs, ImagePolicy, RunArgs},
    control::{Availability, ControlServer, WorkerControl},
    credential::Credential,
    desired_state::DesiredState,
    dispatch, docker,
    gpu::Gpus,
    hardware,
    heartbeat::send_heartbeats,
    identity::{Enrollment, Identity},
    image_fetch::ImageFetcher,
    lease_table::LeaseTable,
    market::{MarketClient, http_client},
    owner::{self, PauseSwitch, ReclaimReason},
    platform::Platform,
    relay,
    selftest::{self, Measure, TestSubject},
    settings::{self, Settings},
    sync::reconcile,
};

/// Longest time for the attempts to end after the market has revoked the machine's credential.
const REVOCATION_TIMEOUT: Duration = Duration::from_secs(15);

/// Enrolls this machine on a market with a one-time code. `state` is the worker's directory.
pub async fn enroll(state: &Path, args: &EnrollArgs) -> anyhow::Result<()> {
    let identity = Identity::open(state)?;
    let market_ca = args.market_ca.as_deref().map(std::path::absolute).transpose()?;
    let market = MarketClient::new(http_client(&args.market, market_ca.as_deref())?, &args.market);
    let access = market.enroll(&identity.keys, identity.machine, &args.code).await?;
    identity.save_enrollment(&Enrollment { market: args.market.clone(), market_ca })?;
    println!("Machine {} is enrolled for account {}.", identity.machine, access.credential.owner);
    let state = if state == Path::new(DEFAULT_STATE) { String::new() } else { format!(" --state {}", state.display()) };
    println!("Next: gpubnb-provider run{state} --name \"my machine\" --price 0.10");
    Ok(())
}

/// Runs the worker until shutdown. Running containers then go on, and the worker resumes their attempts at its next
/// start. `state` is the worker's directory.
pub async fn run(state: &Path, args: RunArgs, shutdown: CancellationToken) -> anyhow::Result<()> {
    let identity = Arc::new(Identity::open(state)?);
    let enrollment = identity.enrollment()?;
    let docker = docker::connect().await.context("Docker does not answer: is dockerd running, and may you use it?")?;
    let gpus = Arc::new(Gpus::probe(args.simulate_gpus, args.nvml.as_deref()));
    let http = http_client(&enrollment.market, enrollment.market_ca.as_deref())?;
    let market = MarketClient::new(http.clone(), &enrollment.market);
    // The self-test measures the connection to the market. So wait until the market gives a first, unused credential.
    let obtain = || Credential::obtain(Arc::clone(&identity), market.clone());
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        answered = obtain() => answered.map(drop)?,
    }
    let checks = self_test(&args, &identity, &docker, &gpus, (&http, &enrollment.market)).await;
    let hosts = offered_hosts(&args, &docker, &identity).await;
    let unfit = why_unfit(&checks, args.unfit, &docker, &identity).await?;
    // The self-test may take longer than a credential lives.
    let credential = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        credential = obtain() => credential?,
    };
    let (count_connects, connects) = watch::channel(0);
    let client = credential.connect(count_connects).await?;
    let platform = Platform::new(Caller::new(client.clone()), identity.machine);
    let mut offer = make_offer(&args, hosts, hardware::probe(&identity.state, &gpus)?);
    let options = offer.settings();
    let listed = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        listed = list_machine(&platform, &identity.state, &mut offer) => listed?,
    };
    info!(machine = %identity.machine, gpus = offer.hardware.gpus.len(), "the machine is listed");
    record_test(&platform, &checks).await;
    let owner = docker::file_owner(&docker).await?;
    let slots = if unfit.is_some() { 0 } else { offer.slots };
    let tools = make_tools(&args, slots, &client, docker, owner, http, identity, offer.hardware.clone());
    let settings = Settings::new(&tools.identity.state, offer, options, Arc::clone(&tools.leases), platform.clone());
    clean_up(&tools).await;
    let worker = Worker {
        args,
        market: enrollment.market,
        tools,
        gpus,
        platform,
        client: client.clone(),
        is_unfit: unfit.is_some(),
        checks,
        settings,
        shutdown: shutdown.clone(),
    };
    let tasks = worker.start(listed, connects).await?;
    let revoked = credential.renew_until_shutdown(&client, &shutdown).await;
    if revoked.is_some() {
        abandon_all(&worker.tools.leases).await;
        shutdown.cancel();
    }
    tasks.close();
    tasks.wait().await;
    worker.tools.job_disks.clear().await;
    if let Some(why) = revoked {
        return Err(why.context("the market refuses to renew this machine's credential"));
    }
    if let Some(why) = unfit {
        return Err(why);
    }
    info!("stopped; running jobs go on, and the worker resumes them at its next start");
    Ok(())
}

/// Tests the machine. `market` is the client and the address with which the connection to the market is measured.
async fn self_test(
    args: &RunArgs,
    identity: &Identity,
    docker: &Docker,
    gpus: &Gpus,
    market: (&reqwest::Client, &str),
) -> Vec<Check> {
    selftest::test(&TestSubject {
        state: &identity.state,
        docker: Ok(docker),
        gpus,
        market: Some(market),
        runtime: args.runtime.as_deref(),
        cdi: args.cdi,
        measure: Measure::LastResult,
    })
    .await
}

/// Records the self-test on the market. A self-test that is not recorded does no harm: the next start records a new
/// one.
async fn record_test(platform: &Platform, checks: &[Check]) {
    if let Err(e) = platform.call::<Done>("tested", &RecordTest { checks: checks.to_vec() }).await {
        warn!(error = %e, "the self-test was not recorded");
    }
}

/// Removes what former runs of the worker left behind, and finds out how the disks of jobs are bounded here.
async fn clean_up(tools: &Tools) {
    tools.job_disks.clear().await;
    tools.job_disks.can_mount().await;
    tools.images.evict_old(&tools.docker).await;
    if let Err(e) = tools.datasets.make_room(0) {
        warn!(error = %e, "old datasets cannot be removed");
    }
}

/// Lists the machine on the market with the settings that the owner last chose. Waits while the market is away.
async fn list_machine(platform: &Platform, state: &Path, offer: &mut Offer) -> anyhow::Result<Listed> {
    let options = offer.settings();
    let desired = platform.call_until_answered::<DesiredMachineState>("sync", &Inventory { leases: Vec::new() }).await;
    settings::choose(state, offer, desired.ok().and_then(|desired| desired.settings));
    match platform.call_until_answered::<Listed>("list", &ListMachine { offer: offer.clone() }).await {
        Ok(listed) => {
            settings::save(state, &offer.settings(), &options);
            Ok(listed)
        }
        Err(refusal) => bail!("the market does not list this machine: {refusal}"),
    }
}

/// The registries of the images that jobs may use, besides the images of templates; `None`: all.
fn allowed_registries(args: &RunArgs) -> Option<Vec<String>> {
    let private = args.private_registry.iter().map(|registry| registry.name.clone());
    match args.images {
        ImagePolicy::Any => None,
        ImagePolicy::Templates => Some(Vec::new()),
        ImagePolicy::Registries => Some(args.registry.iter().cloned().chain(private).collect()),
    }
}

/// The owner's rules for images.
fn image_rules(args: &RunArgs, dialer: Dialer) -> ImageRules {
    let unused = Millis(args.image_days * 24 * 3_600_000);
    ImageRules {
        registries: allowed_registries(args),
        fetcher: ImageFetcher {
            registries: Registries { dialer, private: args.private_registry.clone() },
            largest: args.image_gib << 30,
        },
        cache: CacheLimits { bytes: args.image_cache_gib << 30, unused },
    }
}

/// The owner's rules for the internet.
fn door_rules(args: &RunArgs, dialer: &Dialer, relay_user: (u32, u32)) -> DoorRules {
    DoorRules {
        hosts: args.allow_egress.clone(),
        ports: args.egress_port.clone(),
        max_bytes: args.egress_gib << 30,
        rate: Arc::new(Rate::megabits(args.egress_mbit)),
        dialer: dialer.with_mirrors(&args.egress_mirror),
        relay_user,
    }
}

/// The hosts that the machine offers: none if jobs cannot reach a relay here, as under gVisor. Jobs that a former run
/// of the worker started keep their doors.
async fn offered_hosts(args: &RunArgs, docker: &Docker, identity: &Identity) -> Egress {
    if args.allow_egress.is_none() {
        return Egress::default();
    }
    match relay::check(docker, identity.machine, args.runtime.as_deref(), &identity.state).await {
        Ok(()) => args.allow_egress.clone(),
        Err(e) => {
            let error = format!("{e:#}");
            warn!(error, "new jobs on this machine get no way to the internet: their relay does not work here");
            Egress::default()
        }
    }
}

/// Fails if the self-test found the machine unfit, unless `list_unfit` is true: the owner lists the machine anyway.
fn require_fit(checks: &[Check], list_unfit: bool) -> anyhow::Result<()> {
    for check in checks.iter().filter(|check| !check.passed) {
        warn!(check = check.id, actual = check.actual, needed = check.required, "self-test: {}", check.remedy);
    }
    let unfit = selftest::failed_required(checks);
    if unfit.is_empty() || list_unfit {
        return Ok(());
    }
    let reasons: Vec<_> = unfit.iter().map(|check| format!("{}: {}", check.id, check.remedy)).collect();
    bail!("the machine is not fit, and is not listed (--unfit lists it anyway). {}", reasons.join(" "))
}

/// The directory with a directory for each attempt.
fn attempts_dir(identity: &Identity) -> PathBuf {
    identity.state.join("leases")
}

/// The reason why the machine is unfit; `None` if it is fit. Fails if the machine is unfit, and a former run of the
/// worker left no attempt to look after. Such attempts need the worker even on an unfit machine: without it, nobody
/// would stop their jobs at the limits, and their reports would not arrive.
async fn why_unfit(
    checks: &[Check],
    list_unfit: bool,
    docker: &Docker,
    identity: &Identity,
) -> anyhow::Result<Option<anyhow::Error>> {
    match require_fit(checks, list_unfit) {
        Err(e) if !attempt::has_attempts(docker, identity.machine, &attempts_dir(identity)).await? => Err(e),
        fit => Ok(fit.err()),
    }
}

fn make_offer(args: &RunArgs, egress: Egress, hardware: Hardware) -> Offer {
    let has_rules = args.hours.is_some() || args.idle_minutes.is_some();
    Offer {
        name: args.name.clone(),
        region: args.region.clone(),
        hardware,
        price: HourlyRate(args.price),
        slots: args.slots,
        policy: OwnerPolicy {
            may_evict: has_rules,
            egress,
            idle_minutes: args.idle_minutes,
            hours: args.hours.as_ref().map(ToString::to_string),
            max_pids: args.max_pids,
            max_open_files: args.max_open_files,
            registries: allowed_registries(args),
            pinned: args.pin.clone(),
        },
    }
}

#[allow(clippy::too_many_arguments)] // each is one part of the tools
fn make_tools(
    args: &RunArgs,
    slots: u32,
    client: &Client,
    docker: Docker,
    owner: (u32, u32),
    http: reqwest::Client,
    identity: Arc<Identity>,
    hardware: Hardware,
) -> Arc<Tools> {
    let (machine, dialer) = (identity.machine, Dialer::default());
    Arc::new(Tools {
        machine,
        docker,
        images: Images::new(&identity.state, image_rules(args, dialer.clone())),
        js: machine_jetstream(client.clone()),
        platform: Platform::new(Caller::new(client.clone()), machine),
        leases: Arc::new(LeaseTable::new(slots)),
        attempts_dir: attempts_dir(&identity),
        hardware,
        runtime: args.runtime.clone(),
        cdi: args.cdi,
        max_log: args.max_log_mib << 20,
        reclaim_grace: Duration::from_secs(args.reclaim_grace.into()),
        job_disks: JobDisks::new(&identity.state, owner, args.disk_quota),
        datasets: DatasetCache::new(&identity.state, attempts_dir(&identity), args.dataset_cache_gib << 30),
        door_rules: door_rules(args, &dialer, owner),
        http,
        identity,
    })
}

/// A worker whose machine is listed on the market.
struct Worker {
    args: RunArgs,
    market: String,
    tools: Arc<Tools>,
    gpus: Arc<Gpus>,
    platform: Platform,
    client: Client,
    /// True if the self-test failed, and jobs of a former run of the worker still run.
    is_unfit: bool,
    /// The results of the self-test at the worker's start.
    checks: Vec<Check>,
    settings: Settings,
    shutdown: CancellationToken,
}

impl Worker {
    /// Resumes the attempts of a former run of the worker, and starts the tasks that run until shutdown.
    async fn start(&self, listed: Listed, connects: watch::Receiver<u64>) -> anyhow::Result<TaskTracker> {
        let Self { args, tools, gpus, platform, client, shutdown, .. } = self;
        let (tasks, leases) = (TaskTracker::new(), Arc::clone(&tools.leases));
        let availability = Arc::<Availability>::default();
        attempt::resume_all(tools, &tasks, shutdown).await.context("resuming the attempts of a former run")?;
        let (set_reclaimed, reclaimed) = watch::channel(self.is_unfit.then_some(ReclaimReason::Unfit));
        let (market_state, owner_state) = (Arc::clone(&availability), reclaimed.clone());
        tasks.spawn(send_heartbeats(
            client.clone(),
            tools.machine,
            Arc::clone(gpus),
            Arc::clone(&leases),
            move || market_state.state(owner_state.borrow().is_some()),
            Duration::from_secs(args.heartbeat),
            shutdown.clone(),
        ));
        let pause = PauseSwitch::open(&tools.identity.state, Arc::clone(&leases));
        if self.is_unfit {
            tasks.spawn(owner::finish_attempts(Arc::clone(&leases), platform.clone(), shutdown.clone()));
        } else {
            let (gpus, leases, settings) = (Arc::clone(gpus), Arc::clone(&leases), self.settings.clone());
            tasks.spawn(owner::report_reclaims(platform.clone(), reclaimed.clone(), shutdown.clone()));
            let pause = pause.clone();
            tasks.spawn(owner::watch_rules(settings, pause, gpus, leases, set_reclaimed, shutdown.clone()));
        }
        let is_reclaimed = reclaimed.clone();
        let control = WorkerControl {
            name: args.name.clone(),
            market: self.market.clone(),
            settings: self.settings.clone(),
            since: SystemClock.now(),
            client: client.clone(),
            platform: platform.clone(),
            leases: Arc::clone(&leases),
            gpus: Arc::clone(gpus),
            reclaimed,
            availability: Arc::clone(&availability),
            pause,
            checks: self.checks.clone(),
            state: tools.identity.state.clone(),
            shutdown: shutdown.clone(),
        };
        tasks.spawn(Arc::new(ControlServer::new(control)).serve());
        tasks.spawn(reconcile(platform.clone(), leases, availability, self.settings.clone(), shutdown.clone()));
        let queue = (listed, connects);
        tasks.spawn(dispatch::pull(queue, Arc::clone(tools), is_reclaimed, tasks.clone(), shutdown.clone()));
        Ok(tasks)
    }
}

/// Abandons all attempts, because the market ignores the attempts of a revoked machine. Waits until they have ended.
async fn abandon_all(leases: &LeaseTable) {
    leases.set_desired_of_all(DesiredState::Abandon);
    let deadline = tokio::time::Instant::now() + REVOCATION_TIMEOUT;
    while !leases.running().is_empty() && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
