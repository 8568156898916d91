//! `dispatch_overhead`: the time of a job that does nothing, from the HTTP request until its page shows that the job is
//! settled. The baseline is the time of the same container, driven through Docker's API without a market.

use std::{fs, os::unix::fs::chown, path::Path, time::Duration};

use anyhow::{Context as _, bail};
use bollard::{
    Docker,
    query_parameters::{
        CreateContainerOptionsBuilder, ListContainersOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
        StartContainerOptions, WaitContainerOptions,
    },
};
use futures_util::StreamExt;
use gpubnb_events::{JobId, Lease, MachineId, Seq, template};
use gpubnb_provider::{SandboxParams, hardened_container, job_user};
use serde_json::json;
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
        // The worker removes the container after its report. This must not disturb the next baseline.
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
    let spec = template.spec("bare");
    let output = dir.join("bare");
    fs::create_dir_all(&output)?;
    let user = job_user();
    chown(&output, Some(user.0), Some(user.1))?;
    let image = docker.inspect_image(template.image).await?.into();
    let params = SandboxParams {
        machine: MachineId::generate(),
        job: JobId::generate(),
        lease: Lease(Seq(0)),
        image: &image,
        output: &output,
        input: None,
        env: std::collections::BTreeMap::new(),
        user,
        gpus: Vec::new(),
        cdi: false,
        runtime: None,
        max_log: 16 << 20,
    };
    let body = hardened_container(&spec, &params);
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
