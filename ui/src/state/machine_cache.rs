//! A cache of all machines of the market. It is filled at the start and updated by change notices (see `changes.rs`).
//! Market pages are rendered from the cache, so open pages cause no queries.

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

/// The time between two readings of all machines. Such a reading corrects the cache after a lost notice.
const READ_ALL_EVERY: Duration = Duration::from_secs(60);
/// The maximum number of waiting requests to read a single machine.
const MAX_REQUESTS: usize = 4_096;
/// The pause after a failed reading.
const RETRY: Duration = Duration::from_millis(500);

type Machines = BTreeMap<MachineId, Arc<MachineView>>;

/// The cache. Clones share the machines.
#[derive(Clone)]
pub(crate) struct MachineCache {
    machines: Arc<RwLock<Machines>>,
    /// True after the first reading of all machines.
    is_filled: watch::Sender<bool>,
    /// Requests to read a machine whose change notice did not carry the new state. The sequence is that of the change.
    refresh_sender: mpsc::Sender<(MachineId, Seq)>,
    refresh_receiver: Arc<Mutex<mpsc::Receiver<(MachineId, Seq)>>>,
}

impl MachineCache {
    pub(crate) fn new() -> Self {
        let (refresh_sender, receiver) = mpsc::channel(MAX_REQUESTS);
        let refresh_receiver = Arc::new(Mutex::new(receiver));
        Self { machines: Arc::default(), is_filled: watch::Sender::new(false), refresh_sender, refresh_receiver }
    }

    /// Requests that a changed machine is read again. If too many requests wait, the machine is read at the next
    /// reading of all machines.
    pub(super) fn request_refresh(&self, machine: MachineId, seq: Seq) {
        if self.refresh_sender.try_send((machine, seq)).is_err() {
            debug!(%machine, "too many refresh requests: the machine is read at the next reading of all machines");
        }
    }

    /// Stores the new state of a machine, unless the cache has a newer one.
    pub(super) fn put(&self, view: MachineView) {
        let mut machines = self.machines.write().unwrap_or_else(PoisonError::into_inner);
        put(&mut machines, view);
    }

    /// All machines that are not delisted. Waits until the cache has been filled.
    pub(crate) async fn machines(&self) -> Vec<Arc<MachineView>> {
        // Waiting fails only if the sender was dropped, and `self` owns the sender.
        drop(self.is_filled.subscribe().wait_for(|is_filled| *is_filled).await);
        let machines = self.machines.read().unwrap_or_else(PoisonError::into_inner);
        machines.values().filter(|m| m.listed.wanted != MachineState::Delisted).cloned().collect()
    }

    /// A machine, if it is in the cache.
    pub(crate) fn machine(&self, id: MachineId) -> Option<Arc<MachineView>> {
        self.machines.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Fills the cache and updates it until shutdown.
    pub(crate) async fn run(self, queries: QueryClient, shutdown: CancellationToken) {
        loop {
            let pause = match queries.machines(Actor::Platform, Seq::ZERO).await {
                Ok(read) => {
                    self.fill(read);
                    READ_ALL_EVERY
                }
                Err(e) => {
                    warn!(error = %e, "the machines cannot be read; trying again");
                    RETRY
                }
            };
            let serve_requests = self.read_requested(&queries);
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = serve_requests => {}
            }
        }
    }

    /// Reads the requested machines, one after the other.
    async fn read_requested(&self, queries: &QueryClient) {
        let mut requests = self.refresh_receiver.lock().await;
        while let Some((machine, seq)) = requests.recv().await {
            // After a failure the machine is read at the next reading of all machines.
            if let Ok(view) = queries.machine(Actor::Platform, machine, seq).await {
                self.put(view);
            }
        }
    }

    /// Replaces the machines by the result of a query, but keeps those of which the cache has a newer state.
    fn fill(&self, read: Vec<MachineView>) {
        let mut machines = self.machines.write().unwrap_or_else(PoisonError::into_inner);
        let previous = std::mem::take(&mut *machines);
        let newest = read.iter().map(|view| view.listed.seq).max().unwrap_or(Seq::ZERO);
        for view in read {
            machines.insert(view.listed.machine, Arc::new(view));
        }
        // A notice may have updated or added a machine during the query. A machine that the answer does not contain is
        // kept only if its state is newer than the whole answer. Otherwise the machine has left the market.
        for (id, view) in previous {
            if view.listed.seq > machines.get(&id).map_or(newest, |read| read.listed.seq) {
                machines.insert(id, view);
            }
        }
        drop(machines);
        self.is_filled.send_replace(true);
    }
}

fn put(machines: &mut Machines, view: MachineView) {
    let known = machines.get(&view.listed.machine);
    if known.is_none_or(|known| known.listed.seq <= view.listed.seq) {
        machines.insert(view.listed.machine, Arc::new(view));
    }
}
