//! `dispatch_overhead`: the time of a job that does nothing, from the HTTP request until its page shows that the job is
//! settled. The baseline is the time of the same container, driven through Docker's API without a market.

use std::{fs, os::unix::fs::chown, path::Path, time::Duration};

use anyhow::{Context as _, bail};
use bollard::{
    Docker,
    models::ContainerCreateBody,
    query_parameters::{
        CreateContainerOptionsBuilder, ListContainersOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
        StartContainerOptions, WaitContainerOptions,
    },
};
use futures_util::StreamExt;
use gpubnb_events::template::{self, Template};
use gpubnb_provider::job_user;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::{millis, quantile, report::Figure};
use crate::system::{MarketSettings, System};

/// Number of measured pairs: one bare container and one job.
const PAIRS: usize = 60;
/// Number of pairs before these, which are not counted.
const WARM_UP: usize = 3;

pub(super) async fn measure() -> anyhow::Result<Vec<Figure>> {
    let mut system = System::start(MarketSettings::default()).await?;
    system.start_worker("bench", &["--price", "0"]).await?;
    let docker = Docker::connect_with_defaults()?.negotiate_version().await?;
    let label = format!("gpubnb.machine={}", system.machine_id("bench")?);
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for pair in 0..PAIRS + WARM_UP {
        let bare_time = millis(run_bare_container(&docker, system.path()).await?);
        let job_time = millis(run_job(&system).await?);
        // The worker removes the container after its report. The removal must not disturb the next baseline.
        wait_until_removed(&docker, &label).await?;
        sleep(Duration::from_millis(100)).await;
        if pair >= WARM_UP {
            bare.push(bare_time);
            ours.push(job_time);
        }
    }
    let figure = Figure::new(
        "dispatch_overhead",
        (quantile(&mut ours, 0.5), "ms p50"),
        ("bare Docker life of the container", quantile(&mut bare, 0.5)),
        PAIRS,
        ("<= 1.10", |f| f.ratio <= 1.10),
    );
    Ok(vec![figure])
}

/// Runs a job. Returns the time from the request until the page's stream shows that the job is settled.
async fn run_job(system: &System) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let (_, page) = system.consumer.submit_and_open_page(&json!({ "template": "noop", "budget_usd": "0.01" })).await?;
    let mut frames = page.bytes_stream();
    let mut text = String::new();
    while let Some(bytes) = timeout(Duration::from_secs(20), frames.next()).await.context("no frame came")? {
        text.push_str(&String::from_utf8_lossy(&bytes?));
        if text.contains("data-state=\"Settled\"") {
            return Ok(started.elapsed());
        }
    }
    bail!("the page's stream ended: {text}")
}

/// Runs a container with the five calls of Docker's API that every program needs: create, start, wait, logs, remove.
/// Returns the time of these calls.
async fn run_bare_container(docker: &Docker, dir: &Path) -> anyhow::Result<Duration> {
    let template = template::find("noop").context("the template is missing")?;
    let output = dir.join("bare");
    fs::create_dir_all(&output)?;
    let user = job_user();
    chown(&output, Some(user.0), Some(user.1))?;
    let body: ContainerCreateBody = serde_json::from_value(bare_container(template, &output, user))?;
    let began = Instant::now();
    let options = CreateContainerOptionsBuilder::default().name("gpubnb-bare").build();
    let id = docker.create_container(Some(options), body).await?.id;
    docker.start_container(&id, None::<StartContainerOptions>).await?;
    let mut exit = docker.wait_container(&id, None::<WaitContainerOptions>);
    exit.next().await.context("the container has no exit status")??;
    let options = LogsOptionsBuilder::default().stdout(true).stderr(true).build();
    let lines: Vec<_> = docker.logs(&id, Some(options)).collect().await;
    anyhow::ensure!(lines.is_empty(), "a job that does nothing prints nothing");
    docker.remove_container(&id, Some(RemoveContainerOptionsBuilder::default().v(true).build())).await?;
    Ok(began.elapsed())
}

/// The request to Docker for the bare container. Its settings are a copy of the job's sandbox of 2026-11-29. Do not
/// update the copy: if the sandbox becomes slower, the ratio must become worse.
fn bare_container(template: &Template, output: &Path, (uid, gid): (u32, u32)) -> Value {
    let limit = |name: &str, most: i64| json!({ "Name": name, "Soft": most, "Hard": most });
    json!({
        "Image": template.image,
        "Cmd": template.command,
        "User": format!("{uid}:{gid}"),
        "WorkingDir": "/output",
        "Env": ["GPUBNB_OUTPUT=/output", "HOME=/tmp", "TMPDIR=/tmp", "USER=job", "LOGNAME=job", "OMP_NUM_THREADS=1"],
        "NetworkDisabled": true,
        "Healthcheck": { "Test": ["NONE"] },
        "HostConfig": {
            "NetworkMode": "none",
            "ReadonlyRootfs": true,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges:true"],
            "Init": true,
            "PidsLimit": 512,
            "Memory": 64 << 20,
            "MemorySwap": 64 << 20,
            "NanoCpus": 1_000_000_000,
            "OomScoreAdj": 500,
            "IpcMode": "private",
            "ShmSize": 16 << 20,
            "Ulimits": [limit("nofile", 4_096), limit("core", 0), limit("fsize", 80 << 20)],
            "Tmpfs": { "/tmp": "rw,noexec,nosuid,nodev,size=64m,mode=1777" },
            "Mounts": [{ "Type": "bind", "Source": output, "Target": "/output" }],
            "LogConfig": {
                "Type": "local", "Config": { "max-file": "1", "max-size": "67108864", "compress": "false" },
            },
            "RestartPolicy": { "Name": "no" },
        },
    })
}

/// Waits until no container has this label.
async fn wait_until_removed(docker: &Docker, label: &str) -> anyhow::Result<()> {
    for _ in 0..500 {
        let filters = std::collections::HashMap::from([("label", vec![label])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        if docker.list_containers(Some(options)).await?.is_empty() {
            return Ok(());
        }
        sleep(Duration::from_millis(10)).await;
    }
    bail!("a container was not removed")
}
