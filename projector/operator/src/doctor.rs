//! `doctor`: checks a deployment, and tells the operator what to change. The command itself changes nothing.

use std::path::Path;

use anyhow::Context as _;
use async_nats::Client;
use gpubnb_events::{Actor, MachineId, Seq};
use gpubnb_log::{
    Log,
    stream::{DISPATCH, machine_consumer},
};
use gpubnb_projector::ops::doctor::{Findings, MAX_WAIT, run_checks};
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
    match &args.nats_conf {
        Some(conf) => configuration(conf, args.min_free_gib, &mut found)?,
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

/// Checks the delivery of jobs: reports machines with redelivered job messages, and machines without a consumer.
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

/// Checks the broker's configuration file, and whether the disk with its streams has `min_free_gib` GiB left. Runs on the
/// broker's machine only.
fn configuration(conf: &Path, min_free_gib: u64, found: &mut Findings) -> anyhow::Result<()> {
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
        let (actual, least) = (format!("{} GiB", free >> 30), format!("at least {min_free_gib} GiB"));
        found.add(
            "broker.free_room",
            actual,
            least,
            free >> 30 >= min_free_gib,
            "A full disk stops the market: free some space.",
        );
    }
    Ok(())
}
