//! The sandbox: the settings of a job's container. The container has no capabilities, no network but loopback, a
//! read-only root, and limits on memory, CPU, processes and files.
//!
//! Belongs here: every setting of the sandbox. Must not come here: the requests to Docker about one attempt
//! (`attempt/container.rs`).

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    time::Duration,
};

use bollard::{
    Docker,
    models::{
        ContainerCreateBody, DeviceRequest, HealthConfig, HostConfig, HostConfigLogConfig, ImageInspect, Mount,
        MountType, ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
    },
};
use gpubnb_door::proxy_variables;
use gpubnb_events::{
    JobId, Lease, MachineId,
    batch::Task,
    spec::{JobSpec, Resources},
};

use crate::relay::relay_name;

/// Label with the machine's id. A worker finds its containers by this label.
pub(crate) const LABEL_MACHINE: &str = "gpubnb.machine";
/// Label with the job's id.
pub(crate) const LABEL_JOB: &str = "gpubnb.job";
/// Label with the UUIDs of the job's GPUs, separated by commas.
pub(crate) const LABEL_GPUS: &str = "gpubnb.gpus";
/// The variables by which numeric libraries are told how many threads to start.
const THREAD_COUNTS: [&str; 5] =
    ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "RAYON_NUM_THREADS"];

/// Label with the lease, a decimal number.
pub(crate) const LABEL_LEASE: &str = "gpubnb.lease";

/// Timeout of a request to Docker. It is longer than the longest stop of a container.
const TIMEOUT_SECONDS: u64 = 60;

/// Connects to Docker at the address in `DOCKER_HOST`, or at Docker's default address.
pub(crate) async fn connect() -> Result<Docker, bollard::errors::Error> {
    let docker = Docker::connect_with_defaults()?.with_timeout(Duration::from_secs(TIMEOUT_SECONDS));
    docker.negotiate_version().await
}

/// An image on this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalImage {
    /// Docker's id.
    pub id: String,
    /// The directory in which the image's program starts; `None` if the image names none.
    pub workdir: Option<String>,
    /// The directories that the image declares as volumes.
    pub volumes: Vec<String>,
    /// The names of the image's labels.
    pub labels: Vec<String>,
}

impl From<ImageInspect> for LocalImage {
    fn from(found: ImageInspect) -> Self {
        let config = found.config.unwrap_or_default();
        Self {
            id: found.id.unwrap_or_default(),
            workdir: config.working_dir.filter(|dir| !dir.is_empty() && dir != "/"),
            // A volume at a directory that every job has needs no directory of its own.
            volumes: distinct(config.volumes.unwrap_or_default()).filter(|path| !is_mounted_by_worker(path)).collect(),
            labels: config.labels.unwrap_or_default().into_keys().collect(),
        }
    }
}

/// The volumes of an image, each once: `/data` and `/data/` are one directory.
fn distinct(volumes: Vec<String>) -> impl Iterator<Item = String> {
    let by_path: BTreeMap<_, _> =
        volumes.into_iter().map(|path| (path.trim_end_matches('/').to_owned(), path)).collect();
    by_path.into_values()
}

/// True for a directory that the worker mounts into every job. `/input` is not one of them: a job without input files
/// has none.
fn is_mounted_by_worker(path: &str) -> bool {
    ["/output", "/scratch", "/tmp"].contains(&path.trim_end_matches('/'))
}

