//! `page_render`: the time of a page request in a large market. The baseline is a request to the broker and its answer.
//! `open_pages`: the memory that the web server needs for a thousand open pages.

use std::{pin::Pin, time::Duration};

use anyhow::Context as _;
use futures_util::{Stream, StreamExt as _};
use gpubnb_events::{
    AccountId, Event, MachineId, Seq,
    event::{AccountOpened, MachineListed},
};
use gpubnb_runtime::nats::jetstream;
use reqwest::Method;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{RawBroker, idle::rss, millis, quantile, report::Figure};
use crate::{
    api_client::ApiClient,
    history::{job_events, offer, publish},
    system::{MarketSettings, System},
};

const MACHINES: u32 = 10_000;
const JOBS: usize = 100_000;
/// Jobs of the person who opens the pages.
const OWN_JOBS: usize = 10_000;
/// Number of requests for each page.
const ROUNDS: usize = 100;
/// Number of open pages.
const OPEN_PAGES: u32 = 1_000;
/// Largest number of publishes that wait for the broker's ack at the same time.
const MAX_PENDING_ACKS: usize = 2_000;

pub(super) async fn measure() -> anyhow::Result<Vec<Figure>> {
    let options = MarketSettings { ui: vec!["--behind-proxy".to_owned()], ..MarketSettings::default() };
    let mut system = System::start(options).await?;
    let raw = RawBroker::start(false).await?;
    let operator = ApiClient::sign_up_operator(&system).await?;
    // The services must not assign the jobs of the invented history.
    system.services.clear();
    let (machine, job) = fill_market(&system).await?;
    println!("page_render: {MACHINES} machines and {JOBS} jobs are in the market");
    let mut figures = measure_requests(&system, &operator, &raw, machine, &job).await?;
    figures.push(measure_open_pages(&system).await?);
    Ok(figures)
}

/// Writes the history, and waits until it is folded. Returns the ids of one machine and one job.
async fn fill_market(system: &System) -> anyhow::Result<(MachineId, String)> {
    let js = jetstream(system.nats_args("services").connect("append", "_INBOX.services").await?);
    let log = gpubnb_log::Log::open(js.clone()).await?;
    let mut next = log.last_seq().await?.0 + 1;
    let mut acks = Vec::new();
    let (me, others) = (system.consumer.account.parse()?, AccountId::generate());
    let mut first_machine = None;
    let mut events: Vec<Event> = vec![AccountOpened { account: others }.into()];
    for number in 0..MACHINES {
        let machine = MachineId::generate();
        first_machine.get_or_insert(machine);
        events.push(MachineListed { machine, owner: others, public_key: None, offer: offer(number) }.into());
    }
    let machine = first_machine.context("no machine was made")?;
    let mut job = String::new();
    for number in 0..JOBS {
        let is_own = number % (JOBS / OWN_JOBS) == 0;
        let seq = Seq(next + events.len() as u64);
        let all = job_events(if is_own { me } else { others }, others, machine, seq)?;
        if is_own {
            job = all[0].job().context("the event names no job")?.to_string();
            events.extend(all);
        } else {
            // For the jobs of others, the first and the last event are enough.
            let [submitted, .., settled] = all;
            events.extend([submitted, settled]);
        }
        if events.len() >= MAX_PENDING_ACKS || number + 1 == JOBS {
            let written = std::mem::take(&mut events);
            for chunk in written.chunks(MAX_PENDING_ACKS) {
                for event in chunk {
                    acks.push(publish(&js, event, next).await?);
                    next += 1;
                }
                for ack in acks.drain(..) {
                    ack.await?;
                }
            }
        }
    }
    let deadline = Instant::now() + Duration::from_secs(120);
    while !is_folded(system, next - 1).await? {
        anyhow::ensure!(Instant::now() < deadline, "the history was not folded in time");
        sleep(Duration::from_millis(200)).await;
    }
    Ok((machine, job))
}

/// Returns true if the projector has folded all events and the web server shows all machines.
async fn is_folded(system: &System, seq: u64) -> anyhow::Result<bool> {
    let (folded, _) = system.consumer.bytes(&format!("/jobs?seq={seq}")).await?;
    let (_, market) = system.consumer.bytes("/market").await?;
    let all = format!("of {MACHINES} machines");
    Ok(folded.is_success() && String::from_utf8_lossy(&market).contains(&all))
}

