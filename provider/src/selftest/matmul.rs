//! How fast the GPUs multiply matrices: the market's template `pytorch`, run on each of them in the sandbox of a job. So it
//! says besides whether jobs are given the GPU at all. It takes a while and wants the GPU for itself: it is measured when the
//! owner asks, kept, and said again whenever the worker starts.

use std::{
    collections::BTreeMap,
    fs, io,
    num::NonZero,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
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

use super::{Subject, check, needs};
use crate::{
    docker::{Frame, file_owner, hardened, job_user},
    hardware,
};

const FILE: &str = "matmul.json";
/// How long pulling the image, and how long one measurement may take.
const PULL: Duration = Duration::from_secs(3_600);
const MEASURE: Duration = Duration::from_secs(300);
/// What the template prints before the number.
const SAID: &str = "GFLOP/s ";
/// Log that is read.
const MOST_LOG: usize = 64 * 1024;

/// Whether to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    /// Says what was measured before.
    Kept,
    /// Measures, and pulls the image where it is not here.
    Now,
}

/// GFLOP/s by the GPU's UUID.
type Rates = BTreeMap<String, u64>;

pub(super) async fn checks(subject: &Subject<'_>) -> Vec<Check> {
    if subject.gpus.simulated() {
        return Vec::new();
    }
    let path = subject.state.join(FILE);
    let mut rates = kept(&path);
    let mut checks = Vec::new();
    for (index, gpu) in subject.gpus.list().iter().enumerate() {
        let id = format!("gpu.{index}.matmul");
        let measured = match (subject.measure, subject.docker) {
            (Measure::Kept, _) | (_, None) => Ok(rates.get(&gpu.uuid).copied()),
            (_, Some(docker)) => measure(subject, docker, &gpu.uuid).await.map(Some),
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
        tracing::warn!(path = %path.display(), error = %e, "what was measured is not kept");
    }
    checks
}

/// What was measured before. Where that cannot be read, it is measured anew.
fn kept(path: &Path) -> Rates {
    fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

fn keep(path: &Path, rates: &Rates) -> io::Result<()> {
    let partial = path.with_extension("partial");
    fs::write(&partial, serde_json::to_vec(rates)?)?;
    fs::rename(&partial, path)
}

async fn measure(subject: &Subject<'_>, docker: &Docker, gpu: &str) -> anyhow::Result<u64> {
    let template = template::ALL.iter().find(|t| t.id == "pytorch").context("the market has no template for it")?;
    let image = image(docker, template).await?;
    let output = Scratch::new(subject.state, file_owner(docker).await?)?;
    let (machine, job, lease) = (MachineId::generate(), JobId::generate(), Lease(Seq::ZERO));
    let frame = Frame {
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
    let mut body = hardened(&spec(template), &frame);
    // It is no job: nobody may take it up again.
    body.labels = None;
    let name = format!("gpubnb-self-test-{job}");
    let options = CreateContainerOptionsBuilder::default().name(&name).build();
    docker.create_container(Some(options), body).await?;
    let ran = tokio::time::timeout(MEASURE, run(docker, &name)).await;
    let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
    let removed = docker.remove_container(&name, Some(options)).await;
    let said = ran.context("it took too long")??;
    removed?;
    rate(&said).with_context(|| format!("it said no rate: {}", said.trim()))
}

/// A directory that is gone afterwards.
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
        drop(fs::remove_dir_all(&self.0));
    }
}

fn spec(template: &Template) -> JobSpec {
    let whole = template.spec(template.title);
    JobSpec { resources: fitting(whole.resources.clone()), ..whole }
}

/// What the template asks for, as far as this machine has it: the GPU is what is measured.
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

/// Runs it, and returns what it said.
async fn run(docker: &Docker, name: &str) -> anyhow::Result<String> {
    docker.start_container(name, None::<StartContainerOptions>).await?;
    let ended = docker.wait_container(name, None::<WaitContainerOptions>).next().await;
    let options = LogsOptionsBuilder::default().stdout(true).stderr(true).tail("20").build();
    let mut lines = docker.logs(name, Some(options));
    let mut said = Vec::new();
    while let Some(line) = lines.next().await {
        said.extend_from_slice(&LogOutput::into_bytes(line?));
        if said.len() > MOST_LOG {
            break;
        }
    }
    let said = String::from_utf8_lossy(&said).into_owned();
    match ended {
        Some(Ok(_)) | None => Ok(said),
        Some(Err(e)) => bail!("{e}: {}", said.trim()),
    }
}

/// The number in what the template printed.
fn rate(said: &str) -> Option<u64> {
    said.lines().find_map(|line| line.strip_prefix(SAID)?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_says_the_rate_in_a_line_of_its_own() {
        assert_eq!(rate("NVIDIA H100\nGFLOP/s 51234\n"), Some(51_234));
        assert_eq!(rate("Traceback: GFLOP/s 1"), None);
        let template = template::ALL.iter().find(|t| t.id == "pytorch").unwrap();
        assert!(template.command.iter().any(|part| part.contains("print('GFLOP/s',")));
    }
}
