//! Prepares an attempt: image, output volume, input files, GPUs and container, and `Started` in the log. When this is
//! done the container may be started, and not before.

use std::{collections::BTreeMap, io};

use gpubnb_events::{
    command::{Done, Grant, Start},
    event::Reason,
    spec::JobSpec,
};
use tracing::info;

use super::{Problem, boot_id, container::Created, context::AttemptContext, end::End, inputs};
use crate::{
    desired_state::StopReason,
    docker::{SandboxParams, hardened, job_user},
};

/// The maker of an attempt's container: this run of the worker, or a former one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// This run of the worker made the container. Nothing has happened in it yet.
    ThisRun,
    /// A former run of the worker made the container, and may have started it. It may have ended since.
    FormerRun,
}

/// Prepares the attempt, or says how the attempt ended before its code ran.
pub(super) async fn prepare(context: &AttemptContext, grant: &Grant) -> Result<Origin, End> {
    let prepare = async {
        let image_id = image(context, grant).await?;
        // `Started` is recorded while the container is made. The container is started only after both.
        let start = Start { job: context.job, lease: context.lease, image_digest: image_id.clone() };
        let recorded = context.tools.platform.insist::<Done>("start", &start);
        let (made, recorded) = tokio::join!(container(context, grant, image_id), recorded);
        Ok((made?, recorded))
    };
    let (origin, recorded) = tokio::select! {
        reason = context.stop_requested() => return Err(End::NotStarted(reason)),
        prepared = prepare => prepared.map_err(End::Failed)?,
    };
    if let Err(refusal) = recorded {
        // The job is being cancelled, or the lease is over. The platform knows which, and takes the report accordingly.
        info!(job = %context.job, lease = context.lease.0.0, %refusal, "not started");
        return Err(End::NotStarted(StopReason::Cancelled));
    }
    Ok(origin)
}

/// The id of the image that the container will be made of, or was made of.
async fn image(context: &AttemptContext, grant: &Grant) -> Result<String, Problem> {
    if grant.started {
        let gone = || Problem::new(Reason::RuntimeMisconfigured, "the container is gone, though it was started");
        return context.container.image().await?.ok_or_else(gone);
    }
    context.tools.images.resolve(&grant.spec.image, context).await
}

/// Makes the container, unless a former run of the worker made it.
async fn container(context: &AttemptContext, grant: &Grant, image_id: String) -> Result<Origin, Problem> {
    if grant.started {
        return Ok(Origin::FormerRun);
    }
    let (tools, directory) = (&context.tools, context.directory());
    let output = tools.output_volumes.make(&directory, grant.spec.resources.output.bytes()).await.map_err(disk)?;
    boot_id::note(&directory).map_err(disk)?;
    let input = inputs::fetch(tools, grant, &directory).await?;
    let params = SandboxParams {
        machine: tools.machine,
        job: context.job,
        lease: context.lease,
        image_id: &image_id,
        output: &output,
        input: input.as_deref(),
        env: environment(context, grant)?,
        user: job_user(),
        gpus: gpus(context, &grant.spec)?,
        cdi: tools.cdi,
        runtime: tools.runtime.clone(),
        max_log: tools.max_log,
    };
    let body = hardened(&grant.spec, &params);
    let mut created = context.container.create(body.clone()).await?;
    if created == Created::NoImage {
        // The image was here a moment ago, and has been removed since.
        tools.images.forget(&grant.spec.image);
        if image(context, grant).await? != image_id {
            let detail = "the image's name came to mean another image";
            return Err(Problem::new(Reason::RuntimeMisconfigured, detail));
        }
        created = context.container.create(body).await?;
    }
    match created {
        Created::New(id) => {
            tools.leases.set_container(context.lease, &id);
            Ok(Origin::ThisRun)
        }
        Created::Existed => Ok(Origin::FormerRun),
        Created::NoImage => Err(Problem::new(Reason::RuntimeMisconfigured, "the image vanished twice")),
    }
}

/// A failure to make room for the job's output.
fn disk(e: io::Error) -> Problem {
    let is_full = e.kind() == io::ErrorKind::StorageFull || e.to_string().contains("No space left");
    let reason = if is_full { Reason::DiskFull } else { Reason::RuntimeMisconfigured };
    Problem::caused(reason, anyhow::Error::new(e).context("the job's output"))
}

/// The GPUs that the job is given: as many as it asked for, each with enough memory, and none of another job.
fn gpus(context: &AttemptContext, spec: &JobSpec) -> Result<Vec<String>, Problem> {
    let (hardware, leases) = (&context.tools.hardware, &context.tools.leases);
    if hardware.simulated || spec.resources.gpus == 0 {
        return Ok(Vec::new());
    }
    let large_enough = hardware.gpus.iter().filter(|gpu| gpu.memory >= spec.resources.vram);
    let fitting: Vec<_> = large_enough.map(|gpu| gpu.uuid.clone()).collect();
    let chosen = leases.gpus.allocate(context.lease, &fitting, spec.resources.gpus as usize);
    chosen.ok_or_else(|| Problem::new(Reason::GpuLost, "fewer free GPUs than the job was promised"))
}

/// The values of the job's environment, which only this machine can open.
fn environment(context: &AttemptContext, grant: &Grant) -> Result<BTreeMap<String, String>, Problem> {
    let Some(env) = &grant.env else { return Ok(BTreeMap::new()) };
    let open = || -> anyhow::Result<BTreeMap<String, String>> {
        let from = nkeys::XKey::from_public_key(&env.from)?;
        let sealed = data_encoding::HEXLOWER.decode(env.sealed.as_bytes())?;
        Ok(serde_json::from_slice(&context.tools.identity.keys.sealing.open(&sealed, &from)?)?)
    };
    // The cause is left out on purpose: an error of the parser may quote one of the secret values.
    open().map_err(|_| Problem::new(Reason::RuntimeMisconfigured, "the job's environment cannot be opened here"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_apart_from_a_broken_one() {
        let other = |text: &str| io::Error::other(text.to_owned());
        for (error, reason) in [
            (io::Error::from(io::ErrorKind::StorageFull), Reason::DiskFull),
            (other("cp: error writing 'volume.img': No space left on device"), Reason::DiskFull),
            (other("mount: permission denied"), Reason::RuntimeMisconfigured),
        ] {
            let problem = disk(error);
            assert_eq!(problem.reason, reason);
            assert!(problem.detail().starts_with("the job's output: "), "{}", problem.detail());
        }
    }
}
