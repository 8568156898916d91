//! The context of an attempt: its job, its lease, its container, its desired state, and the tools that all attempts on
//! this machine share. Every step of an attempt gets the context.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_nats::jetstream::Context;
use bollard::Docker;
use gpubnb_events::{JobId, Lease, MachineId, spec::Hardware};
use gpubnb_runtime::trace::SpanFields;
use tokio::sync::{Mutex, mpsc, watch};
use tracing::Span;

use super::{
    container::Container,
    dataset_cache::DatasetCache,
    door::{AttemptDoor, DoorRules},
    images::Images,
    job_disk::{JobDisk, JobDisks},
    watch::{wait_for_value, wait_until},
};
use crate::{
    desired_state::{DesiredState, StopReason},
    identity::Identity,
    lease_table::LeaseTable,
    platform::Platform,
};

/// The tools that all attempts on this machine share.
pub(crate) struct Tools {
    pub(crate) machine: MachineId,
    pub(crate) docker: Docker,
    pub(crate) images: Images,
    /// `JetStream`, the broker's API for streams.
    pub(crate) js: Context,
    pub(crate) platform: Platform,
    pub(crate) leases: Arc<LeaseTable>,
    /// The directory with one subdirectory per attempt, named by the lease.
    pub(crate) attempts_dir: PathBuf,
    pub(crate) hardware: Hardware,
    /// The container runtime for jobs; `None` for Docker's default.
    pub(crate) runtime: Option<String>,
    /// True if jobs get GPUs by the Container Device Interface, and not by NVIDIA's runtime.
    pub(crate) cdi: bool,
    /// Largest log of a job, bytes.
    pub(crate) max_log: u64,
    /// Time between SIGTERM and SIGKILL for a job that is stopped because the owner needs the machine.
    pub(crate) reclaim_grace: Duration,
    pub(crate) job_disks: JobDisks,
    pub(crate) datasets: DatasetCache,
    pub(crate) door_rules: DoorRules,
    pub(crate) http: reqwest::Client,
    pub(crate) identity: Arc<Identity>,
}

/// Lines that the worker itself adds to the job's log.
pub(super) struct Notes {
    sender: mpsc::Sender<String>,
    /// The task that forwards the log takes the lines.
    pub(super) receiver: Mutex<mpsc::Receiver<String>>,
}

/// Most lines that wait for the next chunk of the log.
const MAX_WAITING_NOTES: usize = 64;

impl Default for Notes {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(MAX_WAITING_NOTES);
        Self { sender, receiver: Mutex::new(receiver) }
    }
}

impl Notes {
    pub(super) fn sender(&self) -> mpsc::Sender<String> {
        self.sender.clone()
    }
}

/// The context of an attempt.
pub(crate) struct AttemptContext {
    pub(super) tools: Arc<Tools>,
    pub(super) job: JobId,
    pub(super) lease: Lease,
    /// The attempt's container. It may not exist yet.
    pub(super) container: Container,
    /// The container of the relay. It exists if the job asks for hosts of the internet.
    pub(super) relay: Container,
    /// The job's way to the internet, once it is open. It is closed with the context.
    pub(super) door: OnceLock<AttemptDoor>,
    pub(super) notes: Notes,
    desired: watch::Receiver<DesiredState>,
}

impl AttemptContext {
    pub(crate) fn new(tools: Arc<Tools>, job: JobId, lease: Lease, desired: watch::Receiver<DesiredState>) -> Self {
        let container = Container::of_job(tools.docker.clone(), tools.machine, lease);
        let relay = Container::of_relay(tools.docker.clone(), tools.machine, lease);
        let (door, notes) = (OnceLock::new(), Notes::default());
        Self { tools, job, lease, container, relay, door, notes, desired }
    }

    /// The tracing span that adds the job, the machine and the lease to every line of the worker's log.
    pub(crate) fn span(&self) -> Span {
        SpanFields { job: Some(self.job), machine: Some(self.tools.machine), lease: Some(self.lease) }.log_span()
    }

    /// The attempt's directory.
    pub(super) fn directory(&self) -> PathBuf {
        self.tools.attempts_dir.join(self.lease.to_string())
    }

    /// The disk of the job.
    pub(super) fn disk(&self) -> JobDisk {
        JobDisk::of(&self.directory())
    }

    /// Returns when the desired state is `Abandon`: the lease is over, and the market ignores the attempt.
    pub(super) async fn abandoned(&self) {
        wait_until(&mut self.desired.clone(), |desired| *desired == DesiredState::Abandon).await;
    }

    /// Returns when the desired state is `Stop`. Never returns for `Abandon`: `carry_out` then drops the whole attempt.
    pub(super) async fn stop_requested(&self) -> StopReason {
        let reason = |desired: &DesiredState| match desired {
            DesiredState::Stop(reason) => Some(*reason),
            DesiredState::Run | DesiredState::Abandon => None,
        };
        wait_for_value(&mut self.desired.clone(), reason).await
    }
}
