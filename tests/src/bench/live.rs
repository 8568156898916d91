//! `live_latency`: the time from the broker's timestamp of an event until an open page gets the frame that shows the
//! event. The baseline is a plain publish to a plain subscriber of the broker.

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
    api_client::ApiClient,
    system::{MarketSettings, System},
};

const SAMPLES: usize = 200;
/// Other people whose pages are open during the measurement.
const PEOPLE: usize = 10;
/// Open pages of each of these people.
const PAGES_EACH: usize = 20;

pub(super) async fn measure() -> anyhow::Result<Vec<Figure>> {
    let system = System::start(MarketSettings::default()).await?;
    let other_pages = open_other_pages(&system).await?;
    let raw = RawBroker::start(false).await?;
    let mut subscriber = raw.client.subscribe("raw").await?;
    let (mut ours, mut base) = (Vec::new(), Vec::new());
    for _ in 0..SAMPLES {
        let began = Instant::now();
        raw.client.publish("raw", Bytes::from_static(b"x")).await?;
        subscriber.next().await.context("no message came")?;
        base.push(millis(began.elapsed()));
        ours.push(measure_once(&system).await?);
    }
    other_pages.iter().for_each(JoinHandle::abort);
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

/// Opens pages of other people and reads their streams: of a waiting job, of the list of jobs, of the market and of the
/// wallet.
async fn open_other_pages(system: &System) -> anyhow::Result<Vec<JoinHandle<()>>> {
    let mut open = Vec::new();
    for person in 0..PEOPLE {
        let reader = ApiClient::sign_up(&system.url(), &format!("reader-{person}")).await?;
        reader.deposit("1").await?;
        let submitted = reader.post("/jobs", &json!({ "template": "noop", "budget_usd": "0.01" })).await?;
        let job = submitted["job"].as_str().unwrap_or_default().to_owned();
        // The page can be opened only after the projector has folded the job.
        reader.get(&format!("/jobs/{job}?min_seq={}", submitted["seq"])).await?;
        let pages = [format!("/jobs/{job}/live"), "/jobs/live".into(), "/market/live".into(), "/wallet/live".into()];
        for page in pages.iter().cycle().take(PAGES_EACH) {
            let request = reader.browser_session().build_request(Method::GET, page).timeout(Duration::from_secs(600));
            let mut frames: Frames = Box::pin(request.send().await?.error_for_status()?.bytes_stream());
            open.push(tokio::spawn(async move { while let Some(Ok(_)) = frames.next().await {} }));
        }
    }
    Ok(open)
}

/// The event stream of a page.
type Frames = Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>;

/// Opens the page of a waiting job and cancels the job. Returns the milliseconds from the event `Cancelled` to the
/// frame that shows it.
async fn measure_once(system: &System) -> anyhow::Result<f64> {
    let (job, page) =
        system.consumer.submit_and_open_page(&json!({ "template": "noop", "budget_usd": "0.01" })).await?;
    let mut frames: Frames = Box::pin(page.bytes_stream());
    wait_for_frame(&mut frames, "data-state=\"Queued\"").await?;
    let nothing = json!({});
    let cancel = format!("/jobs/{job}/cancel");
    let (cancelled, seen) =
        tokio::join!(system.consumer.post(&cancel, &nothing), wait_for_frame(&mut frames, ">Cancelled<"));
    cancelled?;
    let seen = seen?;
    let events = system.consumer.get(&format!("/jobs/{job}/events")).await?;
    let rows = events["rows"].as_array().context("an answer without rows")?;
    let event = rows.iter().find(|e| e["event"] == "Cancelled").context("the event is missing")?;
    let recorded: Timestamp = event["recorded_at"].as_str().context("the event has no time")?.parse()?;
    // The value is at most a few thousand, so the conversion is exact.
    #[allow(clippy::cast_precision_loss)]
    Ok(seen.since(recorded).0 as f64)
}

/// Reads a page's stream up to the frame that contains a text. Returns the time of that frame.
async fn wait_for_frame(frames: &mut Frames, words: &str) -> anyhow::Result<Timestamp> {
    let mut text = String::new();
    while let Some(bytes) = timeout(Duration::from_secs(10), frames.next()).await.context("no frame came")? {
        text.push_str(&String::from_utf8_lossy(&bytes?));
        if text.contains(words) {
            return Ok(SystemClock.now());
        }
    }
    bail!("the stream ended")
}
