//! The way to the market: how far, how fast, and whether the clocks agree.

use std::time::{Duration, Instant};

use gpubnb_events::{Clock as _, SystemClock, Timestamp, event::Check};

use super::{Subject, check, needs};

/// How far apart the clocks may be: tokens and permits are good for minutes.
const MOST_SKEW_SECONDS: u64 = 5;
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the speed is measured.
const MEASURE: Duration = Duration::from_millis(500);
/// Most requests each way: the market bounds how often an address asks.
const MOST_PARTS: u32 = 40;
/// What is sent at once: the market takes 256 KiB.
const UP_PART: u32 = 192 * 1024;

pub(super) async fn checks(subject: &Subject<'_>) -> Vec<Check> {
    let Some((client, market)) = subject.market else { return Vec::new() };
    match look(client, market.trim_end_matches('/')).await {
        Ok(checks) => checks,
        Err(e) => {
            let remedy = "See that this machine reaches the market: its address, a firewall, its certificate.";
            vec![needs(check("network.market", e.without_url().to_string(), ""), "answers", false, remedy)]
        }
    }
}

async fn look(client: &reqwest::Client, market: &str) -> Result<Vec<Check>, reqwest::Error> {
    let get = |path: &str| client.get(format!("{market}{path}")).timeout(PATIENCE).send();
    let mut fastest = Duration::MAX;
    let mut skew = None;
    for _ in 0..3 {
        let began = Instant::now();
        let response = get("/healthz").await?.error_for_status()?;
        let date = response.headers().get("date").and_then(|v| v.to_str().ok()).map(ToOwned::to_owned);
        fastest = fastest.min(began.elapsed());
        skew = date.as_deref().and_then(seconds_apart);
    }
    let (began, mut bytes) = (Instant::now(), 0);
    for _ in 0..MOST_PARTS {
        let Some(response) = well(get("/openapi.json").await?) else { break };
        bytes += response.bytes().await?.len();
        if began.elapsed() > MEASURE {
            break;
        }
    }
    let down = (bytes > 0).then(|| check("network.down", megabits(bytes, began), "Mbit/s, at least"));
    let (began, mut bytes) = (Instant::now(), 0);
    // Not all zeros: something on the way might compress them.
    let part: Vec<u8> = (0..UP_PART / 4).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    for _ in 0..MOST_PARTS {
        let sent = client.post(format!("{market}/api/v1/speed")).timeout(PATIENCE).body(part.clone()).send();
        if well(sent.await?).is_none() {
            break;
        }
        bytes += part.len();
        if began.elapsed() > MEASURE {
            break;
        }
    }
    let up = (bytes > 0).then(|| check("network.up", megabits(bytes, began), "Mbit/s, at least"));
    let mut checks = vec![check("network.latency", format!("{:.1}", fastest.as_secs_f64() * 1_000.0), "ms")];
    checks.extend(down.into_iter().chain(up));
    if let Some(skew) = skew {
        let remedy = "Set the clock: timedatectl set-ntp true.";
        let within = skew <= MOST_SKEW_SECONDS;
        checks.push(needs(
            check("clock.skew", skew.to_string(), "s"),
            &format!("at most {MOST_SKEW_SECONDS}"),
            within,
            remedy,
        ));
    }
    Ok(checks)
}

/// An answer that is none of "too many" or "not here": what was measured until then is all that is known.
fn well(response: reqwest::Response) -> Option<reqwest::Response> {
    response.status().is_success().then_some(response)
}

fn megabits(bytes: usize, began: Instant) -> String {
    let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX).max(1);
    (bytes as u64 * 8 / micros).to_string()
}

/// How far this machine's clock is from the date of an answer (RFC 9110).
fn seconds_apart(date: &str) -> Option<u64> {
    let theirs = Timestamp::from_http_date(date)?;
    let ours = SystemClock.now();
    Some(ours.since(theirs).0.max(theirs.since(ours).0) / 1_000)
}
