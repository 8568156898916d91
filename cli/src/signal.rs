//! The signals that ask this process to stop: Ctrl-C (SIGINT) and SIGTERM, which `timeout` and service managers send.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Receives the signals from its creation on.
pub(crate) struct StopSignal {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignal {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Returns when a signal has arrived.
    pub(crate) async fn received(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
