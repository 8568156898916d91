//! Resumes the attempts of a former run of the worker, after a crash, a restart of the worker, or a reboot.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use bollard::{Docker, errors::Error, models::ContainerSummary, query_parameters::ListContainersOptionsBuilder};
use gpubnb_events::{JobId, Lease, MachineId};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument as _, info, warn};

use super::{
    container::Container,
    context::{AttemptContext, Tools},
    door, job_disk,
    report::PendingReport,
};
use crate::{
    docker::{LABEL_GPUS, LABEL_JOB, LABEL_LEASE, LABEL_MACHINE, container_name},
    relay::{LABEL_RELAY, relay_name},
};

/// Resumes each attempt that still has a container with this machine's label, and each attempt without a container
/// whose report is not delivered yet. Removes the directories of all other attempts.
pub(crate) async fn resume_all(
    tools: &Arc<Tools>,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> Result<(), Error> {
    // After a reboot the containers exist, but their disks are not mounted.
    for (lease, dir) in attempt_directories(&tools.attempts_dir) {
        if let Err(e) = job_disk::remount(&dir).await {
            warn!(%lease, error = %e, "the disk of an attempt cannot be mounted after the restart");
        }
    }
    let mut resumed = HashSet::new();
    for (lease, found) in own_containers(&tools.docker, tools.machine, LABEL_MACHINE, container_name).await? {
        let labels = found.labels.unwrap_or_default();
        let Some(job) = labels.get(LABEL_JOB).and_then(|text| text.parse().ok()) else {
            warn!(container = found.id, "a container with this machine's label, but without a job, is ignored");
            continue;
        };
        info!(%job, %lease, "the attempt is resumed");
        resumed.insert(lease);
        spawn(tools, tasks, shutdown, job, lease);
        tools.leases.gpus.restore(lease, gpus_of_label(labels.get(LABEL_GPUS)));
        tools.leases.set_container(lease, found.id.as_deref().unwrap_or_default());
    }
    remove_relays(&tools.docker, tools.machine, &resumed).await?;
    if let Err(e) = door::remove_others(&tools.attempts_dir, &resumed) {
        warn!(error = %e, "the directory of a former attempt's door cannot be removed");
    }
    for (lease, dir) in attempt_directories(&tools.attempts_dir) {
        if resumed.contains(&lease) {
            continue;
        }
        if let Some(pending) = PendingReport::read(&dir) {
            info!(job = %pending.report.job, %lease, "delivering the report of an ended attempt");
            spawn(tools, tasks, shutdown, pending.report.job, lease);
        } else if let Err(e) = job_disk::remove(&dir).await {
            warn!(dir = %dir.display(), error = %e, "the directory of a former attempt cannot be removed");
        }
    }
    Ok(())
}

/// Removes the relays of a machine's attempts, except the attempts that are resumed. A relay without its job's
/// container is left if the worker was killed before it made that container, or after it removed that container.
async fn remove_relays(docker: &Docker, machine: MachineId, resumed: &HashSet<Lease>) -> Result<(), Error> {
    for (lease, _) in own_containers(docker, machine, LABEL_RELAY, relay_name).await? {
        if !resumed.contains(&lease)
            && let Err(e) = Container::of_relay(docker.clone(), machine, lease).remove().await
        {
            warn!(%lease, error = %e, "the relay of a former attempt cannot be removed");
        }
    }
    Ok(())
}

/// True if a former run of the worker left an attempt to look after: a container, or a report that is not delivered.
pub(crate) async fn has_attempts(docker: &Docker, machine: MachineId, attempts_dir: &Path) -> Result<bool, Error> {
    let has_report = |(_, dir): (Lease, PathBuf)| PendingReport::read(&dir).is_some();
    let has_reports = attempt_directories(attempts_dir).into_iter().any(has_report);
    Ok(has_reports || !own_containers(docker, machine, LABEL_MACHINE, container_name).await?.is_empty())
}

/// The containers of a machine's attempts, also those that have ended, with their leases. A container is one of them if
/// it has this label, and the name that the worker gives to the container of its lease. The label alone is not enough,
/// because anybody can label a container. No two containers have the same name.
async fn own_containers(
    docker: &Docker,
    machine: MachineId,
    label: &str,
    name: fn(MachineId, Lease) -> String,
) -> Result<Vec<(Lease, ContainerSummary)>, Error> {
    let label = format!("{label}={machine}");
    let filters = HashMap::from([("label", vec![label.as_str()])]);
    let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
    let mut own = Vec::new();
    for container in docker.list_containers(Some(options)).await? {
        let lease = container.labels.as_ref().and_then(|labels| labels.get(LABEL_LEASE)?.parse::<Lease>().ok());
        let has_name = |lease: &Lease| {
            let name = format!("/{}", name(machine, *lease));
            container.names.iter().flatten().any(|other| *other == name)
        };
        match lease.filter(has_name) {
            Some(lease) => own.push((lease, container)),
            None => {
                warn!(container = container.id, label, "a container with this label, but without an attempt's name");
            }
        }
    }
    Ok(own)
}

/// Spawns the task of a resumed attempt. The attempt has no job message, because a former run of the worker received
/// the message.
fn spawn(tools: &Arc<Tools>, tasks: &TaskTracker, shutdown: &CancellationToken, job: JobId, lease: Lease) {
    let desired = tools.leases.resume(job, lease);
    let context = AttemptContext::new(Arc::clone(tools), job, lease, desired);
    let (span, stop) = (context.span(), shutdown.clone());
    let run = async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = super::carry_out(context) => {}
        }
    };
    tasks.spawn(run.instrument(span));
}

fn gpus_of_label(label: Option<&String>) -> Vec<String> {
    let gpus = label.map(String::as_str).unwrap_or_default();
    gpus.split(',').filter(|gpu| !gpu.is_empty()).map(ToOwned::to_owned).collect()
}

/// The lease and the directory of each attempt. Other entries of `attempts_dir` are left out.
fn attempt_directories(attempts_dir: &Path) -> Vec<(Lease, PathBuf)> {
    let entries = fs::read_dir(attempts_dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gpus_of_a_container_are_read_from_its_label() {
        assert_eq!(gpus_of_label(Some(&"GPU-1,GPU-2".to_owned())), ["GPU-1", "GPU-2"]);
        assert!(gpus_of_label(Some(&String::new())).is_empty());
        assert!(gpus_of_label(None).is_empty());
    }

    #[test]
    fn only_directories_that_are_named_by_a_lease_are_attempts() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["17", "spares", "x17"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let leases: Vec<_> = attempt_directories(dir.path()).into_iter().map(|(lease, _)| lease.to_string()).collect();
        assert_eq!(leases, ["17"]);
        assert!(attempt_directories(&dir.path().join("absent")).is_empty());
    }
}
