//! The checks of a deployment, for the operators' command `doctor` and for the console (the operators' web pages).

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

/// The oldest tested version of the broker, `(major, minor)`.
const MIN_BROKER: (u32, u32) = (2, 12);
/// The greatest allowed difference between the clocks of this machine and of the broker, milliseconds.
const MAX_SKEW_MS: u64 = 2_000;
/// The most events by which a model, or the stream DISPATCH (the job messages to machines), may be behind MARKET.
const MAX_LAG: u64 = 1_000;
/// The most events after the newest signed head. A new head is signed every two seconds.
const MAX_UNSIGNED: u64 = 20_000;
/// The longest time that the broker may take to answer.
pub const MAX_WAIT: Duration = Duration::from_secs(5);

/// The results of the checks.
#[derive(Default)]
pub struct Findings(pub Vec<Check>);

impl Findings {
    /// Adds the result of a check. The remedy is shown only if the check has failed.
    pub fn add(&mut self, id: &str, actual: impl ToString, required: impl ToString, passed: bool, remedy: &str) {
        let remedy = if passed { String::new() } else { remedy.to_owned() };
        let (actual, required) = (actual.to_string(), required.to_string());
        self.0.push(Check {
            id: id.to_owned(),
            actual,
            required,
            unit: String::new(),
            passed,
            remedy,
            recommended: false,
        });
    }
}

/// Checks the broker, the streams, the models, the newest signed tree head, and the credentials in the directory
/// `creds`. `platform` is the state of the projector, or the reason why it is unknown.
pub async fn run_checks(
    client: &Client,
    log: &Log,
    platform: Result<&Platform, String>,
    creds: &Path,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    broker(client, findings);
    streams(client, findings).await?;
    match platform {
        Ok(platform) => models(platform, findings),
        Err(why) => findings.add("projector.answers", why, "yes", false, "Start gpubnb-projector run."),
    }
    signed_head(log, findings).await;
    credentials(creds, findings)
}

fn broker(client: &Client, findings: &mut Findings) {
    let info = client.server_info();
    let mut parts = info.version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    let needed = format!("{}.{} or later", MIN_BROKER.0, MIN_BROKER.1);
    findings.add("broker.version", &info.version, needed, version >= MIN_BROKER, "Update nats-server.");
    let enough = info.max_payload >= 1 << 20;
    findings.add("broker.max_payload", info.max_payload, 1 << 20, enough, "Set max_payload: 1MB in nats.conf.");
}

/// The broker's information about a stream.
pub async fn stream_info(client: &Client, stream: &str) -> anyhow::Result<Value> {
    let asked = client.request(format!("$JS.API.STREAM.INFO.{stream}"), "".into());
    let answer = tokio::time::timeout(MAX_WAIT, asked).await.context("the broker is silent")??;
    Ok(serde_json::from_slice(&answer.payload)?)
}

