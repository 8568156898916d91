//! Functions that wait for a value of a watch channel, and the two signals between the task that watches a container
//! and the task that forwards its log.

use tokio::sync::watch;

/// Returns when `is_wanted` is true for the value. Never returns if the sender is dropped before `is_wanted` is true.
pub(super) async fn wait_until<T>(value: &mut watch::Receiver<T>, is_wanted: impl FnMut(&T) -> bool) {
    let is_reached = value.wait_for(is_wanted).await.is_ok();
    if !is_reached {
        std::future::pending::<()>().await;
    }
}

/// Returns the first `Some` that `pick` returns for the value. Never returns if the sender is dropped before `pick`
/// returns `Some`.
pub(super) async fn wait_for_value<T, R>(value: &mut watch::Receiver<T>, mut pick: impl FnMut(&T) -> Option<R>) -> R {
    loop {
        if let Some(found) = pick(&value.borrow_and_update()) {
            return found;
        }
        if value.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The signals between the task that watches a container and the task that forwards its log. The two tasks run at the
/// same time. The log may take longer than the container, because it can be forwarded only while the broker answers.
pub(super) struct RunSignals {
    container_ended: watch::Sender<bool>,
    log_flooded: watch::Sender<bool>,
}

impl RunSignals {
    /// The signals of a container that runs.
    pub(super) fn running() -> Self {
        Self { container_ended: watch::Sender::new(false), log_flooded: watch::Sender::new(false) }
    }

    /// The signals of a container that has ended, whose log is still to be forwarded.
    pub(super) fn ended() -> Self {
        let signals = Self::running();
        signals.set_container_ended();
        signals
    }

    /// Signals that the container has ended, so that its log is complete.
    pub(super) fn set_container_ended(&self) {
        self.container_ended.send_replace(true);
    }

    /// Signals that the job writes its log too fast. A log that is only too long is cut, and sets no signal.
    pub(super) fn set_log_flooded(&self) {
        self.log_flooded.send_replace(true);
    }

    /// A receiver that becomes true when the container has ended.
    pub(super) fn container_ended(&self) -> watch::Receiver<bool> {
        self.container_ended.subscribe()
    }

    /// A receiver that becomes true when the job writes its log too fast.
    pub(super) fn log_flooded(&self) -> watch::Receiver<bool> {
        self.log_flooded.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Duration, timeout};

    #[tokio::test]
    async fn a_wait_never_ends_if_the_sender_is_dropped() {
        let (sender, mut receiver) = watch::channel(1_u32);
        wait_until(&mut receiver, |value| *value == 1).await;
        assert_eq!(wait_for_value(&mut receiver, |value| value.checked_add(1)).await, 2);
        drop(sender);
        assert!(timeout(Duration::from_millis(10), wait_until(&mut receiver, |value| *value == 2)).await.is_err());
        assert!(timeout(Duration::from_millis(10), wait_for_value(&mut receiver, |_| None::<()>)).await.is_err());
    }

    #[test]
    fn only_an_ended_container_begins_with_its_signal_set() {
        assert!(!*RunSignals::running().container_ended().borrow());
        assert!(*RunSignals::ended().container_ended().borrow());
        assert!(!*RunSignals::ended().log_flooded().borrow());
    }
}
