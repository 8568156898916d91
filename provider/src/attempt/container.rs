//! The container of an attempt: creation, start, removal; and finding those of a former run.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bollard::{
    Docker,
    errors::Error,
    models::ContainerCreateBody,
    query_parameters::{
        CreateContainerOptionsBuilder, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
        StartContainerOptions, StopContainerOptionsBuilder,
    },
};
use gpubnb_events::{JobId, Lease, command::Grant, event::Reason, spec::JobSpec};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use super::{Problem, Tools, boot, inputs, outbox::Outbox, output::Of, quota, spawn};
use crate::docker::{Frame, LABEL_GPUS, LABEL_JOB, LABEL_LEASE, LABEL_MACHINE, container_name, hardened, job_user};

/// Pause before Docker is told the same again.
const AGAIN: Duration = Duration::from_secs(1);

/// A container that was made for an attempt.
pub(super) struct Container {
    docker: Docker,
    pub(super) name: String,
    pub(super) lease: Lease,
    /// The directory that is `/output` inside.
    pub(super) output: PathBuf,
    /// Whether this run of the worker made it: then nothing has happened in it yet.
    pub(super) fresh: bool,
}

impl Container {
    /// The id of the image it will be made of, or was.
    pub(super) async fn image(tools: &Tools, job: JobId, lease: Lease, grant: &Grant) -> Result<String, Problem> {
        if grant.started {
            let gone = || Problem::new(Reason::RuntimeMisconfigured, "the container is gone, though it was started");
            return existing(&tools.docker, &container_name(tools.machine, lease)).await?.ok_or_else(gone);
        }
        tools.images.resolve(&tools.docker, &grant.spec.image, Of { tools, job, lease }).await
    }

    /// Makes it, or finds it where a former run of the worker made it.
    pub(super) async fn make(
        tools: &Tools,
        job: JobId,
        lease: Lease,
        grant: &Grant,
        image_id: String,
    ) -> Result<Self, Problem> {
        let misconfigured = |detail: String| Problem::new(Reason::RuntimeMisconfigured, detail);
        let docker = tools.docker.clone();
        let name = container_name(tools.machine, lease);
        if grant.started {
            return Ok(Self::ended(tools, lease));
        }
        let most = grant.spec.resources.output.bytes();
        let output = tools.outputs.make(&directory(tools, lease), most).await.map_err(|e| disk(&e))?;
        boot::note(&directory(tools, lease)).map_err(|e| disk(&e))?;
        let input = inputs::fetch(tools, grant, &directory(tools, lease)).await?;
        let frame = Frame {
            machine: tools.machine,
            job,
            lease,
            image_id: &image_id,
            output: &output,
            input: input.as_deref(),
            env: environment(tools, grant)?,
            user: job_user(),
            gpus: gpus(tools, lease, &grant.spec)?,
            cdi: tools.cdi,
            runtime: tools.runtime.clone(),
            max_log: tools.max_log,
        };
        let body = hardened(&grant.spec, &frame);
        let mut created = create(&docker, &name, body.clone()).await?;
        if created == Created::NoImage {
            // It was known, and has been removed since.
            tools.images.forget(&grant.spec.image);
            if Self::image(tools, job, lease, grant).await? != image_id {
                return Err(misconfigured("the image's name came to mean another image".to_owned()));
            }
            created = create(&docker, &name, body).await?;
        }
        if let Created::New(id) = &created {
            tools.hand.runs_in(lease, id);
        }
        match created {
            Created::New(_) => Ok(Self { docker, name, lease, output, fresh: true }),
            Created::Existed => Ok(Self { docker, name, lease, output, fresh: false }),
            Created::NoImage => Err(misconfigured("the image vanished twice".to_owned())),
        }
    }

    /// One that has ended, wherever it is now.
    pub(super) fn ended(tools: &Tools, lease: Lease) -> Self {
        let (docker, name) = (tools.docker.clone(), container_name(tools.machine, lease));
        Self { docker, name, lease, output: directory(tools, lease).join("output"), fresh: false }
    }

    /// Starts it; does nothing where it runs or ran already.
    pub(super) async fn start(&self) -> Result<(), Problem> {
        if !self.fresh
            && let Some(state) = self.docker.inspect_container(&self.name, None).await.map_err(problem)?.state
            && state.status != Some(bollard::models::ContainerStateStatusEnum::CREATED)
        {
            return Ok(());
        }
        self.docker.start_container(&self.name, None::<StartContainerOptions>).await.map_err(problem)
    }