/// The parameters of a job's container, besides the job's own specification.
pub struct SandboxParams<'a> {
    /// This machine.
    pub machine: MachineId,
    /// The job.
    pub job: JobId,
    /// The lease of the attempt.
    pub lease: Lease,
    /// The image. The container is created from its id and not its name, because a name may later refer to another
    /// image.
    pub image: &'a LocalImage,
    /// The directory on the machine that is mounted at `/output`.
    pub output: &'a Path,
    /// The directory on the machine that is mounted at `/scratch`.
    pub scratch: &'a Path,
    /// The directories on the machine that are mounted at the volumes of the image, in the same order.
    pub volumes: Vec<PathBuf>,
    /// The directory on the machine that is mounted at `/input`, read-only.
    pub input: Option<&'a Path>,
    /// The directories on the machine with datasets, and the paths at which they are mounted, read-only.
    pub datasets: Vec<(PathBuf, String)>,
    /// The consumer's environment variables: name and value.
    pub env: BTreeMap<String, String>,
    /// The uid and gid of the job's processes; never root.
    pub user: (u32, u32),
    /// The UUIDs of the job's GPUs.
    pub gpus: Vec<String>,
    /// True if the container gets its GPUs by the Container Device Interface, and not by NVIDIA's runtime.
    pub cdi: bool,
    /// The container runtime, such as `runsc`; `None` for Docker's default.
    pub runtime: Option<String>,
    /// Largest log of the job, bytes.
    pub max_log: u64,
}

/// The name of an attempt's container. Docker refuses a second container with the same name, so an attempt has at most
/// one container. The name contains the machine's id, because workers of several markets may share one Docker.
pub fn container_name(machine: MachineId, lease: Lease) -> String {
    format!("gpubnb-{machine}-{lease}")
}

/// The uid and gid of jobs: those of the user `nobody` if the worker is root, else those of the worker.
pub fn job_user() -> (u32, u32) {
    const NOBODY: u32 = 65_534;
    let uid = rustix::process::getuid();
    if uid.is_root() { (NOBODY, NOBODY) } else { (uid.as_raw(), rustix::process::getgid().as_raw()) }
}

/// The uid and gid that own the files of jobs outside the container. They are the job's own, unless Docker maps users
/// (`userns-remap`). Docker then adds the offsets that are in the name of its directory, such as
/// `/var/lib/docker/231072.231072`.
pub(crate) async fn file_owner(docker: &Docker) -> Result<(u32, u32), bollard::errors::Error> {
    let info = docker.info().await?;
    let (uid, gid) = job_user();
    let is_remapped = info.security_options.iter().flatten().any(|option| option.contains("name=userns"));
    let (first_uid, first_gid) =
        info.docker_root_dir.filter(|_| is_remapped).and_then(|dir| userns_offsets(&dir)).unwrap_or((0, 0));
    Ok((uid.saturating_add(first_uid), gid.saturating_add(first_gid)))
}

/// The offsets of uid and gid in the name of Docker's directory; `None` if the name has none.
fn userns_offsets(docker_dir: &str) -> Option<(u32, u32)> {
    let (uid, gid) = docker_dir.rsplit('/').next()?.split_once('.')?;
    Some((uid.parse().ok()?, gid.parse().ok()?))
}

/// The request to Docker that creates the hardened container of one attempt.
pub fn hardened_container(spec: &JobSpec, params: &SandboxParams<'_>) -> ContainerCreateBody {
    let (uid, gid) = params.user;
    let labels = [
        (LABEL_MACHINE, params.machine.to_string()),
        (LABEL_JOB, params.job.to_string()),
        (LABEL_LEASE, params.lease.to_string()),
        (LABEL_GPUS, params.gpus.join(",")),
    ];
    // Docker copies the labels of the image. Other programs of the owner act on labels: Traefik, for example, would
    // publish a container with the label `traefik.enable=true`. So the values of the image's labels are emptied.
    let foreign = params.image.labels.iter().map(|name| (name.as_str(), String::new()));
    let labels = foreign.chain(labels).map(|(name, value)| (name.to_owned(), value)).collect();
    ContainerCreateBody {
        image: Some(params.image.id.clone()),
        cmd: (!spec.command.is_empty()).then(|| spec.command.clone()),
        user: Some(format!("{uid}:{gid}")),
        env: Some(environment(spec, params)),
        working_dir: Some(
            spec.workdir.as_ref().or(params.image.workdir.as_ref()).map_or("/output", String::as_str).to_owned(),
        ),
        network_disabled: Some(spec.egress.is_none()),
        attach_stdin: Some(false),
        open_stdin: Some(false),
        tty: Some(false),
        // Docker runs a health check outside of the job's limit of processor time, so the image's own check is switched
        // off.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..Default::default() }),
        labels: Some(labels),
        // The image could name a signal that its program ignores, or one that does not exist.
        stop_signal: Some("SIGTERM".to_owned()),
        host_config: Some(host_config(spec, params)),
        ..Default::default()
    }
}

