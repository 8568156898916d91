//! An attempt's container: one method for each thing that Docker is asked about it.

use std::time::Duration;

use bollard::{
    Docker,
    container::LogOutput,
    errors::Error,
    models::{ContainerCreateBody, ContainerState, ContainerStateStatusEnum, ContainerWaitResponse},
    query_parameters::{
        CreateContainerOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions,
        StopContainerOptionsBuilder, WaitContainerOptions,
    },
};
use futures_util::{Stream, StreamExt as _};
use gpubnb_events::{Lease, MachineId};
use tracing::warn;

use super::Problem;
use crate::docker::container_name;

/// Pause before Docker is asked again to stop a container.
const STOP_RETRY: Duration = Duration::from_secs(1);

/// An attempt's container, whether or not it exists: its name follows from the lease.
pub(super) struct Container {
    docker: Docker,
    name: String,
    lease: Lease,
}

/// Docker's answer to the creation of a container.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Created {
    /// The container was made, and has this id.
    New(String),
    /// A former run of the worker made the container, and may have started it.
    Existed,
    /// Docker has no such image.
    NoImage,
}

impl Container {
    pub(super) fn new(docker: Docker, machine: MachineId, lease: Lease) -> Self {
        Self { docker, name: container_name(machine, lease), lease }
    }

    /// The id of the image that the container was made of; `None` where there is no container.
    pub(super) async fn image(&self) -> Result<Option<String>, Problem> {
        match self.docker.inspect_container(&self.name, None).await {
            Ok(found) => Ok(Some(found.image.unwrap_or_default())),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            Err(e) => Err(Problem::of_docker(e)),
        }
    }

    pub(super) async fn create(&self, body: ContainerCreateBody) -> Result<Created, Problem> {
        let options = CreateContainerOptionsBuilder::default().name(&self.name).build();
        match self.docker.create_container(Some(options), body).await {
            Ok(made) => Ok(Created::New(made.id)),
            Err(Error::DockerResponseServerError { status_code: 409, .. }) => Ok(Created::Existed),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(Created::NoImage),
            Err(e) => Err(Problem::of_docker(e)),
        }
    }

    /// Starts a container that was made a moment ago.
    pub(super) async fn start(&self) -> Result<(), Problem> {
        self.docker.start_container(&self.name, None::<StartContainerOptions>).await.map_err(Problem::of_docker)
    }

    /// Starts the container, unless a former run of the worker has started it.
    pub(super) async fn start_once(&self) -> Result<(), Problem> {
        let found = self.docker.inspect_container(&self.name, None).await.map_err(Problem::of_docker)?;
        let was_started = found.state.is_some_and(|s| s.status != Some(ContainerStateStatusEnum::CREATED));
        if was_started { Ok(()) } else { self.start().await }
    }

    /// Docker's word on how the container is, or how it ended.
    pub(super) async fn state(&self) -> Result<ContainerState, Error> {
        Ok(self.docker.inspect_container(&self.name, None).await?.state.unwrap_or_default())
    }

    /// Waits until the container has ended.
    pub(super) async fn wait(&self) -> Option<Result<ContainerWaitResponse, Error>> {
        self.docker.wait_container(&self.name, None::<WaitContainerOptions>).next().await
    }

    /// The log from its beginning, each frame with Docker's timestamp; with `follow`, also the lines still to come.
    pub(super) fn log(&self, follow: bool) -> impl Stream<Item = Result<LogOutput, Error>> + use<> {
        let options = LogsOptionsBuilder::default().follow(follow).stdout(true).stderr(true).timestamps(true).build();
        self.docker.logs(&self.name, Some(options))
    }

    /// Sends SIGTERM, and SIGKILL after the grace. Tries again while Docker is away; drop the future to give up.
    pub(super) async fn stop(&self, grace: Duration) {
        let seconds = i32::try_from(grace.as_secs()).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::default().t(seconds).build();
        loop {
            match self.docker.stop_container(&self.name, Some(options.clone())).await {
                // 304: the container has ended by itself.
                Ok(()) | Err(Error::DockerResponseServerError { status_code: 304 | 404, .. }) => return,
                Err(e) => warn!(lease = self.lease.0.0, error = %e, "the container is not stopped yet: trying again"),
            }
            tokio::time::sleep(STOP_RETRY).await;
        }
    }

    /// Removes the container, and ends it where it runs. Does nothing where there is none.
    pub(super) async fn remove(&self) -> Result<(), Error> {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        match self.docker.remove_container(&self.name, Some(options)).await {
            Ok(()) | Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(()),
            Err(e) => Err(e),
        }
    }
}
