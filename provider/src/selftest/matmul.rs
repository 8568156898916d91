//! Measures how fast each GPU multiplies matrices (*matmul*). The measurement runs PyTorch in the sandbox of a job,
//! which also proves that jobs can use the GPU. The measurement takes minutes, and no job should
//! run at the same time. Therefore the GPUs are measured only when the owner asks. The results are saved in the
//! worker's directory, and reported at each start of the worker.

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
    spec::{JobSpec, Mebibytes, Resources},
    text::is_plain,
};

use super::{TestSubject, check, with_requirement};
use crate::{
    docker::{LocalImage, SandboxParams, file_owner, hardened_container, job_user},
    hardware, json_file,
};

/// The file of the results in the worker's directory.
const RESULTS_FILE: &str = "matmul.json";
/// Longest time to pull the image.
const PULL_TIMEOUT: Duration = Duration::from_secs(3_600);
/// Longest time of the measurement of one GPU.
const MEASURE_TIMEOUT: Duration = Duration::from_secs(300);
/// The image of the measurement.
const IMAGE: &str = "pytorch/pytorch:2.9.1-cuda12.8-cudnn9-runtime";
/// The program of the measurement.
const PROGRAM: &str = "import torch,time; d='cuda'; a=torch.randn(4096,4096,device=d); \
    print(torch.cuda.get_device_name()); t=time.time(); [a@a for _ in range(100)]; torch.cuda.synchronize(); \
    print('GFLOP/s', round(100*2*4096**3/(time.time()-t)/1e9))";
/// The text that the program prints before the speed.
const PREFIX: &str = "GFLOP/s ";
/// Most bytes of the container's log that are read.
const MAX_LOG_BYTES: usize = 64 * 1024;

/// Selects between a new measurement of the GPUs and the last results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    /// Reports the results of the last measurement.
    LastResult,
    /// Measures now. Pulls the image if it is not on this machine.
    Now,
}

/// The speed of each GPU in GFLOP/s, by the GPU's UUID.
type Rates = BTreeMap<String, u64>;

pub(super) async fn checks(subject: &TestSubject<'_>) -> Vec<Check> {
    if subject.gpus.is_simulated() {
        return Vec::new();
    }
    let path = subject.state.join(RESULTS_FILE);
    let mut rates = read_results(&path);
    let mut checks = Vec::new();
    for (index, gpu) in subject.gpus.list().iter().enumerate() {
        let id = format!("gpu.{index}.matmul");
        let measured = match (subject.measure, subject.docker) {
            (Measure::LastResult, _) | (_, Err(_)) => Ok(rates.get(&gpu.uuid).copied()),
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
                with_requirement(check(&id, "not measured", ""), "measured", false, remedy)
            }
            Err(e) => {
                let why: String = format!("{e:#}").chars().filter(|c| is_plain(*c)).take(300).collect();
                let remedy = "A job on this GPU would fail like this. See gpu.runtime, then: gpubnb-provider self-test \
                              --measure-gpus.";
                with_requirement(check(&id, why, ""), "measured", false, remedy)
            }
        });
    }
    if subject.measure != Measure::LastResult
        && let Err(e) = json_file::save(&path, &rates)
    {
        tracing::warn!(path = %path.display(), error = %e, "the measured speeds were not saved");
    }
    checks
}

/// Reads the results of the last measurement. If the file cannot be read, there are no results, and the owner has to
/// measure again.
fn read_results(path: &Path) -> Rates {
    json_file::saved(path).unwrap_or_default()
}

/// Measures one GPU in a container. `gpu` is its UUID. Returns the speed in GFLOP/s.
async fn measure(subject: &TestSubject<'_>, docker: &Docker, gpu: &str) -> anyhow::Result<u64> {
    let image = image_id(docker).await?;
    let output = ScratchDir::new(subject.state, file_owner(docker).await?)?;
    let (machine, job, lease) = (MachineId::generate(), JobId::generate(), Lease(Seq::ZERO));
    let params = SandboxParams {
        machine,
        job,
        lease,
        image: &LocalImage { id: image, ..LocalImage::default() },
        output: &output.0,
        // The measurement writes no file, so one directory is enough.
        scratch: &output.0,
        volumes: Vec::new(),
        input: None,
        datasets: Vec::new(),
        env: BTreeMap::new(),
        user: job_user(),
        gpus: vec![gpu.to_owned()],
        cdi: subject.cdi,
        runtime: subject.runtime.map(ToOwned::to_owned),
        max_log: 1 << 20,
    };
    let mut body = hardened_container(&job_spec(), &params);
    // Remove the labels. A worker would otherwise resume the container as an attempt of a job.
    body.labels = None;
    let name = format!("gpubnb-self-test-{job}");
    let options = CreateContainerOptionsBuilder::default().name(&name).build();
    docker.create_container(Some(options), body).await?;
    let ran = tokio::time::timeout(MEASURE_TIMEOUT, run(docker, &name)).await;
    let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
    let removed = docker.remove_container(&name, Some(options)).await;
    let output = ran.context("the measurement took too long")??;
    removed?;
    parse_rate(&output).with_context(|| format!("no speed in the output: {}", output.trim()))
}