/// The job's environment: the variables that every job gets, and the consumer's variables.
fn environment(spec: &JobSpec, params: &SandboxParams<'_>) -> Vec<String> {
    let mut variables: Vec<(&str, String)> = vec![
        ("GPUBNB_JOB", params.job.to_string()),
        ("GPUBNB_OUTPUT", "/output".to_owned()),
        ("GPUBNB_SCRATCH", "/scratch".to_owned()),
        ("HOME", "/scratch".to_owned()),
        ("TMPDIR", "/scratch".to_owned()),
        ("XDG_CACHE_HOME", "/scratch/.cache".to_owned()),
        // The image may have no name for the uid that the job runs as.
        ("USER", "job".to_owned()),
        ("LOGNAME", "job".to_owned()),
    ];
    // Numeric libraries start one thread for each core of the machine, unless they are told the cores of the job.
    let cores = spec.resources.cpu_millis.div_ceil(1_000).max(1).to_string();
    variables.extend(THREAD_COUNTS.map(|name| (name, cores.clone())));
    if params.gpus.is_empty() || params.cdi {
        // With NVIDIA's runtime as Docker's default, an image could ask for all GPUs by this variable. Where that
        // runtime gives a job its GPUs, Docker itself sets the variable.
        variables.push(("NVIDIA_VISIBLE_DEVICES", "void".to_owned()));
    }
    if !spec.egress.is_none() {
        variables.extend(proxy_variables());
    }
    let of_task = spec.task.as_ref().map(Task::environment).unwrap_or_default();
    let of_task = of_task.iter().map(|(name, value)| (name.as_str(), value.clone()));
    let given = of_task.chain(params.env.iter().map(|(name, value)| (name.as_str(), value.clone())));
    variables.into_iter().chain(given).map(|(name, value)| format!("{name}={value}")).collect()
}

pub(crate) fn mount(source: &Path, target: &str, read_only: bool) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(source.to_string_lossy().into_owned()),
        target: Some(target.to_owned()),
        read_only: Some(read_only),
        ..Default::default()
    }
}

/// The confinement of every container that the worker makes: no capabilities, no new privileges, a read-only root, no
/// swap, and bounds on processes and memory (bytes).
pub(crate) fn confined(pids: i64, memory: i64) -> HostConfig {
    HostConfig {
        readonly_rootfs: Some(true),
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges:true".to_owned()]),
        privileged: Some(false),
        pids_limit: Some(pids),
        memory: Some(memory),
        // The limit of memory and swap together. Equal to the memory, so there is no swap.
        memory_swap: Some(memory),
        ..Default::default()
    }
}

/// A limit of a process (`ulimit`) that the process cannot raise.
pub(crate) fn limit(name: &str, most: i64) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(name.to_owned()), soft: Some(most), hard: Some(most) }
}

