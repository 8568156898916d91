//! Checks of the connection to the market: latency, speed, and the difference of the clocks.

use std::time::{Duration, Instant};

use gpubnb_events::{Clock as _, SystemClock, Timestamp, event::Check};

use super::{TestSubject, check, needs};

/// How far apart the clocks may be. Tokens and permits are valid for minutes only.
const MOST_SKEW_SECONDS: u64 = 5;
/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the speed is measured.
const MEASURE: Duration = Duration::from_millis(500);
/// Most requests in each direction: the market limits the requests of an address.
const MOST_PARTS: u32 = 40;
/// Bytes of one upload: the market takes 256 KiB at most.
const UP_PART: u32 = 192 * 1024;

pub(super) async fn checks(subject: &TestSubject<'_>) -> Vec<Check> {
    let Some((client, market)) = subject.market else { return Vec::new() };
    match look(client, market.trim_end_matches('/')).await {
        Ok(checks) => checks,
        Err(e) => {
            let remedy = "See that this machine reaches the market: its address, a firewall, its certificate.";
            vec![needs(
                check("network.market", format!("{:#}", anyhow::Error::new(e.without_url())), ""),
                "answers",
                false,
                remedy,
            )]
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
        let Some(response) = successful(get("/openapi.json").await?) else { break };
        bytes += response.bytes().await?.len();
        if began.elapsed() > MEASURE {
            break;
        }
    }
    let down = (bytes > 0).then(|| check("network.down", megabits(bytes, began), "Mbit/s, at least"));
    let (began, mut bytes) = (Instant::now(), 0);
    // The content is not all zeros, which something on the way might compress.
    let part: Vec<u8> = (0..UP_PART / 4).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    for _ in 0..MOST_PARTS {
        let sent = client.post(format!("{market}/api/v1/speed")).timeout(PATIENCE).body(part.clone()).send();
        if successful(sent.await?).is_none() {
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

/// The answer, unless the market refuses the request, for example because there were too many. The measurement then
/// ends with what it has.
fn successful(response: reqwest::Response) -> Option<reqwest::Response> {
    response.status().is_success().then_some(response)
}

fn megabits(bytes: usize, began: Instant) -> String {
    let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX).max(1);
    (bytes as u64 * 8 / micros).to_string()
}

/// The difference between this machine's clock and the `Date` header of an answer, seconds (RFC 9110).
fn seconds_apart(date: &str) -> Option<u64> {
    let theirs = Timestamp::from_http_date(date)?;
    let ours = SystemClock.now();
    Some(ours.since(theirs).0.max(theirs.since(ours).0) / 1_000)
}