/// A temporary directory, which is removed when this value is dropped.
struct ScratchDir(PathBuf);

impl ScratchDir {
    fn new(state: &Path, (uid, gid): (u32, u32)) -> io::Result<Self> {
        let dir = Self(state.join("self-test"));
        fs::create_dir_all(&dir.0)?;
        std::os::unix::fs::chown(&dir.0, Some(uid), Some(gid))?;
        Ok(dir)
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), error = %e, "a directory of the self-test cannot be removed");
        }
    }
}

/// The measurement as a job: four cores, 16 GiB of memory, and one GPU with 8 GiB.
fn job_spec() -> JobSpec {
    let resources = Resources::new(4_000, Mebibytes(16_384), Mebibytes(16)).with_gpus(1, Mebibytes(8_192));
    let command = ["python", "-c", PROGRAM].map(ToOwned::to_owned).to_vec();
    JobSpec::for_image("matmul", IMAGE, command, limit_to_machine(resources))
}

/// Reduces the job's CPU and memory to those of this machine. Only the GPU is measured.
fn limit_to_machine(mut resources: Resources) -> Resources {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    resources.cpu_millis = resources.cpu_millis.min(u32::try_from(cores).unwrap_or(u32::MAX).saturating_mul(1_000));
    if let Ok(memory) = hardware::machine_memory() {
        resources.memory = resources.memory.min(memory);
    }
    resources
}

/// The id of the image. Pulls the image if it is not on this machine.
async fn image_id(docker: &Docker) -> anyhow::Result<String> {
    let inspect = async || docker.inspect_image(IMAGE).await.map(|found| found.id.unwrap_or_default());
    match inspect().await {
        Err(Error::DockerResponseServerError { status_code: 404, .. }) => {
            eprintln!("pulling {IMAGE} (some GB, once)");
            let options = CreateImageOptionsBuilder::default().from_image(IMAGE).build();
            let mut steps = docker.create_image(Some(options), None, None);
            let all = async {
                while let Some(step) = steps.next().await {
                    step?;
                }
                Ok::<_, Error>(())
            };
            tokio::time::timeout(PULL_TIMEOUT, all).await.context("pulling took too long")??;
            Ok(inspect().await?)
        }
        found => Ok(found?),
    }
}

/// Runs the container, and returns the last 20 lines of its output.
async fn run(docker: &Docker, name: &str) -> anyhow::Result<String> {
    docker.start_container(name, None::<StartContainerOptions>).await?;
    let ended = docker.wait_container(name, None::<WaitContainerOptions>).next().await;
    let options = LogsOptionsBuilder::default().stdout(true).stderr(true).tail("20").build();
    let mut lines = docker.logs(name, Some(options));
    let mut output = Vec::new();
    while let Some(line) = lines.next().await {
        output.extend_from_slice(&LogOutput::into_bytes(line?));
        if output.len() > MAX_LOG_BYTES {
            break;
        }
    }
    let output = String::from_utf8_lossy(&output).into_owned();
    match ended {
        Some(Ok(_)) | None => Ok(output),
        Some(Err(e)) => Err(anyhow::Error::new(e).context(output.trim().to_owned())),
    }
}

/// The speed in the template's output, GFLOP/s.
fn parse_rate(output: &str) -> Option<u64> {
    output.lines().find_map(|line| line.strip_prefix(PREFIX)?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speed_is_parsed_from_its_own_line_of_the_programs_output() {
        assert_eq!(parse_rate("NVIDIA H100\nGFLOP/s 51234\n"), Some(51_234));
        assert_eq!(parse_rate("Traceback: GFLOP/s 1"), None);
        assert!(PROGRAM.contains("print('GFLOP/s',"));
    }
}
