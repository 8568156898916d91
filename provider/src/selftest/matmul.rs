//! Measures how fast each GPU multiplies matrices, by running the market's template `pytorch` in the sandbox of a job.
//! The measurement also shows that a job can use the GPU at all. It takes a while, and no job should run beside it: it
//! is made when the owner asks, and its result is kept and reported at each start of the worker.

use std::{
    collections::BTreeMap,
    fs, io,
    num::NonZero,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use bollard::{
    Docker,
    container::LogOutput,
    errors::Error,
    query_parameters::{
        CreateContainerOptionsBuilder, CreateImageOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
        StartContainerOptions, WaitContainerOptions,
    },
};
use futures_util::StreamExt as _;
use gpubnb_events::{
    JobId, Lease, MachineId, Seq,
    event::Check,
    spec::{JobSpec, Resources},
    template::{self, Template},
};

use super::{TestSubject, check, needs};
use crate::{
    docker::{SandboxParams, file_owner, hardened, job_user},
    hardware,
};

const FILE: &str = "matmul.json";
/// How long pulling the image may take, and how long one measurement.
const PULL: Duration = Duration::from_secs(3_600);
const MEASURE: Duration = Duration::from_secs(300);
/// The text that the template prints before the number.
const PREFIX: &str = "GFLOP/s ";
/// Most bytes of the container's log that are read.
const MOST_LOG: usize = 64 * 1024;

/// Measure the GPUs now, or report the last results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    /// Reports the results of the last measurement.
    Kept,
    /// Measures now. Pulls the image where it is not here.
    Now,
}

/// GFLOP/s by the GPU's UUID.
type Rates = BTreeMap<String, u64>;

pub(super) async fn checks(subject: &TestSubject<'_>) -> Vec<Check> {
    if subject.gpus.simulated() {
        return Vec::new();
    }
    let path = subject.state.join(FILE);
    let mut rates = kept(&path);
    let mut checks = Vec::new();
    for (index, gpu) in subject.gpus.list().iter().enumerate() {
        let id = format!("gpu.{index}.matmul");
        let measured = match (subject.measure, subject.docker) {
            (Measure::Kept, _) | (_, Err(_)) => Ok(rates.get(&gpu.uuid).copied()),
            (_, Ok(docker)) => measure(subject, docker, &gpu.uuid).await.map(Some),
        };
        let unit = "GFLOP/s, 32 bit";
        checks.push(match measured {
            Ok(Some(rate)) => {
                rates.insert(gpu.uuid.clone(), rate);
                check(&id, rate.to_string(), unit)
            }
            Ok(None) => {
                let remedy =
                    "Measure it: gpubnb-provider self-test --measure-gpus (pulls PyTorch's image, some GB, once).";
                needs(check(&id, "not measured", ""), "measured", false, remedy)
            }
            Err(e) => {
                let why: String = format!("{e:#}").chars().filter(|c| !c.is_control()).take(300).collect();
                let remedy = "A job on this GPU would fail like this. See gpu.runtime, then: gpubnb-provider self-test \
                              --measure-gpus.";
                needs(check(&id, why, ""), "measured", false, remedy)
            }
        });
    }
    if subject.measure != Measure::Kept
        && let Err(e) = keep(&path, &rates)
    {
        tracing::warn!(path = %path.display(), error = %e, "the measured speeds are not kept");
    }
    checks
}

