//! The sandbox: how a job's container is made. Deny by default; each line that loosens something says why.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    time::Duration,
};

use bollard::{
    Docker,
    models::{
        ContainerCreateBody, DeviceRequest, HostConfig, HostConfigLogConfig, Mount, MountType, ResourcesUlimits,
        RestartPolicy, RestartPolicyNameEnum,
    },
};
use gpubnb_events::{
    JobId, Lease, MachineId,
    spec::{JobSpec, Resources},
};

/// Label that says: this container is ours.
pub(crate) const LABEL_MACHINE: &str = "gpubnb.machine";
/// Label with the job.
pub(crate) const LABEL_JOB: &str = "gpubnb.job";
/// Label with the UUIDs of its GPUs, with commas.
pub(crate) const LABEL_GPUS: &str = "gpubnb.gpus";
/// Label with the lease.
pub(crate) const LABEL_LEASE: &str = "gpubnb.lease";

/// Above the longest that `stop` takes.
const TIMEOUT_SECONDS: u64 = 60;

/// Connects to Docker by `DOCKER_HOST`, or where it usually listens.
pub(crate) async fn connect() -> Result<Docker, bollard::errors::Error> {
    let docker = Docker::connect_with_defaults()?.with_timeout(Duration::from_secs(TIMEOUT_SECONDS));
    docker.negotiate_version().await
}

/// What goes into a container besides the job's own wishes.
pub struct Frame<'a> {
    /// This machine.
    pub machine: MachineId,
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub lease: Lease,
    /// The image by its id, not by a name that may move.
    pub image_id: &'a str,
    /// The directory that becomes `/output`.
    pub output: &'a Path,
    /// The directory that becomes `/input`, which nobody can change.
    pub input: Option<&'a Path>,
    /// The values of its environment.
    pub env: BTreeMap<String, String>,
    /// Whose uid and gid it runs under; never root.
    pub user: (u32, u32),
    /// GPUs it is given.
    pub gpus: Vec<String>,
    /// Whether GPUs are given by CDI.
    pub cdi: bool,
    /// Another runtime than Docker's default.
    pub runtime: Option<String>,
    /// Most log it may write, bytes.
    pub max_log: u64,
}

/// Name of an attempt's container: a second one cannot be made. The machine is part of it, because workers
/// of several markets may share one Docker.
pub fn container_name(machine: MachineId, lease: Lease) -> String {
    format!("gpubnb-{machine}-{lease}")
}

/// Whose uid and gid jobs run under: nobody's where the worker is root, else the worker's own.
pub fn job_user() -> (u32, u32) {
    const NOBODY: u32 = 65_534;
    let uid = rustix::process::getuid();
    if uid.is_root() { (NOBODY, NOBODY) } else { (uid.as_raw(), rustix::process::getgid().as_raw()) }
}

/// Whose the files of jobs are outside the container: the job's user, or whom Docker makes of it where it maps users
/// (`userns-remap`; the offsets are the last part of Docker's directory, `<uid>.<gid>`).
pub(crate) async fn file_owner(docker: &Docker) -> Result<(u32, u32), bollard::errors::Error> {
    let info = docker.info().await?;
    let (uid, gid) = job_user();
    let maps = info.security_options.iter().flatten().any(|option| option.contains("name=userns"));
    let (first_uid, first_gid) = info.docker_root_dir.filter(|_| maps).and_then(|dir| offsets(&dir)).unwrap_or((0, 0));
    Ok((uid.saturating_add(first_uid), gid.saturating_add(first_gid)))
}

fn offsets(docker_dir: &str) -> Option<(u32, u32)> {
    let (uid, gid) = docker_dir.rsplit('/').next()?.split_once('.')?;
    Some((uid.parse().ok()?, gid.parse().ok()?))
}

