//! Functions that wait for a value of a watch channel, and the signals between the tasks that watch a container, that
//! show its unfinished lines, and that forward its log.

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

/// The signals between the tasks that watch a container, that show its unfinished lines, and that forward its log. The
/// tasks run at the same time. The log may take longer than the container, because it can be forwarded only while the
/// broker answers.
pub(super) struct RunSignals {
    container_ended: watch::Sender<bool>,
    log_flooded: watch::Sender<bool>,
    has_written: watch::Sender<bool>,
}

impl RunSignals {
    /// The signals of a container that runs. `has_written` is true if it may have written something already.
    pub(super) fn running(has_written: bool) -> Self {
        Self {
            container_ended: watch::Sender::new(false),
            log_flooded: watch::Sender::new(false),
            has_written: watch::Sender::new(has_written),
        }
    }

    /// The signals of a container that has ended, whose log is still to be forwarded.
    pub(super) fn ended() -> Self {
        let signals = Self::running(true);
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

    /// Signals that the container wrote something, or may have written something that the worker did not see.
    pub(super) fn set_written(&self) {
        self.has_written.send_replace(true);
    }

    /// A receiver that becomes true when the container may have written something.
    pub(super) fn has_written(&self) -> watch::Receiver<bool> {
        self.has_written.subscribe()
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
        assert!(!*RunSignals::running(false).container_ended().borrow());
        assert!(*RunSignals::ended().container_ended().borrow());
        assert!(!*RunSignals::ended().log_flooded().borrow());
    }
}
