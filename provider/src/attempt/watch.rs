//! Waiting until a watched value is as wanted, and the two signals between a running container and the forwarding of
//! its log.

use tokio::sync::watch;

/// Returns once the value is as wanted. Never returns where the value is not as wanted and its sender is gone.
pub(super) async fn until<T>(value: &mut watch::Receiver<T>, is_wanted: impl FnMut(&T) -> bool) {
    let seen = value.wait_for(is_wanted).await.is_ok();
    if !seen {
        std::future::pending::<()>().await;
    }
}

/// Returns what `pick` finds in the value, once it finds something. Never returns where it does not, and the value's
/// sender is gone.
pub(super) async fn until_some<T, R>(value: &mut watch::Receiver<T>, mut pick: impl FnMut(&T) -> Option<R>) -> R {
    loop {
        if let Some(found) = pick(&value.borrow_and_update()) {
            return found;
        }
        if value.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The watch over a container and the forwarding of its log run side by side: the log may take longer, since it can
/// only be forwarded while the broker is there. These signals are all that the two tell each other.
pub(super) struct RunSignals {
    container_ended: watch::Sender<bool>,
    log_flooded: watch::Sender<bool>,
}

impl RunSignals {
    /// The signals of a container that runs.
    pub(super) fn running() -> Self {
        Self { container_ended: watch::Sender::new(false), log_flooded: watch::Sender::new(false) }
    }

    /// The signals of a container that has ended, and has only its log left.
    pub(super) fn ended() -> Self {
        let signals = Self::running();
        signals.set_container_ended();
        signals
    }

    /// The container has ended: its log grows no more.
    pub(super) fn set_container_ended(&self) {
        self.container_ended.send_replace(true);
    }

    /// The job writes too much log, or too fast.
    pub(super) fn set_log_flooded(&self) {
        self.log_flooded.send_replace(true);
    }

    /// Becomes true when the container has ended.
    pub(super) fn container_ended(&self) -> watch::Receiver<bool> {
        self.container_ended.subscribe()
    }

    /// Becomes true when the job writes too much log.
    pub(super) fn log_flooded(&self) -> watch::Receiver<bool> {
        self.log_flooded.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Duration, timeout};

    #[tokio::test]
    async fn a_value_that_nobody_can_change_any_more_is_waited_for_without_end() {
        let (sender, mut receiver) = watch::channel(1_u32);
        until(&mut receiver, |value| *value == 1).await;
        assert_eq!(until_some(&mut receiver, |value| value.checked_add(1)).await, 2);
        drop(sender);
        assert!(timeout(Duration::from_millis(10), until(&mut receiver, |value| *value == 2)).await.is_err());
        assert!(timeout(Duration::from_millis(10), until_some(&mut receiver, |_| None::<()>)).await.is_err());
    }

    #[test]
    fn only_an_ended_container_begins_with_its_signal_set() {
        assert!(!*RunSignals::running().container_ended().borrow());
        assert!(*RunSignals::ended().container_ended().borrow());
        assert!(!*RunSignals::ended().log_flooded().borrow());
    }
}