/// The hardened container of one attempt.
pub fn hardened(spec: &JobSpec, frame: &Frame<'_>) -> ContainerCreateBody {
    let (uid, gid) = frame.user;
    let labels = [
        (LABEL_MACHINE, frame.machine.to_string()),
        (LABEL_JOB, frame.job.to_string()),
        (LABEL_LEASE, frame.lease.to_string()),
        (LABEL_GPUS, frame.gpus.join(",")),
    ];
    ContainerCreateBody {
        image: Some(frame.image_id.to_owned()),
        cmd: (!spec.command.is_empty()).then(|| spec.command.clone()),
        user: Some(format!("{uid}:{gid}")),
        env: Some(environment(frame)),
        working_dir: Some(spec.workdir.clone().unwrap_or_else(|| "/output".to_owned())),
        network_disabled: Some(!spec.egress),
        attach_stdin: Some(false),
        open_stdin: Some(false),
        tty: Some(false),
        labels: Some(labels.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
        host_config: Some(host_config(spec, frame)),
        ..Default::default()
    }
}

/// What the job finds in its environment: what is said to every job, and what its consumer gave it.
fn environment(frame: &Frame<'_>) -> Vec<String> {
    let own = [
        format!("GPUBNB_JOB={}", frame.job),
        "GPUBNB_OUTPUT=/output".to_owned(),
        "HOME=/tmp".to_owned(),
        "TMPDIR=/tmp".to_owned(),
    ];
    let given = frame.env.iter().map(|(name, value)| format!("{name}={value}"));
    own.into_iter().chain(given).collect()
}

fn mount(source: &Path, target: &str, read_only: bool) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(source.to_string_lossy().into_owned()),
        target: Some(target.to_owned()),
        read_only: Some(read_only),
        ..Default::default()
    }
}

fn host_config(spec: &JobSpec, frame: &Frame<'_>) -> HostConfig {
    let Resources { cpu_millis, memory, shm, output, .. } = spec.resources;
    let mut mounts = vec![mount(frame.output, "/output", false)];
    mounts.extend(frame.input.map(|input| mount(input, "/input", true)));
    let bytes = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let limit =
        |name: &str, most: i64| ResourcesUlimits { name: Some(name.to_owned()), soft: Some(most), hard: Some(most) };
    HostConfig {
        network_mode: Some(if spec.egress { "bridge" } else { "none" }.to_owned()),
        readonly_rootfs: Some(true),
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges:true".to_owned()]),
        privileged: Some(false),
        // Docker's own init is process 1: it passes SIGTERM on, which a program as process 1 never hears, and
        // buries orphans.
        init: Some(true),
        pids_limit: Some(512),
        memory: Some(bytes(memory.bytes())),
        // Equal to the memory: no swap.
        memory_swap: Some(bytes(memory.bytes())),
        nano_cpus: Some(i64::from(cpu_millis) * 1_000_000),
        oom_score_adj: Some(500),
        ipc_mode: Some("private".to_owned()),
        shm_size: Some(shm.map_or_else(|| bytes(memory.bytes() / 4).clamp(1 << 20, 1 << 30), |shm| bytes(shm.bytes()))),
        tmpfs: Some(HashMap::from([("/tmp".to_owned(), "rw,noexec,nosuid,nodev,size=64m,mode=1777".to_owned())])),
        // A file larger than the whole allowance cannot be written; the sum is watched while the job runs.
        ulimits: Some(vec![limit("nofile", 4_096), limit("core", 0), limit("fsize", bytes(output.bytes()))]),
        mounts: Some(mounts),
        // Above the worker's own cap: a log that Docker rotates cannot be followed.
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(HashMap::from([
                ("max-size".to_owned(), (frame.max_log * 4).to_string()),
                ("max-file".to_owned(), "1".to_owned()),
            ])),
        }),
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
        // The worker removes it itself, once its ending is recorded.
        auto_remove: Some(false),
        device_requests: (!frame.gpus.is_empty()).then(|| vec![gpus(frame)]),
        runtime: frame.runtime.clone(),
        ..Default::default()
    }
}

/// The GPUs of a job, by their UUIDs: by NVIDIA's runtime, or by the Container Device Interface.
fn gpus(frame: &Frame<'_>) -> DeviceRequest {
    if frame.cdi {
        return DeviceRequest {
            driver: Some("cdi".to_owned()),
            device_ids: Some(frame.gpus.iter().map(|uuid| format!("nvidia.com/gpu={uuid}")).collect()),
            ..Default::default()
        };
    }
    DeviceRequest {
        driver: Some("nvidia".to_owned()),
        device_ids: Some(frame.gpus.clone()),
        capabilities: Some(vec![vec!["gpu".to_owned()]]),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offsets_of_mapped_users_stand_in_dockers_directory() {
        assert_eq!(offsets("/var/lib/docker/231072.231072"), Some((231_072, 231_072)));
        assert_eq!(offsets("/var/lib/docker"), None);
        assert_eq!(offsets("/srv/docker.io"), None);
    }
}
