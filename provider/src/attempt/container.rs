//! An attempt's container: one method for each request to Docker.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bollard::{
    Docker,
    container::LogOutput,
    errors::Error,
    models::{ContainerCreateBody, ContainerState, ContainerStateStatusEnum, ContainerWaitResponse},
    query_parameters::{
        AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, EventsOptionsBuilder, LogsOptionsBuilder,
        RemoveContainerOptionsBuilder, StartContainerOptions, StopContainerOptionsBuilder, WaitContainerOptions,
    },
};
use futures_util::{Stream, StreamExt as _};
use gpubnb_events::{Clock as _, Lease, MachineId, SystemClock, Timestamp, event::Reason};
use tokio::sync::Mutex;
use tracing::warn;

use super::Problem;
use crate::{docker::container_name, relay::relay_name};

/// Pause between two tries to stop a container.
const STOP_RETRY: Duration = Duration::from_secs(1);

/// A handle to a container of an attempt, which may not exist yet. Its name is computed from the machine and the lease.
pub(super) struct Container {
    docker: Docker,
    name: String,
    lease: Lease,
    /// Locked while Docker creates or removes the container.
    being_made: Arc<Mutex<()>>,
}

/// Docker's answer to the creation of a container.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CreateResult {
    /// The container was created, and has this id.
    New(String),
    /// A container with this name exists: a former run of the worker created it, and may have started it.
    Existed,
    /// Docker has no such image.
    NoImage,
}

impl Container {
    /// The container of the job.
    pub(super) fn of_job(docker: Docker, machine: MachineId, lease: Lease) -> Self {
        Self { docker, name: container_name(machine, lease), lease, being_made: Arc::default() }
    }

    /// The container of the relay, beside a job with a door.
    pub(super) fn of_relay(docker: Docker, machine: MachineId, lease: Lease) -> Self {
        Self { name: relay_name(machine, lease), ..Self::of_job(docker, machine, lease) }
    }

    /// The id of the image from which the container was created; `None` if the container does not exist.
    pub(super) async fn image(&self) -> Result<Option<String>, Problem> {
        match self.docker.inspect_container(&self.name, None).await {
            Ok(found) => Ok(Some(found.image.unwrap_or_default())),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            Err(e) => Err(Problem::of_docker(e)),
        }
    }

    /// Creates the container. If the caller is dropped, the request still runs to its end, and [`Container::remove`]
    /// waits for that. Otherwise Docker could create the container after its removal.
    pub(super) async fn create(&self, body: ContainerCreateBody) -> Result<CreateResult, Problem> {
        let options = CreateContainerOptionsBuilder::default().name(&self.name).build();
        let (docker, being_made) = (self.docker.clone(), self.being_made.clone().lock_owned().await);
        let creating = tokio::spawn(async move {
            let created = docker.create_container(Some(options), body).await;
            drop(being_made);
            created
        });
        match creating.await.map_err(|e| Problem::caused(Reason::Internal, e))? {
            Ok(created) => Ok(CreateResult::New(created.id)),
            Err(Error::DockerResponseServerError { status_code: 409, .. }) => Ok(CreateResult::Existed),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(CreateResult::NoImage),
            Err(e) => Err(Problem::of_docker(e)),
        }
    }

    /// Starts a container that was created and never started.
    pub(super) async fn start(&self) -> Result<(), Problem> {
        self.docker.start_container(&self.name, None::<StartContainerOptions>).await.map_err(Problem::of_docker)
    }

    /// Starts the container, unless a former run of the worker has started it. Returns true if this call started it.
    pub(super) async fn start_unless_started(&self) -> Result<bool, Problem> {
        let found = self.docker.inspect_container(&self.name, None).await.map_err(Problem::of_docker)?;
        let was_started = found.state.is_some_and(|s| s.status != Some(ContainerStateStatusEnum::CREATED));
        if was_started {
            return Ok(false);
        }
        self.start().await.map(|()| true)
    }

