//! Checks of Docker and its container runtimes.

use std::error::Error as _;

use bollard::{
    Docker,
    errors::Error,
    models::{SystemInfo, SystemInfoCgroupVersionEnum},
};
use gpubnb_events::event::Check;

use super::{TestSubject, check, with_requirement};
use crate::gpu::Gpus;

/// The oldest version of Docker on which the sandbox was tested.
const OLDEST_DOCKER: (u64, u64, u64) = (20, 10, 0);
/// The first safe version of each release line of runc. Older versions let a job escape from its container:
/// CVE-2024-21626 (fixed in 1.1.12), and CVE-2025-31133, -52565 and -52881 (fixed in 1.2.8 and 1.3.3).
const SAFE_RUNC: [(u64, u64, u64); 3] = [(1, 2, 8), (1, 3, 3), (1, 4, 0)];

pub(super) async fn checks(subject: &TestSubject<'_>) -> Vec<Check> {
    let docker = match subject.docker {
        Ok(docker) => docker,
        Err(e) => return vec![docker_absent(e)],
    };
    match inspect_docker(docker).await {
        Ok((version, runc, info)) => {
            let mut checks = vec![
                with_requirement(check("docker.answers", "yes", ""), "yes", true, ""),
                docker_version(&version),
                runc_version(runc.as_deref()),
                check("docker.cgroup", cgroup_version(&info), ""),
                check("docker.storage", info.driver.clone().unwrap_or_default(), ""),
                userns(&info),
                live_restore(&info),
                runtime(&info, subject.runtime),
            ];
            checks.extend(gpu_runtime(&info, subject.gpus, subject.cdi));
            checks
        }
        Err(e) => vec![docker_absent(&e)],
    }
}

/// The failed check for a Docker that does not answer.
fn docker_absent(e: &Error) -> Check {
    let remedy = "Install Docker, start it (systemctl start docker), and let this user use it (group docker, or root).";
    let causes = std::iter::successors(e.source(), |e| (*e).source()).map(|e| format!(": {e}"));
    let why: String = std::iter::once(e.to_string()).chain(causes).collect();
    with_requirement(check("docker.answers", why.chars().take(200).collect::<String>(), ""), "yes", false, remedy)
}

/// The version of Docker, the version of runc if Docker knows it, and Docker's information about the system.
async fn inspect_docker(docker: &Docker) -> Result<(String, Option<String>, SystemInfo), Error> {
    let version = docker.version().await?;
    let parts = version.components.unwrap_or_default();
    let runc = parts.into_iter().find(|part| part.name == "runc").map(|part| part.version);
    Ok((version.version.unwrap_or_default(), runc, docker.info().await?))
}

/// The first three numbers of a version: `20.10.24+dfsg1` is (20, 10, 24).
fn version_numbers(version: &str) -> (u64, u64, u64) {
    let mut parts = version.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
    let mut next = || parts.next().and_then(|n| n.parse().ok()).unwrap_or(0);
    (next(), next(), next())
}

fn docker_version(version: &str) -> Check {
    let passed = version_numbers(version) >= OLDEST_DOCKER;
    with_requirement(check("docker.version", version, ""), "20.10 or newer", passed, "Install a newer Docker.")
}

fn runc_version(version: Option<&str>) -> Check {
    let Some(version) = version else { return check("docker.runc", "unknown", "") };
    let found = version_numbers(version);
    let safe = SAFE_RUNC.iter().any(|safe| (safe.0, safe.1) == (found.0, found.1) && found >= *safe)
        || (found.0, found.1) > (1, 4);
    let remedy = "Update runc: this version has known escapes from a container (CVE-2024-21626, CVE-2025-31133, \
                  CVE-2025-52565, CVE-2025-52881), unless your distribution has fixed them under the same version.";
    with_requirement(check("docker.runc", version, ""), "1.2.8, 1.3.3, 1.4 or newer", safe, remedy)
}

/// Shows whether Docker uses user namespaces, which map root in a container to an ordinary user of the machine. They
/// are not required, because no job runs as root.
fn userns(info: &SystemInfo) -> Check {
    let is_on =
        info.security_options.iter().flatten().any(|option| option.contains("userns") || option.contains("rootless"));
    check("docker.userns", if is_on { "remapped" } else { "not remapped" }, "")
}

/// Checks that containers survive a restart of Docker.
/// The version of the control groups: `1` or `2`.
fn cgroup_version(info: &SystemInfo) -> &'static str {
    match info.cgroup_version {
        Some(SystemInfoCgroupVersionEnum::_1) => "1",
        Some(SystemInfoCgroupVersionEnum::_2) => "2",
        Some(SystemInfoCgroupVersionEnum::EMPTY) | None => "unknown",
    }
}

fn live_restore(info: &SystemInfo) -> Check {
    let is_on = info.live_restore_enabled == Some(true);
    let remedy = "Let jobs survive a restart of Docker: \"live-restore\": true in /etc/docker/daemon.json.";
    with_requirement(check("docker.restore", if is_on { "on" } else { "off" }, ""), "on", is_on, remedy)
}

fn runtime(info: &SystemInfo, wanted: Option<&str>) -> Check {
    let known = |name: &str| info.runtimes.as_ref().is_some_and(|all| all.contains_key(name));
    let default = info.default_runtime.clone().unwrap_or_else(|| "runc".to_owned());
    let name = wanted.unwrap_or(&default);
    let remedy = format!("Docker knows no runtime `{name}`: add it to /etc/docker/daemon.json and restart Docker.");
    with_requirement(check("docker.runtime", name, ""), "known to Docker", wanted.is_none_or(known), &remedy)
}

fn gpu_runtime(info: &SystemInfo, gpus: &Gpus, cdi: bool) -> Option<Check> {
    if gpus.list().is_empty() || gpus.is_simulated() {
        return None;
    }
    if cdi {
        let found = info.cdi_spec_dirs.as_ref().is_some_and(|dirs| !dirs.is_empty());
        let remedy = "Let Docker (25 or newer) use CDI, and write the devices: nvidia-ctk cdi generate \
                      --output=/etc/cdi/nvidia.yaml.";
        return Some(with_requirement(
            check("gpu.runtime", if found { "CDI" } else { "none" }, ""),
            "CDI",
            found,
            remedy,
        ));
    }
    let found = info.runtimes.as_ref().is_some_and(|all| all.contains_key("nvidia"));
    let remedy = "Install NVIDIA's container toolkit, then: nvidia-ctk runtime configure --runtime=docker, and restart \
                  Docker.";
    Some(with_requirement(check("gpu.runtime", if found { "nvidia" } else { "none" }, ""), "nvidia", found, remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_with_known_escapes_fail() {
        for (version, safe) in [
            ("1.1.11", false),
            ("1.1.12+ds1", false),
            ("1.2.7", false),
            ("1.2.8", true),
            ("1.3.2", false),
            ("1.3.3-0ubuntu1", true),
            ("1.4.0", true),
            ("1.5.1", true),
        ] {
            assert_eq!(runc_version(Some(version)).passed, safe, "{version}");
        }
        assert!(docker_version("20.10.24+dfsg1").passed && !docker_version("19.03.1").passed);
    }

    #[test]
    fn an_unknown_runtime_fails_and_its_remedy_names_it() {
        let info = SystemInfo::default();
        let failed = runtime(&info, Some("runsc"));
        assert!(!failed.passed && failed.remedy.contains("runsc"));
        assert!(runtime(&info, None).passed);
    }
}