/// Answers each request on the subject `echo` with its own body, for the baseline.
async fn start_echo(raw: &RawBroker) -> anyhow::Result<JoinHandle<()>> {
    let mut requests = raw.client.subscribe("echo").await?;
    let client = raw.client.clone();
    Ok(tokio::spawn(async move {
        while let Some(message) = requests.next().await {
            if let Some(reply) = message.reply {
                drop(client.publish(reply, message.payload).await);
            }
        }
    }))
}

/// Requests every page and measures the times. Each page request is preceded by one request of the baseline.
async fn measure_requests(
    system: &System,
    operator: &ApiClient,
    raw: &RawBroker,
    machine: MachineId,
    job: &str,
) -> anyhow::Result<Vec<Figure>> {
    let pages = [
        "/".to_owned(),
        "/market".to_owned(),
        "/market?gpu=h100&max_price=0.5&sort=reliability".to_owned(),
        format!("/machines/{machine}"),
        "/jobs".to_owned(),
        format!("/jobs/{job}"),
        "/jobs/new".to_owned(),
        "/wallet".to_owned(),
        "/provider".to_owned(),
    ];
    let (browser, at_console) = (system.consumer.browser_session(), operator.browser_session());
    let (mut all, mut base) = (Vec::new(), Vec::new());
    let (mut middle, mut tail) = ((0.0, ""), (0.0, ""));
    let answering = start_echo(raw).await?;
    // The console shows the same market to an operator.
    let console = ["/console", "/console/fleet", "/console/ledger", "/console/events", "/console/events?event=Settled"];
    let pages = pages.iter().map(|page| (&browser, page.as_str()));
    let pages: Vec<_> = pages.chain(console.map(|page| (&at_console, page))).collect();
    for (browser, page) in &pages {
        let mut page_times = Vec::new();
        for _ in 0..ROUNDS {
            let began = Instant::now();
            raw.client.request("echo", "x".into()).await?;
            base.push(millis(began.elapsed()));
            let began = Instant::now();
            browser.build_request(Method::GET, page).send().await?.error_for_status()?.bytes().await?;
            page_times.push(millis(began.elapsed()));
        }
        all.extend_from_slice(&page_times);
        let (p50, p99) = (quantile(&mut page_times, 0.5), quantile(&mut page_times, 0.99));
        println!("page_render: {page:<55} p50 {p50:>7.2} ms, p99 {p99:>7.2} ms");
        for (worst, now) in [(&mut middle, p50), (&mut tail, p99)] {
            if now > worst.0 {
                *worst = (now, *page);
            }
        }
    }
    answering.abort();
    println!("page_render: the slowest are {} (p50) and {} (p99)", middle.1, tail.1);
    let runs = ROUNDS * pages.len();
    let baseline = ("request to the broker and back, p50", quantile(&mut base, 0.5));
    let baseline_tail = ("request to the broker and back, p99", quantile(&mut base, 0.99));
    Ok(vec![
        Figure::new("page_render_p50", (quantile(&mut all, 0.5), "ms"), baseline, runs, ("< 5 ms", |f| f.value < 5.0)),
        Figure::new(
            "page_render_p99",
            (quantile(&mut all, 0.99), "ms"),
            baseline_tail,
            runs,
            ("< 50 ms", |f| f.value < 50.0),
        ),
        // The slowest page is a figure too, so that many quick pages do not hide it.
        Figure::new("slowest_page_p99", (tail.0, "ms"), baseline_tail, ROUNDS, ("< 50 ms", |f| f.value < 50.0)),
    ])
}

/// Opens pages of the market, as strangers with different addresses, and reads their streams. Measures the web server's
/// additional memory.
async fn measure_open_pages(system: &System) -> anyhow::Result<Figure> {
    let pid = system.ui.as_ref().context("the web server does not run")?.pid();
    let before = rss(pid)?;
    let mut reading = Vec::new();
    for number in 0..OPEN_PAGES {
        let address = format!("10.{}.{}.1", number / 256, number % 256);
        let request =
            system.consumer.stranger().build_request(Method::GET, "/market/live").header("x-forwarded-for", address);
        let page = request.timeout(Duration::from_secs(600)).send().await?.error_for_status()?;
        let mut frames: Pin<Box<dyn Stream<Item = _> + Send>> = Box::pin(page.bytes_stream());
        frames.next().await.context("no frame")??;
        reading.push(tokio::spawn(async move { while let Some(Ok(_)) = frames.next().await {} }));
    }
    sleep(Duration::from_secs(5)).await;
    let used = rss(pid)? - before;
    for task in reading {
        task.abort();
    }
    let allowed = ("what is allowed", 64.0);
    Ok(Figure::new("open_pages_1000", (used, "MB"), allowed, 1, ("< 64 MB", |f| f.value < 64.0)))
}