    /// The state of the container: Docker says whether it runs, and how it ended.
    pub(super) async fn state(&self) -> Result<ContainerState, Error> {
        Ok(self.docker.inspect_container(&self.name, None).await?.state.unwrap_or_default())
    }

    /// Returns true if the container does not run now. An error of Docker counts as running.
    pub(super) async fn has_ended(&self) -> bool {
        self.state().await.is_ok_and(|state| state.running == Some(false))
    }

    /// Returns true if Docker sent the container a signal since a time: because Docker is being stopped, or because
    /// somebody stopped the container (`docker stop`). Docker sends no signal to a program that exits by itself.
    pub(super) async fn was_signalled(&self, since: Timestamp) -> Result<bool, Error> {
        let filters = HashMap::from([("container", vec![self.name.as_str()]), ("event", vec!["kill"])]);
        let now = SystemClock.now().millis();
        let options = EventsOptionsBuilder::default()
            .since(&(since.millis() / 1_000).to_string())
            // Docker answers at once, because this moment is not in the future.
            .until(&format!("{}.{:03}000000", now / 1_000, now % 1_000))
            .filters(&filters)
            .build();
        Ok(self.docker.events(Some(options)).next().await.transpose()?.is_some())
    }

    /// The first line of the log, without its timestamp and at most 500 characters; empty if there is none.
    pub(super) async fn first_line(&self) -> Result<String, Error> {
        let first = Box::pin(self.log(false, false)).next().await.transpose()?;
        let text = first.map(|frame| frame.to_string()).unwrap_or_default();
        let line = text.lines().next().and_then(|line| line.split_once(' ')).map(|(_, line)| line);
        Ok(line.unwrap_or_default().chars().take(500).collect())
    }

    /// A stream of the bytes that the container writes from now on. The bytes of a line arrive before the line is
    /// finished. Read the stream without a pause: once a megabyte is unread, the job has to wait when it writes.
    pub(super) async fn attach(&self) -> Result<impl Stream<Item = Result<LogOutput, Error>> + use<>, Error> {
        let options = AttachContainerOptionsBuilder::default().stream(true).stdout(true).stderr(true).build();
        Ok(self.docker.attach_container(&self.name, Some(options)).await?.output)
    }

    /// Waits until the container has ended.
    pub(super) async fn wait(&self) -> Option<Result<ContainerWaitResponse, Error>> {
        self.docker.wait_container(&self.name, None::<WaitContainerOptions>).next().await
    }

    /// The log from its beginning. Each frame starts with Docker's timestamp. With `follow`, the stream goes on until
    /// the container ends. With `only_new`, the stream begins with what the job writes next.
    pub(super) fn log(&self, follow: bool, only_new: bool) -> impl Stream<Item = Result<LogOutput, Error>> + use<> {
        let options = LogsOptionsBuilder::default().follow(follow).stdout(true).stderr(true).timestamps(true);
        let options = if only_new { options.tail("0") } else { options };
        self.docker.logs(&self.name, Some(options.build()))
    }

    /// Stops the container: sends SIGTERM, and SIGKILL after the grace. Tries again while Docker does not answer. Drop
    /// the future to give up.
    pub(super) async fn stop(&self, grace: Duration) {
        let seconds = i32::try_from(grace.as_secs()).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::default().t(seconds).build();
        loop {
            match self.docker.stop_container(&self.name, Some(options.clone())).await {
                // 304: the container has already ended. 404: the container does not exist.
                Ok(()) | Err(Error::DockerResponseServerError { status_code: 304 | 404, .. }) => return,
                Err(e) => warn!(lease = self.lease.0.0, error = %e, "the container could not be stopped: trying again"),
            }
            tokio::time::sleep(STOP_RETRY).await;
        }
    }

    /// Removes the container, and kills the container first if it runs. Does nothing if the container does not exist.
    pub(super) async fn remove(&self) -> Result<(), Error> {
        let _being_removed = self.being_made.lock().await;
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        match self.docker.remove_container(&self.name, Some(options)).await {
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(()),
            removed => removed,
        }
    }
}
