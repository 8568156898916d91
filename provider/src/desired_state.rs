//! The desired state of an attempt: run, stop or abandon. The attempt watches its desired state, and stops unless the
//! state is `Run`.
//!
//! Three parties set the desired state: the platform (the consumer cancelled, or the lease is over), the owner (the
//! machine is needed), and the worker's own check of the GPUs. [`DesiredLeaseState`] is the platform's part.

use gpubnb_events::command::DesiredLeaseState;

/// The desired state of an attempt. The variants are ordered by strength. A stronger request replaces a weaker request:
/// `Abandon` replaces `Stop`. A weaker request changes nothing, so an attempt never goes back to `Run`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum DesiredState {
    /// Go on.
    Run,
    /// Stop, and report how the attempt ended.
    Stop(StopReason),
    /// Stop, and report nothing: the lease is over, and the market ignores the attempt.
    Abandon,
}

/// The reason to stop an attempt. The variants are ordered by strength: a lost GPU replaces a cancellation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum StopReason {
    /// The consumer cancelled the job.
    Cancelled,
    /// The owner needs the machine.
    Preempted,
    /// A GPU of the attempt failed.
    GpuLost,
}

impl From<DesiredLeaseState> for DesiredState {
    fn from(desired: DesiredLeaseState) -> Self {
        match desired {
            DesiredLeaseState::Keep => Self::Run,
            DesiredLeaseState::Cancel => Self::Stop(StopReason::Cancelled),
            DesiredLeaseState::Abandon => Self::Abandon,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abandon_is_stronger_than_a_stop_and_a_lost_gpu_than_other_reasons() {
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