fn host_config(spec: &JobSpec, params: &SandboxParams<'_>) -> HostConfig {
    let Resources { cpu_millis, memory, shm, .. } = spec.resources;
    let mut mounts = vec![mount(params.output, "/output", false), mount(params.scratch, "/scratch", false)];
    mounts.extend(params.input.map(|input| mount(input, "/input", true)));
    mounts.extend(params.datasets.iter().map(|(tree, path)| mount(tree, path, true)));
    // Without a mount, Docker would make a directory for each volume of the image on the machine's disk, and the job's
    // limits would not hold there.
    let volumes = params.volumes.iter().zip(&params.image.volumes);
    mounts.extend(volumes.map(|(directory, volume)| mount(directory, volume, false)));
    let bytes = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    HostConfig {
        // The network of the relay has nothing but loopback, too.
        network_mode: Some(if spec.egress.is_none() {
            "none".to_owned()
        } else {
            format!("container:{}", relay_name(params.machine, params.lease))
        }),
        // Docker's init is process 1: it forwards SIGTERM to the job, and reaps orphans. A job that is process 1 itself
        // would not get a SIGTERM for which it has no handler.
        init: Some(true),
        nano_cpus: Some(i64::from(cpu_millis) * 1_000_000),
        // If the machine runs out of memory, the kernel kills jobs before the owner's programs.
        oom_score_adj: Some(500),
        ipc_mode: Some("private".to_owned()),
        shm_size: Some(shm.map_or_else(|| bytes(memory.bytes() / 4).clamp(1 << 20, 1 << 30), |shm| bytes(shm.bytes()))),
        tmpfs: Some(HashMap::from([("/tmp".to_owned(), "rw,noexec,nosuid,nodev,size=64m,mode=1777".to_owned())])),
        // `fsize` limits the size of one file. A file is on the job's disk or in /dev/shm, so the limit is the size of
        // the disk plus the memory. The sum of the files needs no `ulimit`: the job's disk and the job's memory bound
        // it.
        ulimits: Some(vec![
            limit("nofile", i64::from(spec.resources.max_open_files())),
            limit("core", 0),
            limit("fsize", bytes(spec.resources.disk_size().bytes().saturating_add(memory.bytes()))),
        ]),
        mounts: Some(mounts),
        // The driver `local` keeps the job's bytes as they are, with about 33 bytes more for each line. Docker must not
        // rotate the log before the worker cuts it, because the worker cannot read the lines that were rotated away.
        // The worker counts 8 bytes more for each line, so four times the worker's limit is enough.
        log_config: Some(HostConfigLogConfig {
            typ: Some("local".to_owned()),
            config: Some(HashMap::from([
                ("max-size".to_owned(), (params.max_log * 4).to_string()),
                ("max-file".to_owned(), "1".to_owned()),
                ("compress".to_owned(), "false".to_owned()),
            ])),
        }),
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
        // The worker removes the container, after the market has the report.
        auto_remove: Some(false),
        device_requests: (!params.gpus.is_empty()).then(|| vec![gpu_request(params)]),
        runtime: params.runtime.clone(),
        ..confined(spec.resources.max_pids().into(), bytes(memory.bytes()))
    }
}

