//! `live_latency`: from the broker's time of an event to the frame in an open page, over a raw publish to a
//! raw subscriber.

use std::{pin::Pin, time::Duration};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use gpubnb_events::{Clock as _, SystemClock, Timestamp};
use reqwest::Method;
use serde_json::json;
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::{RawBroker, millis, quantile, report::Figure};
use crate::{
    system::{Options, System},
    web::Web,
};

const SAMPLES: usize = 200;
/// Pages that are open meanwhile: so many people with so many pages each.
const PEOPLE: usize = 10;
const EACH: usize = 20;

pub(super) async fn measure() -> anyhow::Result<Vec<Figure>> {
    let system = System::start(Options::default()).await?;
    let open = others(&system).await?;
    let raw = RawBroker::start(false).await?;
    let mut heard = raw.client.subscribe("raw").await?;
    let (mut ours, mut base) = (Vec::new(), Vec::new());
    for _ in 0..SAMPLES {
        let began = Instant::now();
        raw.client.publish("raw", Bytes::from_static(b"x")).await?;
        heard.next().await.context("nothing heard")?;
        base.push(millis(began.elapsed()));
        ours.push(one(&system).await?);
    }
    open.iter().for_each(JoinHandle::abort);
    let baseline = quantile(&mut base, 0.99);
    let p99 = (quantile(&mut ours, 0.99), "ms p99");
    let p50 = (quantile(&mut ours, 0.5), "ms p50");
    let name = "raw publish to subscriber, p99";
    Ok(vec![
        Figure::new("live_latency", p99, (name, baseline), SAMPLES, ("p99 < 50 ms", |f| f.value < 50.0)),
        Figure::new(
            "live_latency_p50",
            p50,
            ("raw publish to subscriber, p50", quantile(&mut base, 0.5)),
            SAMPLES,
            ("p50 < 50 ms", |f| f.value < 50.0),
        ),
    ])
}

/// Opens pages of other people, and reads along: of a waiting job, of their jobs, of the market, of the wallet.
async fn others(system: &System) -> anyhow::Result<Vec<JoinHandle<()>>> {
    let mut open = Vec::new();
    for person in 0..PEOPLE {
        let web = Web::join(&system.url(), &format!("reader-{person}")).await?;
        web.deposit("1").await?;
        let submitted = web.post("/jobs", &json!({ "template": "noop", "budget_usd": "0.01" })).await?;
        let job = submitted["job"].as_str().unwrap_or_default().to_owned();
        // The page is opened once it is known.
        web.get(&format!("/jobs/{job}?min_seq={}", submitted["seq"])).await?;
        let pages = [format!("/jobs/{job}/live"), "/jobs/live".into(), "/market/live".into(), "/wallet/live".into()];
        for page in pages.iter().cycle().take(EACH) {
            let request = web.at_browser().ask(Method::GET, page).timeout(Duration::from_secs(600));
            let mut frames: Frames = Box::pin(request.send().await?.error_for_status()?.bytes_stream());
            open.push(tokio::spawn(async move { while let Some(Ok(_)) = frames.next().await {} }));
        }
    }
    Ok(open)
}

type Frames = Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>;

/// Opens the page of a waiting job, cancels it, and takes the time of the frame that shows it.
async fn one(system: &System) -> anyhow::Result<f64> {
    let (job, page) = system.web.submit_and_watch(&json!({ "template": "noop", "budget_usd": "0.01" })).await?;
    let mut frames: Frames = Box::pin(page.bytes_stream());
    until(&mut frames, "data-state=\"Queued\"").await?;
    let nothing = json!({});
    let cancel = format!("/jobs/{job}/cancel");
    let (cancelled, seen) = tokio::join!(system.web.post(&cancel, &nothing), until(&mut frames, ">Cancelled<"));
    cancelled?;
    let seen = seen?;
    let events = system.web.get(&format!("/jobs/{job}/events")).await?;
    let rows = events["rows"].as_array().context("rows")?;
    let event = rows.iter().find(|e| e["event"] == "Cancelled").context("the event")?;
    let recorded: Timestamp = event["recorded_at"].as_str().context("a time")?.parse()?;
    // Millisecond clocks on one machine; a few thousand at most.
    #[allow(clippy::cast_precision_loss)]
    Ok(seen.since(recorded).0 as f64)
}

async fn until(frames: &mut Frames, words: &str) -> anyhow::Result<Timestamp> {
    let mut text = String::new();
    while let Some(bytes) = timeout(Duration::from_secs(10), frames.next()).await.context("no frame came")? {
        text.push_str(&String::from_utf8_lossy(&bytes?));
        if text.contains(words) {
            return Ok(SystemClock.now());
        }
    }
    bail!("the stream ended")
}
