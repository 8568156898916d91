//! Checks of the connection to the market: latency, speed, and the clock skew, which is the difference between the two
//! clocks.

use std::time::{Duration, Instant};

use gpubnb_events::{Clock as _, SystemClock, Timestamp, event::Check};
use reqwest::StatusCode;

use super::{TestSubject, check, with_requirement};

/// Largest clock skew. Tokens and permits are valid only for minutes, so a larger skew would make them invalid.
const MAX_SKEW_SECONDS: u64 = 5;
/// Longest time of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Time of the measurement in each direction.
const MEASURE_TIME: Duration = Duration::from_millis(500);
/// Most requests in each direction. More requests would exceed the market's limit per IP address.
const MAX_REQUESTS: u32 = 40;
/// Bytes of one upload. The market accepts at most 256 KiB.
const UPLOAD_BYTES: u32 = 192 * 1024;

/// Most pauses because the market's limit per IP address is used up.
const MAX_WAITS: u32 = 5;
/// Longest of these pauses.
const MAX_WAIT: Duration = Duration::from_secs(5);

pub(super) async fn checks(subject: &TestSubject<'_>) -> Vec<Check> {
    let Some((client, market)) = subject.market else { return Vec::new() };
    match measure(client, market.trim_end_matches('/')).await {
        Ok(checks) => checks,
        Err(e) => {
            let remedy =
                "Check that this machine reaches the market: the market's address, its certificate, firewalls.";
            vec![with_requirement(
                check("network.market", format!("{:#}", anyhow::Error::new(e.without_url())), ""),
                "answers",
                false,
                remedy,
            )]
        }
    }
}

/// The pause that an answer asks for, at least a second and at most [`MAX_WAIT`].
fn retry_after(response: &reqwest::Response) -> Duration {
    let seconds = response.headers().get("retry-after").and_then(|v| v.to_str().ok()?.parse().ok());
    Duration::from_secs(seconds.unwrap_or(1)).clamp(Duration::from_secs(1), MAX_WAIT)
}

async fn measure(client: &reqwest::Client, market: &str) -> Result<Vec<Check>, reqwest::Error> {
    let get = |path: &str| client.get(format!("{market}{path}")).timeout(REQUEST_TIMEOUT).send();
    // Other machines behind the same address may have used up its limit for the moment.
    let get_patiently = async |path: &str| {
        for _ in 0..MAX_WAITS {
            let response = get(path).await?;
            if response.status() != StatusCode::TOO_MANY_REQUESTS {
                return Ok(response);
            }
            tokio::time::sleep(retry_after(&response)).await;
        }
        get(path).await
    };
    let mut fastest = Duration::MAX;
    let mut skew = None;
    for _ in 0..3 {
        let began = Instant::now();
        let response = get_patiently("/healthz").await?.error_for_status()?;
        let date = response.headers().get("date").and_then(|v| v.to_str().ok()).map(ToOwned::to_owned);
        fastest = fastest.min(began.elapsed());
        skew = date.as_deref().and_then(seconds_apart);
    }
    let (began, mut bytes) = (Instant::now(), 0);
    for _ in 0..MAX_REQUESTS {
        let Some(response) = accepted(get("/openapi.json").await?) else { break };
        bytes += response.bytes().await?.len();
        if began.elapsed() > MEASURE_TIME {
            break;
        }
    }
    let down = (bytes > 0).then(|| check("network.down", megabits_per_second(bytes, began), "Mbit/s, at least"));
    let (began, mut bytes) = (Instant::now(), 0);
    // The content is pseudo-random, because a proxy could compress zeros.
    let part: Vec<u8> = (0..UPLOAD_BYTES / 4).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    for _ in 0..MAX_REQUESTS {
        let sent = client.post(format!("{market}/api/v1/speed")).timeout(REQUEST_TIMEOUT).body(part.clone()).send();
        if accepted(sent.await?).is_none() {
            break;
        }
        bytes += part.len();
        if began.elapsed() > MEASURE_TIME {
            break;
        }
    }
    let up = (bytes > 0).then(|| check("network.up", megabits_per_second(bytes, began), "Mbit/s, at least"));
    let mut checks = vec![check("network.latency", format!("{:.1}", fastest.as_secs_f64() * 1_000.0), "ms")];
    checks.extend(down.into_iter().chain(up));
    if let Some(skew) = skew {
        let remedy = "Set the clock: timedatectl set-ntp true.";
        let within = skew <= MAX_SKEW_SECONDS;
        checks.push(with_requirement(
            check("clock.skew", skew.to_string(), "s"),
            &format!("at most {MAX_SKEW_SECONDS}"),
            within,
            remedy,
        ));
    }
    Ok(checks)
}

/// Returns the response if the market accepted the request. Otherwise, for example after too many requests, the
/// measurement ends with the bytes that were transferred.
fn accepted(response: reqwest::Response) -> Option<reqwest::Response> {
    response.status().is_success().then_some(response)
}

/// The speed of a transfer of these bytes that began at `began`, as a whole number of Mbit/s.
fn megabits_per_second(bytes: usize, began: Instant) -> String {
    let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX).max(1);
    (bytes as u64 * 8 / micros).to_string()
}

/// The clock skew, seconds. `date` is the `Date` header of a response (RFC 9110).
fn seconds_apart(date: &str) -> Option<u64> {
    let theirs = Timestamp::from_http_date(date)?;
    let ours = SystemClock.now();
    Some(ours.since(theirs).0.max(theirs.since(ours).0) / 1_000)
}
