//! Runs long tasks in the background. Each task has its own thread, so that queries do not wait for the task. A
//! shutdown waits for the threads.

use tokio::{runtime::Handle, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Starts and stops background tasks. Clones share the tasks.
#[derive(Clone)]
pub struct Background {
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Background {
    /// Tracks the tasks in `tasks`. When `shutdown` is cancelled, each task ends at its next await.
    pub fn new(tasks: TaskTracker, shutdown: CancellationToken) -> Self {
        Self { tasks, shutdown }
    }

    /// True if the process is shutting down.
    pub fn is_stopping(&self) -> bool {
        self.shutdown.is_cancelled()
    }

    /// Starts a task. Must be called within a Tokio runtime. The result is `None` if a shutdown interrupted the task.
    pub fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<Option<T>> {
        let (runtime, shutdown) = (Handle::current(), self.shutdown.clone());
        self.tasks.spawn_blocking(move || runtime.block_on(shutdown.run_until_cancelled_owned(work)))
    }
}
