//! `dispatch_overhead`: a no-op job from the HTTP request to the page that shows it settled, over the bare
//! life of the same hardened container by Docker's API.

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
use crate::system::{Options, System};

const PAIRS: usize = 60;
const WARM_UP: usize = 3;

pub(super) async fn measure() -> anyhow::Result<Vec<Figure>> {
    let mut system = System::start(Options::default()).await?;
    system.start_worker("bench", &["--price", "0"]).await?;
    let docker = Docker::connect_with_defaults()?.negotiate_version().await?;
    let label = format!("gpubnb.machine={}", system.machine("bench")?);
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for pair in 0..PAIRS + WARM_UP {
        let b = millis(bare_life(&docker, system.path()).await?);
        let o = millis(job(&system).await?);
        // The worker removes its container after the report, and makes ready for the next: not during the next baseline.
        until_removed(&docker, &label).await?;
        sleep(Duration::from_millis(100)).await;
        if pair >= WARM_UP {
            bare.push(b);
            ours.push(o);
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

/// From the request to the page's frame that shows the job settled.
async fn job(system: &System) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let (_, page) = system.web.submit_and_watch(&json!({ "template": "noop", "budget_usd": "0.01" })).await?;
    let mut frames = page.bytes_stream();
    let mut seen = String::new();
    while let Some(bytes) = timeout(Duration::from_secs(20), frames.next()).await.context("no frame came")? {
        seen.push_str(&String::from_utf8_lossy(&bytes?));
        if seen.contains("data-state=\"Settled\"") {
            return Ok(began.elapsed());
        }
    }
    bail!("the page's stream ended: {seen}")
}

/// Create, start, wait, logs, remove: what nobody can do without.
async fn bare_life(docker: &Docker, dir: &Path) -> anyhow::Result<Duration> {
    let template = template::find("noop").context("the template")?;
    let spec = template.spec("bare");
    let output = dir.join("bare");
    fs::create_dir_all(&output)?;
    let user = job_user();
    chown(&output, Some(user.0), Some(user.1))?;
    let image = docker.inspect_image(template.image).await?.id.unwrap_or_default();
    let frame = SandboxParams {
        machine: MachineId::generate(),
        job: JobId::generate(),
        lease: Lease(Seq(0)),
        image_id: &image,
        output: &output,
        input: None,
        env: std::collections::BTreeMap::new(),
        user,
        gpus: Vec::new(),
        cdi: false,
        runtime: None,
        max_log: 16 << 20,
    };
    let body = hardened_container(&spec, &frame);
    let began = Instant::now();
    let options = CreateContainerOptionsBuilder::default().name("gpubnb-bare").build();
    let id = docker.create_container(Some(options), body).await?.id;
    docker.start_container(&id, None::<StartContainerOptions>).await?;
    let mut exit = docker.wait_container(&id, None::<WaitContainerOptions>);
    exit.next().await.context("no exit")??;
    let options = LogsOptionsBuilder::default().stdout(true).stderr(true).build();
    let lines: Vec<_> = docker.logs(&id, Some(options)).collect().await;
    anyhow::ensure!(lines.is_empty(), "a no-op says nothing");
    docker.remove_container(&id, Some(RemoveContainerOptionsBuilder::default().v(true).build())).await?;
    Ok(began.elapsed())
}

async fn until_removed(docker: &Docker, label: &str) -> anyhow::Result<()> {
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
