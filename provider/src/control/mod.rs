//! The questions and orders of the owner to the running worker: the commands of `gpubnb-provider` through the control
//! socket, and the page of the worker in the owner's browser.

mod socket;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Context as _;
use async_nats::Client;
use gpubnb_events::{
    MachineId, Timestamp,
    command::{ChangeMachine, DayEarnings, Done, MachineChange},
    event::Check,
    telemetry::{GpuReading, WorkerState},
};
use gpubnb_runtime::{nats::is_connected, rpc::RpcError};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) use self::socket::{ControlServer, send_request};
use crate::{
    gpu::Gpus,
    lease_table::{AttemptStatus, LeaseTable},
    owner::{Pause, PauseSwitch, ReclaimReason},
    platform::Platform,
    settings::Settings,
};

/// A request to the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ControlRequest {
    /// Answer with the worker's status.
    Status,
    /// Take no new jobs, until the owner says otherwise.
    Pause,
    /// Take no new jobs for a time, or give the machine back to its owner at once.
    PauseFor(Pause),
    /// Take jobs again.
    Resume,
    /// Take no new jobs, and finish the running jobs.
    Drain,
    /// Stop the worker. Running jobs go on.
    Stop,
    /// Open the page of the worker for the browser of this user of the operating system (a uid).
    Open(u32),
}

/// The worker's answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ControlAnswer {
    /// The answer to a request for the status.
    Status(Box<Status>),
    /// The request was carried out.
    Done,
    /// The answer to a request for the page: a link that works once.
    Page(String),
    /// The request failed, with a text for people.
    Problem(String),
}

/// The status of a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) machine: MachineId,
    pub(crate) name: String,
    pub(crate) market: String,
    pub(crate) version: String,
    pub(crate) pid: u32,
    /// When the worker started.
    pub(crate) since: Timestamp,
    pub(crate) state: WorkerState,
    /// The reason for which the owner's rules or a pause on this machine forbid jobs now, for people; `None` if they
    /// allow jobs. A pause that the market keeps is not among them.
    pub(crate) why: Option<String>,
    /// True while the worker is connected to the broker.
    pub(crate) connected: bool,
    /// Most jobs that run at the same time.
    pub(crate) slots: u32,
    pub(crate) jobs: Vec<AttemptStatus>,
    pub(crate) gpus: Vec<GpuReading>,
}

/// The running worker, as its owner sees and controls it.
pub(crate) struct WorkerControl {
    pub(crate) name: String,
    pub(crate) market: String,
    pub(crate) settings: Settings,
    pub(crate) since: Timestamp,
    pub(crate) client: Client,
    pub(crate) platform: Platform,
    pub(crate) leases: Arc<LeaseTable>,
    pub(crate) gpus: Arc<Gpus>,
    pub(crate) reclaimed: watch::Receiver<Option<ReclaimReason>>,
    pub(crate) availability: Arc<Availability>,
    pub(crate) pause: PauseSwitch,
    /// The results of the self-test at the worker's start.
    pub(crate) checks: Vec<Check>,
    /// The worker's directory.
    pub(crate) state: PathBuf,
    pub(crate) shutdown: CancellationToken,
}

/// The state of the machine on the market: takes jobs, paused or draining. The market sends the state with each answer
/// to the list of attempts (`sync.rs`). A command of the owner changes the state at once.
#[derive(Debug)]
pub(crate) struct Availability {
    takes_jobs: AtomicBool,
    is_draining: AtomicBool,
}

impl Default for Availability {
    fn default() -> Self {
        Self { takes_jobs: AtomicBool::new(true), is_draining: AtomicBool::new(false) }
    }
}

impl Availability {
    /// Sets the state to the market's answer.
    pub(crate) fn set_takes_jobs(&self, takes_jobs: bool) {
        self.takes_jobs.store(takes_jobs, Ordering::Relaxed);
        if takes_jobs {
            self.is_draining.store(false, Ordering::Relaxed);
        }
    }

    /// Sets the state after the owner asked for a change and the market accepted it.
    fn apply_change(&self, change: &MachineChange) {
        self.takes_jobs.store(*change == MachineChange::Resume, Ordering::Relaxed);
        let is_draining = matches!(change, MachineChange::Drain | MachineChange::Maintain);
        self.is_draining.store(is_draining, Ordering::Relaxed);
    }

    /// The state for heartbeats. `is_reclaimed` is true while the owner needs the machine.
    pub(crate) fn state(&self, is_reclaimed: bool) -> WorkerState {
        match (self.takes_jobs.load(Ordering::Relaxed), self.is_draining.load(Ordering::Relaxed)) {
            (true, _) if !is_reclaimed => WorkerState::Ready,
            (false, true) => WorkerState::Draining,
            _ => WorkerState::Paused,
        }
    }
}

impl WorkerControl {
    pub(crate) fn status(&self) -> Status {
        // The pause as it is now: the rules are checked a moment after each change.
        let rule = self.reclaimed.borrow().clone().filter(|reason| !matches!(reason, ReclaimReason::Paused(_)));
        let reclaimed = self.pause.current().map(ReclaimReason::Paused).or(rule);
        let jobs = self.leases.statuses();
        Status {
            machine: self.platform.machine(),
            name: self.name.clone(),
            market: self.market.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            since: self.since,
            state: self.availability.state(reclaimed.is_some()),
            why: reclaimed.map(|reason| reason.to_string()),
            connected: is_connected(&self.client),
            slots: self.settings.offer().slots,
            gpus: self.gpus.shown_readings(!jobs.is_empty()),
            jobs,
        }
    }

    /// Asks the market for a change of this machine.
    pub(crate) async fn change(&self, change: MachineChange) -> anyhow::Result<()> {
        let command = ChangeMachine { machine: self.platform.machine(), change };
        self.platform.call::<Done>("wish", &command).await?;
        self.availability.apply_change(&command.change);
        Ok(())
    }

    /// Pauses the machine, even while the market is away.
    pub(crate) fn pause_for(&self, pause: Pause) -> anyhow::Result<()> {
        self.pause.set(Some(pause)).context("the pause cannot be written to the worker's directory")
    }

    /// Ends every pause: the one that this worker keeps, and the one that the market keeps.
    pub(crate) async fn resume(&self) -> anyhow::Result<()> {
        self.change(MachineChange::Resume).await?;
        self.pause.set(None).context("the worker's directory cannot be written")
    }

    /// The machine's earnings of the last days with a settlement, newest first.
    pub(crate) async fn earnings(&self) -> Result<Vec<DayEarnings>, RpcError> {
        self.platform.ask("days").await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_ready_only_if_the_market_the_owner_and_the_rules_allow_it() {
        let availability = Availability::default();
        assert_eq!(availability.state(false), WorkerState::Ready);
        assert_eq!(availability.state(true), WorkerState::Paused, "the owner uses the machine");
        availability.apply_change(&MachineChange::Drain);
        assert_eq!(availability.state(false), WorkerState::Draining);
        availability.set_takes_jobs(false);
        assert_eq!(availability.state(true), WorkerState::Draining, "the market does not say why it gives no jobs");
        availability.apply_change(&MachineChange::Pause);
        assert_eq!(availability.state(false), WorkerState::Paused);
        availability.set_takes_jobs(true);
        assert_eq!(availability.state(false), WorkerState::Ready);
    }
}