async fn streams(client: &Client, findings: &mut Findings) -> anyhow::Result<()> {
    let before = SystemClock.now();
    let market = stream_info(client, MARKET).await?;
    if let Some(theirs) = market["ts"].as_str().and_then(|ts| ts.parse::<Timestamp>().ok()) {
        // `since` is zero for a later time. So the skew is the time by which the broker's clock is behind, or ahead.
        let skew = before.since(theirs).0.max(theirs.since(SystemClock.now()).0);
        let most = format!("at most {MAX_SKEW_MS} ms");
        findings.add(
            "clock.skew",
            format!("{skew} ms"),
            most,
            skew <= MAX_SKEW_MS,
            "Set the clocks: timedatectl set-ntp true.",
        );
    }
    let config = &market["config"];
    for (field, needed) in [("deny_delete", true), ("deny_purge", true)] {
        let actual = config[field].as_bool().unwrap_or(false);
        let remedy = "Export MARKET, and restore it into a stream that --provision has created.";
        findings.add(&format!("log.{field}"), actual, needed, actual == needed, remedy);
    }
    let storage = config["storage"].as_str().unwrap_or_default();
    findings.add(
        "log.storage",
        storage,
        "file",
        storage == "file",
        "The log is kept in memory only: restore it into a stream on disk.",
    );
    let unlimited = ["max_msgs", "max_bytes", "max_age"].iter().all(|limit| config[*limit].as_i64().unwrap_or(0) <= 0);
    findings.add(
        "log.never_trimmed",
        unlimited,
        true,
        unlimited,
        "MARKET has a limit, and events will be lost: remove the limit.",
    );
    let clustered = market["cluster"]["name"].is_string();
    let replicas = config["num_replicas"].as_u64().unwrap_or(1);
    let remedy = "With one copy, the failure of one disk loses the log: use --replicas 3.";
    findings.add(
        "log.replicas",
        replicas,
        if clustered { "3" } else { "1, or 3 in a cluster" },
        !clustered || replicas >= 3,
        remedy,
    );
    let dispatch = stream_info(client, DISPATCH).await?;
    let fewer = dispatch["config"]["num_replicas"].as_u64().unwrap_or(1) < replicas;
    let remedy = "If one disk fails, job messages are lost (the jobs are not): give DISPATCH as many copies as MARKET.";
    findings.add("replicas.of_dispatch", !fewer, "as many as MARKET", !fewer, remedy);
    let lag = dispatch["sources"][0]["lag"].as_u64().unwrap_or(0);
    let remedy = "Job messages are late: look at the broker's load. DISPATCH sources them from MARKET.";
    findings.add("lag.of_dispatch", lag, format!("at most {MAX_LAG}"), lag <= MAX_LAG, remedy);
    let output = stream_info(client, OUTPUT).await?;
    let (bytes, most) = (&output["state"]["bytes"], output["config"]["max_bytes"].as_u64().unwrap_or(u64::MAX));
    let percent = bytes.as_u64().unwrap_or(0).saturating_mul(100) / most.max(1);
    // A full stream OUTPUT (the output of jobs) is normal: new lines replace the oldest lines.
    findings.add("room.of_output", format!("{percent} % used"), "for information", true, "");
    let telemetry = stream_info(client, TELEMETRY).await?;
    let storage = telemetry["config"]["storage"].as_str().unwrap_or_default();
    findings.add(
        "storage.of_telemetry",
        storage,
        "memory",
        storage == "memory",
        "Heartbeats are written to disk: provision the streams again.",
    );
    Ok(())
}

fn models(platform: &Platform, findings: &mut Findings) {
    for model in &platform.models {
        let (id, lag) = (format!("model.{}", model.name), model.lag(platform.last));
        let actual = model.stopped.clone().unwrap_or_else(|| format!("{lag} behind"));
        let passed = model.stopped.is_none() && lag <= MAX_LAG;
        let remedy =
            "Look at the named event, fix the projection and start again: the model continues from its checkpoint.";
        findings.add(&id, actual, format!("at most {MAX_LAG} behind"), passed, remedy);
    }
}

async fn signed_head(log: &Log, findings: &mut Findings) {
    let head = async {
        let bucket = log.jetstream().get_key_value(CHECKPOINTS).await?;
        tree_head::get(&bucket, LATEST).await
    };
    let (actual, passed) = match head.await {
        Ok(Some(head)) => {
            let last = log.last_seq().await.map_or(0, |last| last.0);
            let is_recent = head.size <= last && last - head.size <= MAX_UNSIGNED;
            (format!("of {} events, of {last}", head.size), head.is_signed() && is_recent)
        }
        Ok(None) => ("none yet".to_owned(), false),
        Err(e) => (format!("{e:#}"), false),
    };
    let remedy = "No signed head covers the log: start the projector, with credentials that may write to CHECKPOINTS.";
    findings.add("log.signed_head", actual, "signed", passed, remedy);
}

/// Checks that no other user of this machine may read the credentials.
fn credentials(creds: &Path, findings: &mut Findings) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut readable = Vec::new();
    for entry in std::fs::read_dir(creds).with_context(|| creds.display().to_string())? {
        let entry = entry?;
        if entry.metadata()?.permissions().mode() & 0o077 != 0 {
            readable.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    let is_private = readable.is_empty();
    let actual = if is_private { "readable by no other user".to_owned() } else { readable.join(" ") };
    findings.add("credentials.private", actual, "readable by no other user", is_private, "chmod 600 these files.");
    Ok(())
}
