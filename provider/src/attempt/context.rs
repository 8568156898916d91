//! The context of an attempt: its job, lease and machine, the tools it works with, its container, and the state in
//! which it should be. Every step of an attempt gets this one value.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_nats::jetstream::Context;
use bollard::Docker;
use gpubnb_events::{JobId, Lease, MachineId, spec::Hardware};
use gpubnb_runtime::trace::About;
use tokio::sync::watch;
use tracing::Span;

use super::{
    container::Container,
    images::Images,
    output_volume::OutputVolumes,
    watch::{until, until_some},
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
    pub(crate) js: Context,
    pub(crate) platform: Platform,
    pub(crate) leases: Arc<LeaseTable>,
    /// The directory in which each attempt has its own.
    pub(crate) attempts_dir: PathBuf,
    pub(crate) hardware: Hardware,
    pub(crate) runtime: Option<String>,
    pub(crate) cdi: bool,
    pub(crate) max_log: u64,
    /// How long a job may take to end by itself when the owner needs the machine.
    pub(crate) reclaim_grace: Duration,
    pub(crate) output_volumes: OutputVolumes,
    pub(crate) http: reqwest::Client,
    pub(crate) identity: Arc<Identity>,
}

/// The context of an attempt.
pub(crate) struct AttemptContext {
    pub(super) tools: Arc<Tools>,
    pub(super) job: JobId,
    pub(super) lease: Lease,
    /// The attempt's container, whether or not it exists yet.
    pub(super) container: Container,
    desired: watch::Receiver<DesiredState>,
}

impl AttemptContext {
    pub(crate) fn new(tools: Arc<Tools>, job: JobId, lease: Lease, desired: watch::Receiver<DesiredState>) -> Self {
        let container = Container::new(tools.docker.clone(), tools.machine, lease);
        Self { tools, job, lease, container, desired }
    }

    /// The span that adds the job, the machine and the lease to every log line of the attempt.
    pub(crate) fn span(&self) -> Span {
        About { job: Some(self.job), machine: Some(self.tools.machine), lease: Some(self.lease) }.logged()
    }

    /// The attempt's directory.
    pub(super) fn directory(&self) -> PathBuf {
        self.tools.attempts_dir.join(self.lease.to_string())
    }

    /// The directory that is `/output` in the container.
    pub(super) fn output(&self) -> PathBuf {
        self.directory().join("output")
    }

    /// Returns once the lease is over, so that nothing that the attempt does counts any more.
    pub(super) async fn abandoned(&self) {
        until(&mut self.desired.clone(), |desired| *desired == DesiredState::Abandon).await;
    }

    /// Returns once the attempt is asked to stop. An abandoned attempt is not asked: whoever runs it drops it.
    pub(super) async fn stop_requested(&self) -> StopReason {
        let reason = |desired: &DesiredState| match desired {
            DesiredState::Stop(reason) => Some(*reason),
            DesiredState::Run | DesiredState::Abandon => None,
        };
        until_some(&mut self.desired.clone(), reason).await
    }
}
