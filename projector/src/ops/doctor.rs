//! Checks of a deployment that the broker and the read models can answer: for the command `doctor`, and for the
//! console.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use async_nats::Client;
use gpubnb_events::{Clock as _, SystemClock, Timestamp, event::Check};
use gpubnb_log::{
    Log,
    stream::{CHECKPOINTS, DISPATCH, MARKET, OUTPUT, TELEMETRY},
};
use gpubnb_query::view::ops::Platform;
use serde_json::Value;

use crate::tree_head::{self, LATEST};

/// The oldest version of the broker that this software is tested with.
const BROKER: (u32, u32) = (2, 12);
const MOST_SKEW_MS: u64 = 2_000;
const MOST_LAG: u64 = 1_000;
/// Most events after the newest signed head, which is two seconds old at most.
const MOST_UNSIGNED: u64 = 20_000;
/// How long the broker may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The checks that were made.
#[derive(Default)]
pub struct Findings(pub Vec<Check>);

impl Findings {
    /// Adds a check.
    pub fn add(&mut self, id: &str, actual: impl ToString, required: impl ToString, passed: bool, remedy: &str) {
        let remedy = if passed { String::new() } else { remedy.to_owned() };
        let (actual, required) = (actual.to_string(), required.to_string());
        self.0.push(Check { id: id.to_owned(), actual, required, unit: String::new(), passed, remedy });
    }
}

/// Checks the broker, the streams, the models, the newest signed head, and the credentials in a directory.
pub async fn look(
    client: &Client,
    log: &Log,
    platform: Result<&Platform, String>,
    creds: &Path,
    found: &mut Findings,
) -> anyhow::Result<()> {
    broker(client, found);
    streams(client, found).await?;
    match platform {
        Ok(platform) => models(platform, found),
        Err(why) => found.add("projector.answers", why, "yes", false, "Start gpubnb-projector run."),
    }
    head(log, found).await;
    credentials(creds, found)
}

fn broker(client: &Client, found: &mut Findings) {
    let info = client.server_info();
    let mut parts = info.version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    let needed = format!("{}.{} or later", BROKER.0, BROKER.1);
    found.add("broker.version", &info.version, needed, version >= BROKER, "Update nats-server.");
    let enough = info.max_payload >= 1 << 20;
    found.add("broker.max_payload", info.max_payload, 1 << 20, enough, "Set max_payload: 1MB in nats.conf.");
}

/// The broker's information about a stream.
async fn info(client: &Client, stream: &str) -> anyhow::Result<Value> {
    let asked = client.request(format!("$JS.API.STREAM.INFO.{stream}"), "".into());
    let answer = tokio::time::timeout(PATIENCE, asked).await.context("the broker is silent")??;
    Ok(serde_json::from_slice(&answer.payload)?)
}