/// The results of the last measurement. A file that cannot be read counts as none, and the owner measures again.
fn kept(path: &Path) -> Rates {
    fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

fn keep(path: &Path, rates: &Rates) -> io::Result<()> {
    let partial = path.with_extension("partial");
    fs::write(&partial, serde_json::to_vec(rates)?)?;
    fs::rename(&partial, path)
}

async fn measure(subject: &TestSubject<'_>, docker: &Docker, gpu: &str) -> anyhow::Result<u64> {
    let template = template::ALL.iter().find(|t| t.id == "pytorch").context("the market has no template for it")?;
    let image = image(docker, template).await?;
    let output = Scratch::new(subject.state, file_owner(docker).await?)?;
    let (machine, job, lease) = (MachineId::generate(), JobId::generate(), Lease(Seq::ZERO));
    let params = SandboxParams {
        machine,
        job,
        lease,
        image_id: &image,
        output: &output.0,
        input: None,
        env: BTreeMap::new(),
        user: job_user(),
        gpus: vec![gpu.to_owned()],
        cdi: subject.cdi,
        runtime: subject.runtime.map(ToOwned::to_owned),
        max_log: 1 << 20,
    };
    let mut body = hardened(&spec(template), &params);
    // Without labels, no worker takes the container for an attempt and resumes it.
    body.labels = None;
    let name = format!("gpubnb-self-test-{job}");
    let options = CreateContainerOptionsBuilder::default().name(&name).build();
    docker.create_container(Some(options), body).await?;
    let ran = tokio::time::timeout(MEASURE, run(docker, &name)).await;
    let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
    let removed = docker.remove_container(&name, Some(options)).await;
    let output = ran.context("the measurement took too long")??;
    removed?;
    rate(&output).with_context(|| format!("no speed in the output: {}", output.trim()))
}

/// A directory that is removed when this value is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(state: &Path, (uid, gid): (u32, u32)) -> io::Result<Self> {
        let dir = Self(state.join("self-test"));
        fs::create_dir_all(&dir.0)?;
        std::os::unix::fs::chown(&dir.0, Some(uid), Some(gid))?;
        Ok(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), error = %e, "a directory of the self-test cannot be removed");
        }
    }
}

fn spec(template: &Template) -> JobSpec {
    let whole = template.spec(template.title);
    JobSpec { resources: fitting(whole.resources.clone()), ..whole }
}

/// The template's resources, reduced to what this machine has: only the GPU is measured.
fn fitting(mut resources: Resources) -> Resources {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    resources.cpu_millis = resources.cpu_millis.min(u32::try_from(cores).unwrap_or(u32::MAX).saturating_mul(1_000));
    if let Ok(memory) = hardware::memory() {
        resources.memory = resources.memory.min(memory);
    }
    resources
}

/// The image's id.
async fn image(docker: &Docker, template: &Template) -> anyhow::Result<String> {
    let inspect = async || docker.inspect_image(template.image).await.map(|found| found.id.unwrap_or_default());
    match inspect().await {
        Err(Error::DockerResponseServerError { status_code: 404, .. }) => {
            eprintln!("pulling {} (some GB, once)", template.image);
            let options = CreateImageOptionsBuilder::default().from_image(template.image).build();
            let mut steps = docker.create_image(Some(options), None, None);
            let all = async {
                while let Some(step) = steps.next().await {
                    step?;
                }
                Ok::<_, Error>(())
            };
            tokio::time::timeout(PULL, all).await.context("pulling took too long")??;
            Ok(inspect().await?)
        }
        found => Ok(found?),
    }
}

/// Runs the container, and returns its output.
async fn run(docker: &Docker, name: &str) -> anyhow::Result<String> {
    docker.start_container(name, None::<StartContainerOptions>).await?;
    let ended = docker.wait_container(name, None::<WaitContainerOptions>).next().await;
    let options = LogsOptionsBuilder::default().stdout(true).stderr(true).tail("20").build();
    let mut lines = docker.logs(name, Some(options));
    let mut output = Vec::new();
    while let Some(line) = lines.next().await {
        output.extend_from_slice(&LogOutput::into_bytes(line?));
        if output.len() > MOST_LOG {
            break;
        }
    }
    let output = String::from_utf8_lossy(&output).into_owned();
    match ended {
        Some(Ok(_)) | None => Ok(output),
        Some(Err(e)) => Err(anyhow::Error::new(e).context(output.trim().to_owned())),
    }
}

/// The speed in the template's output.
fn rate(output: &str) -> Option<u64> {
    output.lines().find_map(|line| line.strip_prefix(PREFIX)?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_prints_the_speed_on_a_line_of_its_own() {
        assert_eq!(rate("NVIDIA H100\nGFLOP/s 51234\n"), Some(51_234));
        assert_eq!(rate("Traceback: GFLOP/s 1"), None);
        let template = template::ALL.iter().find(|t| t.id == "pytorch").unwrap();
        assert!(template.command.iter().any(|part| part.contains("print('GFLOP/s',")));
    }
}
