//! `doctor`: checks a deployment, and tells the operator what to change. The command itself changes nothing.

use std::path::Path;

use anyhow::Context as _;
use async_nats::Client;
use gpubnb_events::{Actor, MachineId, Seq};
use gpubnb_log::{
    Log,
    stream::{ARTIFACTS, DISPATCH, INPUTS, OUTPUT, machine_consumer, store_stream},
};
use gpubnb_projector::ops::doctor::{Findings, MAX_WAIT, run_checks, stream_info};
use gpubnb_query::QueryClient;
use gpubnb_runtime::rpc::Caller;
use serde_json::Value;

use super::print_result;
use crate::config::DoctorArgs;

const OPERATOR: Actor = Actor::Operator(None);

pub(crate) async fn doctor(client: Client, log: &Log, creds: &Path, args: &DoctorArgs) -> anyhow::Result<()> {
    let mut found = Findings::default();
    let queries = QueryClient::new(Caller::new(client.clone()));
    let platform = queries.platform(OPERATOR).await.map_err(|e| e.to_string());
    run_checks(&client, log, platform.as_ref().map_err(Clone::clone), creds, &mut found).await?;
    deliveries(&client, &queries, &mut found).await?;
    let growth = growth(&client, &mut found).await;
    match &args.nats_conf {
        Some(conf) => configuration(conf, args.min_free_gib << 30, growth, &mut found)?,
        None => found.add("broker.on_its_machine", "not looked at", "give --nats-conf there", true, ""),
    }
    let Findings(checks) = found;
    let bad = checks.iter().filter(|check| !check.passed).count();
    if args.json {
        print_result(&serde_json::to_string(&checks)?)?;
    } else {
        for c in &checks {
            print_result(format_args!(
                "{} {:<28} {:<24} {}",
                if c.passed { "ok  " } else { "FAIL" },
                c.id,
                c.actual,
                c.required
            ))?;
            if !c.passed {
                print_result(format_args!("     {}", c.remedy))?;
            }
        }
    }
    anyhow::ensure!(bad == 0, "{bad} of {} checks failed", checks.len());
    Ok(())
}

/// Checks the delivery of jobs: reports machines with redelivered job messages, and machines without a JetStream
/// consumer, through which a machine fetches its job messages.
async fn deliveries(client: &Client, queries: &QueryClient, found: &mut Findings) -> anyhow::Result<()> {
    let Ok(machines) = queries.machines(OPERATOR, Seq::ZERO).await else { return Ok(()) };
    let (mut redelivered, mut without_consumer) = (Vec::new(), Vec::new());
    for machine in machines {
        let id: MachineId = machine.listed.machine;
        let asked = client.request(format!("$JS.API.CONSUMER.INFO.{DISPATCH}.{}", machine_consumer(id)), "".into());
        let answer: Value = serde_json::from_slice(&tokio::time::timeout(MAX_WAIT, asked).await??.payload)?;
        if answer["error"]["code"] == 404 {
            without_consumer.push(id.to_string());
        } else if answer["num_redelivered"].as_u64().unwrap_or(0) > 0 {
            redelivered.push(id.to_string());
        }
    }
    let listed = |ids: &[String]| if ids.is_empty() { "none".to_owned() } else { ids.join(" ") };
    let remedy = "A worker fetched a job message and did not acknowledge it: check that machine. When the lease \
                  expires, the job goes to another machine by itself.";
    found.add("jobs.given_out_again", listed(&redelivered), "none", redelivered.is_empty(), remedy);
    let remedy = "These machines cannot fetch jobs: restart their workers, which creates their consumers again.";
    found.add("machines.without_consumer", listed(&without_consumer), "none", without_consumer.is_empty(), remedy);
    Ok(())
}

/// By how many bytes the streams of files and of output can still grow until they are full. They share the disk with
/// the log, which must never find the disk full. A stream whose growth is not known is a finding.
async fn growth(client: &Client, found: &mut Findings) -> u64 {
    let mut growth = 0;
    for stream in [OUTPUT.to_owned(), store_stream(INPUTS), store_stream(ARTIFACTS)] {
        // Without an answer, the growth of the stream is not known either.
        let info = stream_info(client, &stream).await.unwrap_or_default();
        let (limit, used) = (info["config"]["max_bytes"].as_u64(), info["state"]["bytes"].as_u64());
        if let (Some(limit), Some(used)) = (limit, used) {
            growth += limit.saturating_sub(used);
            // Old output makes room for new output. Files are refused when their store is full.
            if stream != OUTPUT {
                let percent = used.saturating_mul(100) / limit.max(1);
                let remedy = "Files will be refused when the store is full: give it more room (--inputs-mib or \
                              --artifacts-mib of gpubnb-services run --provision), if the disk has it.";
                found.add(&format!("{stream}.used"), format!("{percent} %"), "at most 80 %", percent <= 80, remedy);
            }
        } else {
            let remedy = "Give the stream a limit (gpubnb-services run --help), and see that this credential may ask \
                          for its size.";
            found.add("broker.growth", &stream, "a known limit", false, remedy);
        }
    }
    growth
}

/// Checks the broker's configuration file, and whether the disk with its streams has room: `min_free` bytes must be
/// left when the streams of files and of output have grown by `growth` bytes. Works on the broker's machine only.
fn configuration(conf: &Path, min_free: u64, growth: u64, found: &mut Findings) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(conf).with_context(|| conf.display().to_string())?;
    let value = |name: &str| {
        let line = text.lines().map(str::trim).find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().trim_matches('"').to_owned())
    };
    let sync = value("sync_interval").unwrap_or_else(|| "2m".to_owned());
    let remedy = "An acknowledged event can be lost in a power cut: set sync_interval: always in nats.conf.";
    found.add("broker.sync_interval", &sync, "always", sync == "always", remedy);
    if let Some(store) = value("store_dir").filter(|store| Path::new(store).exists()) {
        let room = rustix::fs::statvfs(store.as_str())?;
        let free = room.f_bavail.saturating_mul(room.f_frsize);
        let needed = min_free.saturating_add(growth);
        let (actual, least) = (format!("{} MiB", free >> 20), format!("at least {} MiB", needed >> 20));
        found.add(
            "broker.free_room",
            actual,
            least,
            free >= needed,
            "Files and output could fill the disk, which stops the market: free some space, or make their streams \
             smaller (--inputs-mib, --artifacts-mib, --output-mib of gpubnb-services).",
        );
    }
    Ok(())
}