    /// SIGTERM, a grace, SIGKILL. Said again while Docker is away; drop the future to give up.
    pub(super) async fn stop(&self, grace: Duration) {
        let seconds = i32::try_from(grace.as_secs()).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::default().t(seconds).build();
        loop {
            match self.docker.stop_container(&self.name, Some(options.clone())).await {
                // 304: it has ended by itself.
                Ok(()) | Err(Error::DockerResponseServerError { status_code: 304 | 404, .. }) => return,
                Err(e) => warn!(lease = self.lease.0.0, error = %e, "stopping: said again"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// An attempt's directory.
pub(super) fn directory(tools: &Tools, lease: Lease) -> PathBuf {
    tools.leases.join(lease.to_string())
}

/// What a failure to make room means.
fn disk(e: &std::io::Error) -> Problem {
    let full = e.kind() == std::io::ErrorKind::StorageFull || e.to_string().contains("No space left");
    Problem::new(if full { Reason::DiskFull } else { Reason::RuntimeMisconfigured }, format!("the job's output: {e}"))
}

/// The GPUs of the machine that the job is given: as many as it asked for, each large enough, and no other job's.
fn gpus(tools: &Tools, lease: Lease, spec: &JobSpec) -> Result<Vec<String>, Problem> {
    if tools.hardware.simulated || spec.resources.gpus == 0 {
        return Ok(Vec::new());
    }
    let large_enough = tools.hardware.gpus.iter().filter(|g| g.memory >= spec.resources.vram);
    let fitting: Vec<_> = large_enough.map(|g| g.uuid.clone()).collect();
    let chosen = tools.hand.allot(lease, &fitting, spec.resources.gpus as usize);
    chosen.ok_or_else(|| Problem::new(Reason::GpuLost, "fewer free GPUs than the job was promised"))
}

/// The values of the job's environment, which only this machine can open.
fn environment(tools: &Tools, grant: &Grant) -> Result<BTreeMap<String, String>, Problem> {
    let Some(env) = &grant.env else { return Ok(BTreeMap::new()) };
    let opened = || -> anyhow::Result<BTreeMap<String, String>> {
        let from = nkeys::XKey::from_public_key(&env.from)?;
        let sealed = data_encoding::HEXLOWER.decode(env.sealed.as_bytes())?;
        Ok(serde_json::from_slice(&tools.identity.keys.sealing.open(&sealed, &from)?)?)
    };
    opened().map_err(|_| Problem::new(Reason::RuntimeMisconfigured, "the job's environment cannot be opened here"))
}

async fn existing(docker: &Docker, name: &str) -> Result<Option<String>, Problem> {
    match docker.inspect_container(name, None).await {
        Ok(found) => Ok(Some(found.image.unwrap_or_default())),
        Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
        Err(e) => Err(problem(e)),
    }
}

/// What came of asking Docker for a container.
#[derive(PartialEq, Eq)]
enum Created {
    New(String),
    /// A former run of the worker made it, and got no further.
    Existed,
    NoImage,
}

async fn create(docker: &Docker, name: &str, body: ContainerCreateBody) -> Result<Created, Problem> {
    let options = CreateContainerOptionsBuilder::default().name(name).build();
    match docker.create_container(Some(options), body).await {
        Ok(made) => Ok(Created::New(made.id)),
        Err(Error::DockerResponseServerError { status_code: 409, .. }) => Ok(Created::Existed),
        Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(Created::NoImage),
        Err(e) => Err(problem(e)),
    }
}

/// Whose fault an error of Docker is. Docker gives these no codes of their own: its words are all there is.
pub(super) fn problem(e: Error) -> Problem {
    let words = e.to_string();
    let says = |parts: &[&str]| parts.iter().any(|part| words.contains(part));
    let reason = if says(&["no space left on device"]) {
        Reason::DiskFull
    } else if says(&[
        "executable file not found",
        "exec format error",
        "no such file or directory: unknown",
        "No command specified",
    ]) {
        Reason::BadImage
    } else {
        Reason::RuntimeMisconfigured
    };
    Problem::new(reason, words)
}

/// Removes an attempt's container and directory.
pub(super) async fn remove(tools: &Tools, lease: Lease) -> anyhow::Result<()> {
    let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
    match tools.docker.remove_container(&container_name(tools.machine, lease), Some(options)).await {
        Ok(()) | Err(Error::DockerResponseServerError { status_code: 404, .. }) => {}
        Err(e) => return Err(e.into()),
    }
    Ok(quota::remove(&directory(tools, lease)).await?)
}

/// Finds this machine's containers by their labels, and what is still to be said of those that are gone, and goes on
/// with each: after a crash, a restart, a reboot. What belongs to no attempt any more is removed.
pub(crate) async fn take_up_again(
    tools: &Arc<Tools>,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> Result<(), Error> {
    let ours = format!("{LABEL_MACHINE}={}", tools.machine);
    let filters = HashMap::from([("label", vec![ours.as_str()])]);
    let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
    // After a reboot the containers are there, and what was mounted is not.
    for (lease, dir) in left_behind(&tools.leases) {
        if let Err(e) = quota::mount_again(&dir).await {
            warn!(%lease, error = %e, "what the job left cannot be mounted again");
        }
    }
    let mut taken = HashSet::new();
    for found in tools.docker.list_containers(Some(options)).await? {
        let labels = found.labels.unwrap_or_default();
        let job = labels.get(LABEL_JOB).and_then(|text| text.parse().ok());
        let lease = labels.get(LABEL_LEASE).and_then(|text| text.parse().ok());
        let (Some(job), Some(lease)) = (job, lease) else {
            warn!(container = found.id, "has our label but no job: left alone");
            continue;
        };
        info!(%job, %lease, "taken up again");
        taken.insert(lease);
        spawn(tools, tasks, shutdown, job, lease);
        let gpus = labels.get(LABEL_GPUS).map(String::as_str).unwrap_or_default();
        tools.hand.holds(lease, gpus.split(',').filter(|gpu| !gpu.is_empty()).map(ToOwned::to_owned).collect());
        tools.hand.runs_in(lease, found.id.as_deref().unwrap_or_default());
    }
    for (lease, dir) in left_behind(&tools.leases) {
        if taken.contains(&lease) {
            continue;
        }
        if let Some(outbox) = Outbox::read(&dir) {
            info!(job = %outbox.report.job, %lease, "its ending is still to be said");
            spawn(tools, tasks, shutdown, outbox.report.job, lease);
        } else if let Err(e) = quota::remove(&dir).await {
            warn!(dir = %dir.display(), error = %e, "nobody's directory cannot be removed");
        }
    }
    Ok(())
}

/// The directories of attempts.
fn left_behind(leases: &Path) -> Vec<(Lease, PathBuf)> {
    let entries = fs::read_dir(leases).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path()))).collect()
}
