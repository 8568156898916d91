//! `page_render`: how long pages take with a large market behind them, over a request to the broker and back; and
//! `open_pages`: what a thousand open pages take of the web server's memory.

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
    history::{life, offer, publish},
    system::{Options, System},
    web::Web,
};

const MACHINES: u32 = 10_000;
const JOBS: usize = 100_000;
/// Jobs of the person who opens the pages.
const OWN: usize = 10_000;
/// How often each page is opened.
const ROUNDS: usize = 100;
const OPEN: u32 = 1_000;
/// Writes that are on their way at once.
const AT_ONCE: usize = 2_000;

pub(super) async fn measure() -> anyhow::Result<Vec<Figure>> {
    let options = Options { ui: vec!["--behind-proxy".to_owned()], ..Options::default() };
    let mut system = System::start(options).await?;
    let raw = RawBroker::start(false).await?;
    let operator = Web::operator(&system).await?;
    // The events are history: no service is to assign or watch the jobs in it.
    system.services.clear();
    let (machine, job) = fill(&system).await?;
    println!("page_render: {MACHINES} machines and {JOBS} jobs are there");
    let mut figures = render(&system, &operator, &raw, machine, &job).await?;
    figures.push(open(&system).await?);
    Ok(figures)
}

/// Writes the history, and waits until it is folded. Returns a machine and a job of it.
async fn fill(system: &System) -> anyhow::Result<(MachineId, String)> {
    let js = jetstream(system.nats_args("services").connect("append", "_INBOX.services").await?);
    let log = gpubnb_log::Log::open(js.clone()).await?;
    let mut next = log.last_seq().await?.0 + 1;
    let mut acks = Vec::new();
    let (me, others) = (system.web.account.parse()?, AccountId::generate());
    let mut one = None;
    let mut events: Vec<Event> = vec![AccountOpened { account: others }.into()];
    for number in 0..MACHINES {
        let machine = MachineId::generate();
        one.get_or_insert(machine);
        events.push(MachineListed { machine, owner: others, public_key: None, offer: offer(number) }.into());
    }
    let machine = one.context("a machine")?;
    let mut job = String::new();
    for number in 0..JOBS {
        let own = number % (JOBS / OWN) == 0;
        let seq = Seq(next + events.len() as u64);
        let all = life(if own { me } else { others }, others, machine, seq)?;
        if own {
            job = all[0].job().context("a job")?.to_string();
            events.extend(all);
        } else {
            // The jobs of others need only be many.
            let [submitted, .., settled] = all;
            events.extend([submitted, settled]);
        }
        if events.len() >= AT_ONCE || number + 1 == JOBS {
            let written = std::mem::take(&mut events);
            for part in written.chunks(AT_ONCE) {
                for event in part {
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
    while !ready(system, next - 1).await? {
        anyhow::ensure!(Instant::now() < deadline, "the history was not folded in time");
        sleep(Duration::from_millis(200)).await;
    }
    Ok((machine, job))
}

/// Tells whether all events are folded and the web server has all machines.
async fn ready(system: &System, seq: u64) -> anyhow::Result<bool> {
    let (folded, _) = system.web.bytes(&format!("/jobs?seq={seq}")).await?;
    let (_, market) = system.web.bytes("/market").await?;
    let all = format!("of {MACHINES} machines");
    Ok(folded.is_success() && String::from_utf8_lossy(&market).contains(&all))
}

/// Answers requests to the broker, for the baseline.
async fn echo(raw: &RawBroker) -> anyhow::Result<JoinHandle<()>> {
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

async fn render(
    system: &System,
    operator: &Web,
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
    let (browser, at_console) = (system.web.at_browser(), operator.at_browser());
    let (mut all, mut base) = (Vec::new(), Vec::new());
    let (mut middle, mut tail) = ((0.0, ""), (0.0, ""));
    let answering = echo(raw).await?;
    // An operator's pages, of the same market.
    let console = ["/console", "/console/fleet", "/console/ledger", "/console/events", "/console/events?event=Settled"];
    let pages = pages.iter().map(|page| (&browser, page.as_str()));
    let pages: Vec<_> = pages.chain(console.map(|page| (&at_console, page))).collect();
    for (browser, page) in &pages {
        let mut own = Vec::new();
        for _ in 0..ROUNDS {
            let began = Instant::now();
            raw.client.request("echo", "x".into()).await?;
            base.push(millis(began.elapsed()));
            let began = Instant::now();
            browser.ask(Method::GET, page).send().await?.error_for_status()?.bytes().await?;
            own.push(millis(began.elapsed()));
        }
        all.extend_from_slice(&own);
        let (p50, p99) = (quantile(&mut own, 0.5), quantile(&mut own, 0.99));
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
        // The slowest page by itself: many quick ones must not hide it.
        Figure::new("slowest_page_p99", (tail.0, "ms"), baseline_tail, ROUNDS, ("< 50 ms", |f| f.value < 50.0)),
    ])
}

/// Opens pages of the market, as strangers from many places, and reads along.
async fn open(system: &System) -> anyhow::Result<Figure> {
    let pid = system.ui.as_ref().context("a web server")?.pid();
    let before = rss(pid)?;
    let mut reading = Vec::new();
    for number in 0..OPEN {
        let address = format!("10.{}.{}.1", number / 256, number % 256);
        let request = system.web.stranger().ask(Method::GET, "/market/live").header("x-forwarded-for", address);
        let page = request.timeout(Duration::from_secs(600)).send().await?.error_for_status()?;
        let mut frames: Pin<Box<dyn Stream<Item = _> + Send>> = Box::pin(page.bytes_stream());
        frames.next().await.context("no frame")??;
        reading.push(tokio::spawn(async move { while let Some(Ok(_)) = frames.next().await {} }));
    }
    sleep(Duration::from_secs(5)).await;
    let took = rss(pid)? - before;
    for task in reading {
        task.abort();
    }
    let allowed = ("what is allowed", 64.0);
    Ok(Figure::new("open_pages_1000", (took, "MB"), allowed, 1, ("< 64 MB", |f| f.value < 64.0)))
}
