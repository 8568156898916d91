//! The state in which an attempt should be, and why an attempt is asked to stop.
//!
//! Three parties ask: the platform (the consumer cancelled, or the lease is over), the owner (the machine is needed),
//! and the worker's own watch over the GPUs.

use gpubnb_events::command::DesiredLease;

/// The state in which an attempt should be. The order is the strength: a stronger request replaces a weaker one, and no
/// request is taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum DesiredState {
    /// Run on.
    Run,
    /// Stop and report how the attempt ended.
    Stop(StopReason),
    /// Stop and report nothing: the lease is over, and nothing that the attempt still does counts.
    Abandon,
}

/// Why an attempt is asked to stop. The order is the strength: a lost GPU explains more than a cancelled job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum StopReason {
    /// The consumer cancelled the job.
    Cancelled,
    /// The owner needs the machine.
    Preempted,
    /// A GPU of the attempt failed.
    GpuLost,
}

impl From<DesiredLease> for DesiredState {
    fn from(desired: DesiredLease) -> Self {
        match desired {
            DesiredLease::Keep => Self::Run,
            DesiredLease::Cancel => Self::Stop(StopReason::Cancelled),
            DesiredLease::Abandon => Self::Abandon,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_is_stronger_than_the_one_before() {
        let ascending = [
            DesiredState::Run,
            DesiredState::Stop(StopReason::Cancelled),
            DesiredState::Stop(StopReason::Preempted),
            DesiredState::Stop(StopReason::GpuLost),
            DesiredState::Abandon,
        ];
        assert!(ascending.is_sorted_by(|weaker, stronger| weaker < stronger));
    }
}
