//! The machines of the market, in memory: filled once, kept up by what notices carry. Market pages are made from it,
//! however many are open, without asking anybody.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use gpubnb_events::{Actor, MachineId, Seq};
use gpubnb_query::{
    QueryClient,
    view::{MachineState, MachineView},
};
use tokio::sync::{Mutex, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// How often all is read anew, so that what a notice missed heals.
const ANEW: Duration = Duration::from_secs(60);
/// Machines that wait to be read one by one.
const MOST_ASKED: usize = 4_096;
/// Pause after a failure.
const RETRY: Duration = Duration::from_millis(500);

type Machines = BTreeMap<MachineId, Arc<MachineView>>;

/// The board. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Board {
    machines: Arc<RwLock<Machines>>,
    filled: watch::Sender<bool>,
    /// Machines that changed, of which a notice did not tell.
    asked: mpsc::Sender<(MachineId, Seq)>,
    asking: Arc<Mutex<mpsc::Receiver<(MachineId, Seq)>>>,
}

impl Board {
    pub(crate) fn new() -> Self {
        let (asked, asking) = mpsc::channel(MOST_ASKED);
        let asking = Arc::new(Mutex::new(asking));
        Self { machines: Arc::default(), filled: watch::Sender::new(false), asked, asking }
    }

    /// Has a machine read that changed. Where too many did, all are read soon in any case.
    pub(super) fn ask(&self, machine: MachineId, seq: Seq) {
        if self.asked.try_send((machine, seq)).is_err() {
            debug!(%machine, "read with all the others");
        }
    }

    /// Takes in a machine, unless it is older than what is known.
    pub(super) fn put(&self, view: MachineView) {
        let mut machines = self.machines.write().unwrap_or_else(PoisonError::into_inner);
        put(&mut machines, view);
    }

    /// Every machine that is not delisted. Waits for the first filling.
    pub(crate) async fn machines(&self) -> Vec<Arc<MachineView>> {
        // It fails only where the sender is gone, which is here.
        drop(self.filled.subscribe().wait_for(|filled| *filled).await);
        let machines = self.machines.read().unwrap_or_else(PoisonError::into_inner);
        machines.values().filter(|m| m.listed.wanted != MachineState::Delisted).cloned().collect()
    }

    /// One machine, if it is known here.
    pub(crate) fn machine(&self, id: MachineId) -> Option<Arc<MachineView>> {
        self.machines.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Reads all of them now and then, until shutdown.
    pub(crate) async fn keep(self, queries: QueryClient, shutdown: CancellationToken) {
        loop {
            let pause = match queries.machines(Actor::Platform, Seq::ZERO).await {
                Ok(read) => {
                    self.fill(read);
                    ANEW
                }
                Err(e) => {
                    warn!(error = %e, "the market cannot be read; trying again");
                    RETRY
                }
            };
            let answering = self.answer(&queries);
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = answering => {}
            }
        }
    }

    /// Reads the machines that are asked for, one after the other.
    async fn answer(&self, queries: &QueryClient) {
        let mut asking = self.asking.lock().await;
        while let Some((machine, seq)) = asking.recv().await {
            // One that cannot be read now comes with all the others.
            if let Ok(view) = queries.machine(Actor::Platform, machine, seq).await {
                self.put(view);
            }
        }
    }

    fn fill(&self, read: Vec<MachineView>) {
        let mut machines = self.machines.write().unwrap_or_else(PoisonError::into_inner);
        let known = std::mem::take(&mut *machines);
        for view in read {
            machines.insert(view.listed.machine, Arc::new(view));
        }
        // What a notice told meanwhile is newer than what was read.
        for (id, view) in known {
            if machines.get(&id).is_some_and(|read| read.listed.seq < view.listed.seq) {
                machines.insert(id, view);
            }
        }
        drop(machines);
        self.filled.send_replace(true);
    }
}

fn put(machines: &mut Machines, view: MachineView) {
    let known = machines.get(&view.listed.machine);
    if known.is_none_or(|known| known.listed.seq <= view.listed.seq) {
        machines.insert(view.listed.machine, Arc::new(view));
    }
}
