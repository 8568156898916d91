//! The machines of the market, in memory. The cache is filled once and kept up to date by change notices. Pages of the
//! market are rendered from it, so that open pages cost no queries, however many they are.

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

/// How often all machines are read again, which repairs the cache after a lost notice.
const REFRESH: Duration = Duration::from_secs(60);
/// Most machines that wait to be read one by one.
const MOST_ASKED: usize = 4_096;
/// The pause after a failure.
const RETRY: Duration = Duration::from_millis(500);

type Machines = BTreeMap<MachineId, Arc<MachineView>>;

/// The cache. Cheap to clone.
#[derive(Clone)]
pub(crate) struct MachineCache {
    machines: Arc<RwLock<Machines>>,
    filled: watch::Sender<bool>,
    /// Machines that changed, and whose notice did not carry the new state.
    asked: mpsc::Sender<(MachineId, Seq)>,
    asking: Arc<Mutex<mpsc::Receiver<(MachineId, Seq)>>>,
}

impl MachineCache {
    pub(crate) fn new() -> Self {
        let (asked, asking) = mpsc::channel(MOST_ASKED);
        let asking = Arc::new(Mutex::new(asking));
        Self { machines: Arc::default(), filled: watch::Sender::new(false), asked, asking }
    }

    /// Asks for a machine to be read again because it changed. If too many wait, it is read with all the others.
    pub(super) fn ask(&self, machine: MachineId, seq: Seq) {
        if self.asked.try_send((machine, seq)).is_err() {
            debug!(%machine, "the queue is full: the machine is read with all the others");
        }
    }

    /// Stores the new state of a machine, unless the cache has a newer one.
    pub(super) fn put(&self, view: MachineView) {
        let mut machines = self.machines.write().unwrap_or_else(PoisonError::into_inner);
        put(&mut machines, view);
    }

    /// Every machine that is not delisted. Waits until the cache is filled for the first time.
    pub(crate) async fn machines(&self) -> Vec<Arc<MachineView>> {
        // Waiting fails only when the sender is gone, and `self` holds the sender.
        drop(self.filled.subscribe().wait_for(|filled| *filled).await);
        let machines = self.machines.read().unwrap_or_else(PoisonError::into_inner);
        machines.values().filter(|m| m.listed.wanted != MachineState::Delisted).cloned().collect()
    }

    /// One machine, if it is in the cache.
    pub(crate) fn machine(&self, id: MachineId) -> Option<Arc<MachineView>> {
        self.machines.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Keeps the cache filled and up to date until shutdown.
    pub(crate) async fn keep(self, queries: QueryClient, shutdown: CancellationToken) {
        loop {
            let pause = match queries.machines(Actor::Platform, Seq::ZERO).await {
                Ok(read) => {
                    self.fill(read);
                    REFRESH
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

    /// Reads the machines that were asked for, one after the other.
    async fn answer(&self, queries: &QueryClient) {
        let mut asking = self.asking.lock().await;
        while let Some((machine, seq)) = asking.recv().await {
            // A machine that cannot be read now is read later with all the others.
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
        // A notice that came during the query carries a newer state than the query's answer.
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
