//! Prepares an attempt: finds the image, makes the job's disk, downloads the input files, allocates the GPUs, creates
//! the container, and records the event `Started` in the market's log. The container is started after that.

use std::{collections::BTreeMap, io, path::Path};

use gpubnb_events::{
    command::{Done, Grant, Start},
    event::Reason,
    spec::{DatasetMount, JobSpec},
};
use tracing::info;

use super::{Problem, container::CreateResult, context::AttemptContext, datasets, door, end::AttemptEnd, inputs};
use crate::{
    desired_state::StopReason,
    docker::{LocalImage, SandboxParams, hardened_container, job_user},
};

/// The run of the worker that created an attempt's container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContainerOrigin {
    /// This run of the worker created the container. The container was never started.
    ThisRun,
    /// A former run of the worker created the container. The container may have been started, and may have ended.
    FormerRun,
}

/// Prepares the attempt. An error says how the attempt ended before the job's code ran.
pub(super) async fn prepare(context: &AttemptContext, grant: &Grant) -> Result<ContainerOrigin, AttemptEnd> {
    let prepare = async {
        let (image, ()) = tokio::try_join!(find_image(context, grant), door::start_relay(context, grant))?;
        // `Started` starts the market's clock of the run time. It is recorded while the container is created, which is
        // fast. A download of files takes long, so `Started` is then recorded after the download. The container
        // is started after both.
        let start = Start { job: context.job, lease: context.lease, image_digest: image.id.clone() };
        let recorded = context.tools.platform.call_until_answered::<Done>("start", &start);
        let created = create_container(context, grant, image);
        if grant.spec.inputs.is_empty() && grant.spec.datasets.is_empty() {
            let (created, recorded) = tokio::join!(created, recorded);
            return Ok((created?, recorded));
        }
        Ok((created.await?, recorded.await))
    };
    let (origin, recorded) = tokio::select! {
        reason = context.stop_requested() => return Err(AttemptEnd::NotStarted(reason)),
        prepared = prepare => prepared.map_err(AttemptEnd::Failed)?,
    };
    if let Err(refusal) = recorded {
        // The job is being cancelled, or the lease is over. In both cases the report is `Cancelled`, and the platform
        // accepts the report only in the first case.
        info!(job = %context.job, lease = context.lease.0.0, %refusal, "the attempt is not started");
        return Err(AttemptEnd::NotStarted(StopReason::Cancelled));
    }
    Ok(origin)
}

/// The image from which the container is created. If the job was already started by a former run of the worker, only
/// the image's id is known.
async fn find_image(context: &AttemptContext, grant: &Grant) -> Result<LocalImage, Problem> {
    if grant.started {
        let gone = || Problem::new(Reason::RuntimeMisconfigured, "the container was started, but does not exist");
        let id = context.container.image().await?.ok_or_else(gone)?;
        return Ok(LocalImage { id, ..LocalImage::default() });
    }
    context.tools.images.resolve(&grant.spec, context).await
}

/// The most volumes of an image.
const MAX_VOLUMES: usize = 32;

/// Refuses an image with too many volumes, or with a volume where the worker cannot mount a directory, such as
/// `/proc/data`. `mounted` are the directories of the job's datasets.
fn check_volumes(image: &LocalImage, mounted: &[String]) -> Result<(), Problem> {
    let bad = |why: String| Err(Problem::new(Reason::BadImage, why));
    if image.volumes.len() > MAX_VOLUMES {
        return bad(format!("the image has more than {MAX_VOLUMES} volumes"));
    }
    let is_below = |path: &str, directory: &str| Path::new(path).starts_with(directory);
    for path in &image.volumes {
        let is_plain = path
            .strip_prefix('/')
            .is_some_and(|rest| rest.trim_end_matches('/').split('/').all(|part| !["", ".", ".."].contains(&part)));
        let is_inside_input = !is_input(path) && is_below(path, "/input");
        // Docker would make a directory in a dataset that other jobs use, too.
        let is_inside_dataset = mounted.iter().any(|directory| is_below(path, directory));
        if !is_plain
            || is_inside_input
            || is_inside_dataset
            || ["/proc", "/sys", "/dev"].iter().any(|directory| is_below(path, directory))
        {
            let shown: String = path.chars().take(100).collect();
            return bad(format!("the image has a volume at {shown:?}, where no volume can be"));
        }
    }
    Ok(())
}

/// True for the directory where the worker mounts the job's input files.
fn is_input(path: &str) -> bool {
    path.trim_end_matches('/') == "/input"
}

