//! Work that reads and writes for long, beside the service: each on a thread of its own, so that nobody who asks waits for
//! it, and waited for at the end.

use tokio::{runtime::Handle, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Where such work runs.
#[derive(Clone)]
pub struct Background {
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Background {
    /// `tasks` are waited for; from `shutdown` on all work is cut off where it next waits.
    pub fn new(tasks: TaskTracker, shutdown: CancellationToken) -> Self {
        Self { tasks, shutdown }
    }

    /// Whether what runs is about to be cut off.
    pub fn stops(&self) -> bool {
        self.shutdown.is_cancelled()
    }

    /// Begins, within a runtime. `None`: it was cut off.
    pub fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<Option<T>> {
        let (runtime, shutdown) = (Handle::current(), self.shutdown.clone());
        self.tasks.spawn_blocking(move || runtime.block_on(shutdown.run_until_cancelled_owned(work)))
    }
}