/// The part of the request that gives the container its GPUs, by their UUIDs.
fn gpu_request(params: &SandboxParams<'_>) -> DeviceRequest {
    if params.cdi {
        return DeviceRequest {
            driver: Some("cdi".to_owned()),
            device_ids: Some(params.gpus.iter().map(|uuid| format!("nvidia.com/gpu={uuid}")).collect()),
            ..Default::default()
        };
    }
    DeviceRequest {
        driver: Some("nvidia".to_owned()),
        device_ids: Some(params.gpus.clone()),
        capabilities: Some(vec![vec!["gpu".to_owned()]]),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use bollard::models::ImageConfig;
    use gpubnb_events::{
        Seq,
        spec::{Egress, Mebibytes},
    };
    use serde_json::{Value, json};

    const MACHINE: &str = "01940000-0000-7000-8000-00000000000a";
    const JOB: &str = "01940000-0000-7000-8000-00000000000b";

    static IMAGE: LazyLock<LocalImage> =
        LazyLock::new(|| LocalImage { id: "sha256:1".to_owned(), ..LocalImage::default() });

    fn spec() -> JobSpec {
        let resources = Resources::new(1_500, Mebibytes(1_024), Mebibytes(100));
        JobSpec::for_image(
            "test",
            "example.org/job@sha256:0",
            ["train", "--fast"].map(str::to_owned).to_vec(),
            resources,
        )
    }

    fn params() -> SandboxParams<'static> {
        SandboxParams {
            machine: MACHINE.parse().unwrap(),
            job: JOB.parse().unwrap(),
            lease: Lease(Seq(7)),
            image: &IMAGE,
            output: Path::new("/state/7/disk/output"),
            scratch: Path::new("/state/7/disk/scratch"),
            volumes: Vec::new(),
            input: Some(Path::new("/state/7/input")),
            datasets: vec![(PathBuf::from("/state/d/trees/b"), "/data/mnist".to_owned())],
            env: BTreeMap::from([("TOKEN".to_owned(), "secret".to_owned())]),
            user: (65_534, 65_534),
            gpus: Vec::new(),
            cdi: false,
            runtime: None,
            max_log: 16 << 20,
        }
    }

    fn created(spec: &JobSpec, params: &SandboxParams<'_>) -> Value {
        serde_json::to_value(hardened_container(spec, params)).unwrap()
    }

    /// Compares the whole request to Docker for a job's container. A lost, changed or added setting fails this test.
    #[test]
    fn the_sandbox_has_exactly_these_settings() {
        let expected = json!({
            "Image": "sha256:1",
            "Cmd": ["train", "--fast"],
            "User": "65534:65534",
            "WorkingDir": "/output",
            "Env": [
                format!("GPUBNB_JOB={JOB}"), "GPUBNB_OUTPUT=/output", "GPUBNB_SCRATCH=/scratch", "HOME=/scratch",
                "TMPDIR=/scratch", "XDG_CACHE_HOME=/scratch/.cache", "USER=job",
                "LOGNAME=job", "OMP_NUM_THREADS=2", "OPENBLAS_NUM_THREADS=2", "MKL_NUM_THREADS=2",
                "NUMEXPR_NUM_THREADS=2", "RAYON_NUM_THREADS=2", "NVIDIA_VISIBLE_DEVICES=void", "TOKEN=secret",
            ],
            "Labels": {
                "gpubnb.machine": MACHINE, "gpubnb.job": JOB, "gpubnb.lease": "7", "gpubnb.gpus": "",
            },
            "NetworkDisabled": true,
            "AttachStdin": false,
            "OpenStdin": false,
            "Tty": false,
            "Healthcheck": { "Test": ["NONE"] },
            "StopSignal": "SIGTERM",
            "HostConfig": {
                "NetworkMode": "none",
                "ReadonlyRootfs": true,
                "CapDrop": ["ALL"],
                "SecurityOpt": ["no-new-privileges:true"],
                "Privileged": false,
                "Init": true,
                "IpcMode": "private",
                "PidsLimit": 512,
                "Memory": 1_024_i64 << 20,
                "MemorySwap": 1_024_i64 << 20,
                "ShmSize": 256_i64 << 20,
                "NanoCpus": 1_500_000_000_i64,
                "OomScoreAdj": 500,
                "Ulimits": [
                    { "Name": "nofile", "Soft": 4_096, "Hard": 4_096 },
                    { "Name": "core", "Soft": 0, "Hard": 0 },
                    { "Name": "fsize", "Soft": 1_380_i64 << 20, "Hard": 1_380_i64 << 20 },
                ],
                "Tmpfs": { "/tmp": "rw,noexec,nosuid,nodev,size=64m,mode=1777" },
                "Mounts": [
                    { "Type": "bind", "Source": "/state/7/disk/output", "Target": "/output", "ReadOnly": false },
                    { "Type": "bind", "Source": "/state/7/disk/scratch", "Target": "/scratch", "ReadOnly": false },
                    { "Type": "bind", "Source": "/state/7/input", "Target": "/input", "ReadOnly": true },
                    { "Type": "bind", "Source": "/state/d/trees/b", "Target": "/data/mnist", "ReadOnly": true },
                ],
                "LogConfig": {
                    "Type": "local",
                    "Config": { "max-file": "1", "max-size": "67108864", "compress": "false" },
                },
                "RestartPolicy": { "Name": "no" },
                "AutoRemove": false,
            },
        });
        assert_eq!(created(&spec(), &params()), expected);
    }

    #[test]
    fn the_image_names_the_working_directory_its_volumes_are_on_the_jobs_disk_and_its_labels_are_emptied() {
        let config = ImageConfig {
            working_dir: Some("/app".to_owned()),
            volumes: Some(["/data", "/data/", "/output", "/scratch/", "/tmp"].map(str::to_owned).to_vec()),
            labels: Some(HashMap::from(["traefik.enable", LABEL_JOB].map(|name| (name.to_owned(), "true".to_owned())))),
            ..Default::default()
        };
        let image = LocalImage::from(ImageInspect { config: Some(config), ..Default::default() });
        let volumes = vec![PathBuf::from("/state/7/disk/volume-0")];
        let found =
            created(&spec(), &SandboxParams { image: &image, input: None, datasets: Vec::new(), volumes, ..params() });
        assert_eq!(found["WorkingDir"], "/app");
        assert_eq!((&found["Labels"]["traefik.enable"], &found["Labels"][LABEL_JOB]), (&json!(""), &json!(JOB)));
        let mounts = found["HostConfig"]["Mounts"].as_array().unwrap();
        let targets: Vec<_> = mounts.iter().map(|m| (m["Source"].as_str(), m["Target"].as_str())).collect();
        assert_eq!(targets[2..], [(Some("/state/7/disk/volume-0"), Some("/data/"))]);
        let asked = JobSpec { workdir: Some("/else".to_owned()), ..spec() };
        let found = created(&asked, &SandboxParams { image: &image, ..params() });
        assert_eq!(found["WorkingDir"], "/else", "the job's own wish comes first");
    }

    #[test]
    fn a_job_gets_the_working_directory_and_the_shared_memory_that_it_asks_for() {
        let mut custom = JobSpec { workdir: Some("/app".to_owned()), ..spec() };
        custom.resources.shm = Some(Mebibytes(7));
        (custom.resources.pids, custom.resources.open_files) = (Some(2_000), Some(9_000));
        let created = created(&custom, &params());
        assert_eq!((&created["WorkingDir"], &created["HostConfig"]["ShmSize"]), (&json!("/app"), &json!(7 << 20)));
        let limits = &created["HostConfig"];
        assert_eq!((&limits["PidsLimit"], &limits["Ulimits"][0]["Hard"]), (&json!(2_000), &json!(9_000)));
        // Shared memory counts as memory of the job, so the limit of memory does not change.
        assert_eq!(created["HostConfig"]["Memory"], json!(1_024_i64 << 20));
    }

    #[test]
    fn a_job_with_a_door_has_the_network_of_its_relay_and_the_proxies_by_name() {
        let with_egress = JobSpec { egress: Egress::any(), ..spec() };
        let mut created = created(&with_egress, &params());
        assert_eq!(created["NetworkDisabled"].take(), json!(false));
        assert_eq!(created["HostConfig"]["NetworkMode"].take(), json!(format!("container:gpubnb-{MACHINE}-7-relay")));
        let variables = created["Env"].take();
        let variables: Vec<_> = variables.as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
        for expected in ["http_proxy=http://127.0.0.1:3128", "NO_PROXY=localhost,127.0.0.1,::1"] {
            assert!(variables.contains(&expected), "{variables:?}");
        }
        let mut without = self::created(&spec(), &params());
        without["NetworkDisabled"].take();
        without["HostConfig"]["NetworkMode"].take();
        without["Env"].take();
        assert_eq!(created, without);
    }

    #[test]
    fn a_job_gets_exactly_its_own_gpus() {
        let gpus = vec!["GPU-1".to_owned(), "GPU-2".to_owned()];
        let request = |cdi| {
            let params = SandboxParams { gpus: gpus.clone(), cdi, ..params() };
            created(&spec(), &params)["HostConfig"]["DeviceRequests"].take()
        };
        let nvidia = json!([{ "Driver": "nvidia", "DeviceIDs": ["GPU-1", "GPU-2"], "Capabilities": [["gpu"]] }]);
        assert_eq!(request(false), nvidia);
        let cdi = json!([{ "Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=GPU-1", "nvidia.com/gpu=GPU-2"] }]);
        assert_eq!(request(true), cdi);
    }

    #[test]
    fn the_offsets_of_mapped_users_are_read_from_the_name_of_dockers_directory() {
        assert_eq!(userns_offsets("/var/lib/docker/231072.231072"), Some((231_072, 231_072)));
        assert_eq!(userns_offsets("/var/lib/docker"), None);
        assert_eq!(userns_offsets("/srv/docker.io"), None);
    }
}