async fn streams(client: &Client, found: &mut Findings) -> anyhow::Result<()> {
    let before = SystemClock.now();
    let market = info(client, MARKET).await?;
    if let Some(theirs) = market["ts"].as_str().and_then(|ts| ts.parse::<Timestamp>().ok()) {
        let skew = before.since(theirs).0.max(theirs.since(SystemClock.now()).0);
        let most = format!("at most {MOST_SKEW_MS} ms");
        found.add(
            "clock.skew",
            format!("{skew} ms"),
            most,
            skew <= MOST_SKEW_MS,
            "Set the clocks: timedatectl set-ntp true.",
        );
    }
    let config = &market["config"];
    for (field, needed) in [("deny_delete", true), ("deny_purge", true)] {
        let actual = config[field].as_bool().unwrap_or(false);
        let remedy = "MARKET was not made by --provision: export it, and restore it into a stream that was.";
        found.add(&format!("log.{field}"), actual, needed, actual == needed, remedy);
    }
    let storage = config["storage"].as_str().unwrap_or_default();
    found.add(
        "log.storage",
        storage,
        "file",
        storage == "file",
        "The log is kept in memory only: restore it into a stream on disk.",
    );
    let unlimited = ["max_msgs", "max_bytes", "max_age"].iter().all(|limit| config[*limit].as_i64().unwrap_or(0) <= 0);
    found.add(
        "log.never_trimmed",
        unlimited,
        true,
        unlimited,
        "MARKET has a limit, so that events will be lost: remove the limit.",
    );
    let clustered = market["cluster"]["name"].is_string();
    let replicas = config["num_replicas"].as_u64().unwrap_or(1);
    let remedy = "A cluster with one copy loses the log with one disk: --replicas 3.";
    found.add(
        "log.replicas",
        replicas,
        if clustered { "3" } else { "1, or 3 in a cluster" },
        !clustered || replicas >= 3,
        remedy,
    );
    let dispatch = info(client, DISPATCH).await?;
    let fewer = dispatch["config"]["num_replicas"].as_u64().unwrap_or(1) < replicas;
    let remedy = "If one disk fails, job messages are lost (the jobs are not): give DISPATCH as many copies as MARKET.";
    found.add("replicas.of_dispatch", !fewer, "as many as MARKET", !fewer, remedy);
    let lag = dispatch["sources"][0]["lag"].as_u64().unwrap_or(0);
    let remedy = "Job messages are late: look at the broker's load. DISPATCH sources them from MARKET.";
    found.add("lag.of_dispatch", lag, format!("at most {MOST_LAG}"), lag <= MOST_LAG, remedy);
    let output = info(client, OUTPUT).await?;
    let (bytes, most) = (&output["state"]["bytes"], output["config"]["max_bytes"].as_u64().unwrap_or(u64::MAX));
    let percent = bytes.as_u64().unwrap_or(0).saturating_mul(100) / most.max(1);
    // A full stream is normal on a busy market: the oldest logs make room for new ones.
    found.add("room.of_output", format!("{percent} % used"), "for information", true, "");
    let telemetry = info(client, TELEMETRY).await?;
    let storage = telemetry["config"]["storage"].as_str().unwrap_or_default();
    found.add(
        "storage.of_telemetry",
        storage,
        "memory",
        storage == "memory",
        "Heartbeats are written to disk: provision the streams again.",
    );
    Ok(())
}

fn models(platform: &Platform, found: &mut Findings) {
    for model in &platform.models {
        let (id, lag) = (format!("model.{}", model.name), model.lag(platform.last));
        let actual = model.stopped.clone().unwrap_or_else(|| format!("{lag} behind"));
        let passed = model.stopped.is_none() && lag <= MOST_LAG;
        let remedy = "See the event it names; mend the projection and start again: it goes on from its checkpoint.";
        found.add(&id, actual, format!("at most {MOST_LAG} behind"), passed, remedy);
    }
}

async fn head(log: &Log, found: &mut Findings) {
    let head = async {
        let bucket = log.jetstream().get_key_value(CHECKPOINTS).await?;
        tree_head::get(&bucket, LATEST).await
    };
    let (actual, passed) = match head.await {
        Ok(Some(head)) => {
            let last = log.last_seq().await.map_or(0, |last| last.0);
            let new = head.size <= last && last - head.size <= MOST_UNSIGNED;
            (format!("of {} events, of {last}", head.size), head.is_signed() && new)
        }
        Ok(None) => ("none yet".to_owned(), false),
        Err(e) => (format!("{e:#}"), false),
    };
    let remedy = "No signed head covers the log: start the projector, with credentials that may write to CHECKPOINTS.";
    found.add("log.signed_head", actual, "signed", passed, remedy);
}

/// Checks that nobody else on this machine may read the credentials.
fn credentials(creds: &Path, found: &mut Findings) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut open = Vec::new();
    for entry in std::fs::read_dir(creds).with_context(|| creds.display().to_string())? {
        let entry = entry?;
        if entry.metadata()?.permissions().mode() & 0o077 != 0 {
            open.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    let actual = if open.is_empty() { "for nobody else".to_owned() } else { open.join(" ") };
    found.add("credentials.private", actual, "for nobody else", open.is_empty(), "chmod 600 these files.");
    Ok(())
}
