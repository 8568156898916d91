//! The relay of a job: a container beside the job. Its image has one small program, which the worker embeds. The job
//! shares the network of this container, which has nothing but loopback. The relay carries each connection to that
//! loopback to a socket of the job's door (`door/`).
//!
//! Belongs here: the image and the container of the relay. Must not come here: what a job may reach.

use std::{io, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use bollard::{
    Docker, body_full,
    errors::Error,
    models::{ContainerCreateBody, HostConfig},
    query_parameters::{
        CreateContainerOptionsBuilder, CreateImageOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions,
        WaitContainerOptions,
    },
};
use futures_util::{StreamExt as _, TryStreamExt as _};
use gpubnb_dialer::Dialer;
use gpubnb_door::{OpenDoor, Rate, Rules};
use gpubnb_events::{
    Lease, MachineId, Seq,
    spec::{Egress, Traffic},
};
use sha2::{Digest as _, Sha256};
use tokio::{sync::mpsc, time::timeout};

use crate::docker::{LABEL_LEASE, confined, container_name, file_owner, job_user, limit, mount};

/// The relay's program, which `build.rs` builds.
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/relay"));
/// The repository of the relay's image. The tag is the digest of the program.
const REPOSITORY: &str = "gpubnb/relay";
/// The directory in the container with the sockets of the door.
const DIRECTORY: &str = "/door";
/// The argument with which the program tries to reach a relay, and ends.
const PROBE: &str = "probe";
/// Label with the machine's id. A worker finds its relays by this label.
pub(crate) const LABEL_RELAY: &str = "gpubnb.relay";
/// Largest memory of a relay, bytes: enough for the buffers of all its connections.
const MEMORY: i64 = 128 << 20;
/// The least, usual and greatest size of the buffers of a connection on the job's loopback, bytes. The kernel counts
/// the buffers as memory of the relay. A job that never reads would otherwise fill larger buffers, and use up that
/// memory.
const BUFFERS: &str = "4096 65536 65536";
/// Most threads of a relay: two for each connection.
const THREADS: i64 = 300;
/// Longest time of the check whether jobs reach a relay.
const CHECK_TIMEOUT: Duration = Duration::from_secs(60);

/// The name of the relay of an attempt.
pub(crate) fn relay_name(machine: MachineId, lease: Lease) -> String {
    format!("{}-relay", container_name(machine, lease))
}

/// The id of the relay's image. Imports the image if Docker does not have it.
pub(crate) async fn image(docker: &Docker) -> anyhow::Result<String> {
    let tag = data_encoding::HEXLOWER.encode(&Sha256::digest(PROGRAM)[..8]);
    let name = format!("{REPOSITORY}:{tag}");
    match docker.inspect_image(&name).await {
        Ok(found) => return found.id.context("an image without an id"),
        Err(Error::DockerResponseServerError { status_code: 404, .. }) => {}
        Err(e) => return Err(e).context("looking for the relay's image"),
    }
    let options = CreateImageOptionsBuilder::default().from_src("-").repo(REPOSITORY).tag(&tag).build();
    let steps = docker.create_image(Some(options), Some(body_full(archive()?.into())), None);
    steps.try_collect::<Vec<_>>().await.context("importing the relay's image")?;
    docker.inspect_image(&name).await?.id.context("an image without an id")
}

/// The files of the image: one program.
fn archive() -> io::Result<Vec<u8>> {
    let mut header = tar::Header::new_ustar();
    header.set_size(PROGRAM.len() as u64);
    header.set_mode(0o755);
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_data(&mut header, "relay", PROGRAM)?;
    archive.into_inner()
}

/// The request to Docker for the relay of an attempt. `directory` is where the door listens.
pub(crate) fn container(machine: MachineId, lease: Lease, image: &str, directory: &Path) -> ContainerCreateBody {
    let labels = [(LABEL_RELAY, machine.to_string()), (LABEL_LEASE, lease.to_string())];
    let labels = labels.map(|(name, value)| (name.to_owned(), value)).into();
    let mounts = Some(vec![mount(directory, DIRECTORY, true)]);
    let host_config = HostConfig { mounts, ..host_config("none") };
    ContainerCreateBody { labels: Some(labels), host_config: Some(host_config), ..program(image, &[DIRECTORY]) }
}

fn program(image: &str, arguments: &[&str]) -> ContainerCreateBody {
    let (uid, gid) = job_user();
    ContainerCreateBody {
        image: Some(image.to_owned()),
        entrypoint: Some(vec!["/relay".to_owned()]),
        cmd: Some(arguments.iter().map(|argument| (*argument).to_owned()).collect()),
        user: Some(format!("{uid}:{gid}")),
        ..Default::default()
    }
}

/// The limits of the relay. It runs our own program, but a job decides what the program has to do.
fn host_config(network: &str) -> HostConfig {
    HostConfig {
        network_mode: Some(network.to_owned()),
        ipc_mode: Some("none".to_owned()),
        sysctls: (network == "none").then(|| {
            ["net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"].map(|name| (name.to_owned(), BUFFERS.to_owned())).into()
        }),
        ulimits: Some(vec![limit("nofile", 1_024)]),
        ..confined(THREADS, MEMORY)
    }
}

/// Checks that a container under the runtime of jobs reaches a relay. Fails, for example, under gVisor, where each
/// container has a loopback of its own. `state` is the worker's directory.
pub(crate) async fn check(
    docker: &Docker,
    machine: MachineId,
    runtime: Option<&str>,
    state: &Path,
) -> anyhow::Result<()> {
    let directory = state.join("relay-check");
    let names = ["relay", "probe"].map(|name| format!("gpubnb-{machine}-check-{name}"));
    let remove = async || {
        let options = RemoveContainerOptionsBuilder::default().force(true).build();
        for name in names.iter().rev() {
            drop(docker.remove_container(name, Some(options.clone())).await);
        }
        drop(std::fs::remove_dir_all(&directory));
    };
    // A former run of the worker may have been killed during its check.
    remove().await;
    let checked = timeout(CHECK_TIMEOUT, probe(docker, machine, runtime, &directory, &names)).await;
    remove().await;
    checked.context("the check took too long")?
}

async fn probe(
    docker: &Docker,
    machine: MachineId,
    runtime: Option<&str>,
    directory: &Path,
    [relay, probe]: &[String; 2],
) -> anyhow::Result<()> {
    let image = image(docker).await?;
    let rules = Rules { hosts: Egress::default(), owner: Egress::default(), ports: Vec::new(), max_bytes: 0 };
    let (notes, _) = mpsc::channel(1);
    let rate = Arc::new(Rate::megabits(0));
    let relay_user = file_owner(docker).await?;
    let door = OpenDoor::open(directory, relay_user, rules, Dialer::default(), rate, Traffic::default(), notes)?;
    start(docker, relay, container(machine, Lease(Seq(0)), &image, directory)).await?;
    door.wait_until_ready().await;
    let network = host_config(&format!("container:{relay}"));
    let host_config = HostConfig { runtime: runtime.map(ToOwned::to_owned), ..network };
    start(docker, probe, ContainerCreateBody { host_config: Some(host_config), ..program(&image, &[PROBE]) }).await?;
    match docker.wait_container(probe, None::<WaitContainerOptions>).next().await {
        Some(Ok(_)) => Ok(()),
        Some(Err(Error::DockerContainerWaitError { .. })) => bail!("a job does not reach its relay"),
        Some(Err(e)) => Err(e.into()),
        None => bail!("Docker does not tell how the probe ended"),
    }
}

async fn start(docker: &Docker, name: &str, body: ContainerCreateBody) -> Result<(), Error> {
    let options = CreateContainerOptionsBuilder::default().name(name).build();
    docker.create_container(Some(options), body).await?;
    docker.start_container(name, None::<StartContainerOptions>).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Compares the whole request to Docker for a relay. A lost, changed or added setting fails this test.
    #[test]
    fn the_relay_has_exactly_these_settings() {
        let machine = "01940000-0000-7000-8000-00000000000a".parse().unwrap();
        let (uid, gid) = job_user();
        let expected = json!({
            "Image": "sha256:1",
            "Entrypoint": ["/relay"],
            "Cmd": ["/door"],
            "User": format!("{uid}:{gid}"),
            "Labels": { "gpubnb.relay": "01940000-0000-7000-8000-00000000000a", "gpubnb.lease": "7" },
            "HostConfig": {
                "NetworkMode": "none",
                "ReadonlyRootfs": true,
                "CapDrop": ["ALL"],
                "SecurityOpt": ["no-new-privileges:true"],
                "Privileged": false,
                "PidsLimit": 300,
                "Memory": 128 << 20,
                "MemorySwap": 128 << 20,
                "IpcMode": "none",
                "Sysctls": { "net.ipv4.tcp_rmem": BUFFERS, "net.ipv4.tcp_wmem": BUFFERS },
                "Ulimits": [{ "Name": "nofile", "Soft": 1_024, "Hard": 1_024 }],
                "Mounts": [{ "Type": "bind", "Source": "/state/7/door", "Target": "/door", "ReadOnly": true }],
            },
        });
        let created = container(machine, Lease(Seq(7)), "sha256:1", Path::new("/state/7/door"));
        assert_eq!(serde_json::to_value(created).unwrap(), expected);
    }
}
