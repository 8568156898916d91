//! Long work that reads and writes much. Each piece of work has a thread of its own, so that queries do not wait for
//! it. A shutdown waits for the threads.

use tokio::{runtime::Handle, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The place where such work runs. Clones share it.
#[derive(Clone)]
pub struct Background {
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Background {
    /// The work is spawned on `tasks`. Once `shutdown` is cancelled, work is cut off at its next await.
    pub fn new(tasks: TaskTracker, shutdown: CancellationToken) -> Self {
        Self { tasks, shutdown }
    }

    /// True if running work is about to be cut off.
    pub fn stops(&self) -> bool {
        self.shutdown.is_cancelled()
    }

    /// Starts work, within a runtime. The result is `None` where the work was cut off.
    pub fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<Option<T>> {
        let (runtime, shutdown) = (Handle::current(), self.shutdown.clone());
        self.tasks.spawn_blocking(move || runtime.block_on(shutdown.run_until_cancelled_owned(work)))
    }
}