/// Creates the container, unless a former run of the worker created it.
async fn create_container(
    context: &AttemptContext,
    grant: &Grant,
    mut image: LocalImage,
) -> Result<ContainerOrigin, Problem> {
    if grant.started {
        return Ok(ContainerOrigin::FormerRun);
    }
    let (tools, directory) = (&context.tools, context.directory());
    // Input files take the place of a volume. Without them, the volume is on the job's disk as every other: Docker
    // would put it on the machine's own, outside the job's limit.
    let mounted: Vec<String> = grant.spec.datasets.iter().map(DatasetMount::path).collect();
    let is_mounted = |path: &str| mounted.iter().any(|mounted| path.trim_end_matches('/') == mounted);
    image.volumes.retain(|path| (grant.spec.inputs.is_empty() || !is_input(path)) && !is_mounted(path));
    check_volumes(&image, &mounted)?;
    let (size, volumes) = (grant.spec.resources.disk_size().bytes(), image.volumes.len());
    let disk = tools.job_disks.make(&directory, size, volumes).await.map_err(disk_problem)?;
    let input = inputs::fetch(context, grant).await?;
    let datasets = datasets::fetch(context, grant, &disk).await?;
    let params = SandboxParams {
        machine: tools.machine,
        job: context.job,
        lease: context.lease,
        image: &image,
        output: &disk.output(),
        scratch: &disk.scratch(),
        volumes: (0..volumes).map(|index| disk.volume(index)).collect(),
        input: input.as_deref(),
        datasets,
        env: decrypt_environment(context, grant)?,
        user: job_user(),
        gpus: allocate_gpus(context, &grant.spec)?,
        cdi: tools.cdi,
        runtime: tools.runtime.clone(),
        max_log: tools.max_log,
    };
    let body = hardened_container(&grant.spec, &params);
    let mut created = context.container.create(body.clone()).await?;
    if created == CreateResult::NoImage {
        // Somebody removed the image after its id was found. Find it a second time, which pulls it.
        tools.images.forget(&grant.spec.image);
        if find_image(context, grant).await?.id != image.id {
            let detail = "the image's name now refers to another image";
            return Err(Problem::new(Reason::RuntimeMisconfigured, detail));
        }
        created = context.container.create(body).await?;
    }
    match created {
        CreateResult::New(id) => {
            tools.leases.set_container(context.lease, &id);
            Ok(ContainerOrigin::ThisRun)
        }
        CreateResult::Existed => Ok(ContainerOrigin::FormerRun),
        CreateResult::NoImage => Err(Problem::new(Reason::RuntimeMisconfigured, "the image was removed twice")),
    }
}

/// A failure to make the job's disk.
fn disk_problem(e: io::Error) -> Problem {
    let is_full = e.kind() == io::ErrorKind::StorageFull || e.to_string().contains("No space left");
    let reason = if is_full { Reason::DiskFull } else { Reason::RuntimeMisconfigured };
    Problem::caused(reason, anyhow::Error::new(e).context("the job's output"))
}

/// Allocates as many GPUs as the job asked for. Each GPU has enough memory, and belongs to no other job.
fn allocate_gpus(context: &AttemptContext, spec: &JobSpec) -> Result<Vec<String>, Problem> {
    let (hardware, leases) = (&context.tools.hardware, &context.tools.leases);
    if hardware.simulated || spec.resources.gpus == 0 {
        return Ok(Vec::new());
    }
    let large_enough = hardware.gpus.iter().filter(|gpu| gpu.memory >= spec.resources.vram);
    let fitting: Vec<_> = large_enough.map(|gpu| gpu.uuid.clone()).collect();
    let chosen = leases.gpus.allocate(context.lease, &fitting, spec.resources.gpus as usize);
    chosen.ok_or_else(|| Problem::new(Reason::GpuLost, "fewer free GPUs than the job was promised"))
}

/// Decrypts the values of the job's environment. Only this machine has the key.
fn decrypt_environment(context: &AttemptContext, grant: &Grant) -> Result<BTreeMap<String, String>, Problem> {
    let Some(env) = &grant.env else { return Ok(BTreeMap::new()) };
    let decrypt = || -> anyhow::Result<BTreeMap<String, String>> {
        let from = nkeys::XKey::from_public_key(&env.from)?;
        let sealed = data_encoding::HEXLOWER.decode(env.sealed.as_bytes())?;
        Ok(serde_json::from_slice(&context.tools.identity.keys.sealing.open(&sealed, &from)?)?)
    };
    // The cause is left out on purpose: an error of the parser may quote one of the secret values.
    decrypt().map_err(|_| Problem::new(Reason::RuntimeMisconfigured, "the job's environment cannot be decrypted"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_has_another_reason_than_a_broken_disk() {
        let other = |text: &str| io::Error::other(text.to_owned());
        for (error, reason) in [
            (io::Error::from(io::ErrorKind::StorageFull), Reason::DiskFull),
            (other("cp: error writing 'volume.img': No space left on device"), Reason::DiskFull),
            (other("mount: permission denied"), Reason::RuntimeMisconfigured),
        ] {
            let problem = disk_problem(error);
            assert_eq!(problem.reason, reason);
            assert!(problem.detail().starts_with("the job's output: "), "{}", problem.detail());
        }
    }
}
