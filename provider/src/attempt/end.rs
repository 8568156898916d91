//! How an attempt ended, and the outcome that the market is told.

use gpubnb_events::{Millis, command::Outcome, event::Reason, spec::Usage};

use super::Problem;
use crate::desired_state::StopReason;

/// 128 + SIGXFSZ: the kernel ends a process that writes past the largest file it may have.
const EXCEEDED_FILE_SIZE: i64 = 153;

/// How an attempt ended.
#[derive(Debug)]
pub(super) enum End {
    /// The job's code never ran, because the attempt was asked to stop first.
    NotStarted(StopReason),
    /// The job's code never ran, or nobody can tell for how long it ran.
    Failed(Problem),
    /// The worker stopped the container.
    Stopped {
        cause: StopCause,
        /// How long the code ran.
        run: Millis,
    },
    /// The job's program ended by itself.
    Exited {
        code: i64,
        out_of_memory: bool,
        /// How long the code ran.
        run: Millis,
    },
}

/// Why the worker stopped a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StopCause {
    /// The consumer or the owner asked for it, or a GPU failed.
    Requested(StopReason),
    /// The job reached one of its limits.
    Limit(Reason),
}

impl End {
    /// The time that the job's code ran. It is zero where nobody can tell, so that nobody pays for such an attempt.
    pub(super) fn usage(&self) -> Usage {
        match self {
            Self::NotStarted(_) | Self::Failed(_) => Usage::default(),
            Self::Stopped { run, .. } | Self::Exited { run, .. } => Usage { run: *run },
        }
    }

    /// Returns true where the job's code ran, so that there may be files in `/output`.
    pub(super) fn has_run(&self) -> bool {
        matches!(self, Self::Stopped { .. } | Self::Exited { .. })
    }

    /// The outcome for the market. `output_is_full` says whether `/output` has no room left, which explains an exit
    /// code that nothing else explains.
    pub(super) fn outcome(&self, output_is_full: impl FnOnce() -> bool) -> Outcome {
        match self {
            Self::NotStarted(reason) => stopped(*reason),
            Self::Failed(problem) => problem.outcome(),
            Self::Stopped { cause: StopCause::Requested(reason), .. } => stopped(*reason),
            Self::Stopped { cause: StopCause::Limit(reason), .. } => failed(*reason, ""),
            Self::Exited { code: 0, .. } => Outcome::Completed,
            Self::Exited { out_of_memory: true, .. } => failed(Reason::OutOfMemory, ""),
            Self::Exited { code: EXCEEDED_FILE_SIZE, .. } => {
                failed(Reason::OutputTooLarge, "a file grew past the limit")
            }
            Self::Exited { .. } if output_is_full() => {
                failed(Reason::OutputTooLarge, "there was no room left in /output")
            }
            Self::Exited { code, .. } => failed(Reason::NonZeroExit { code: *code }, ""),
        }
    }
}

fn failed(reason: Reason, detail: &str) -> Outcome {
    Outcome::Failed { reason, detail: detail.to_owned() }
}

fn stopped(reason: StopReason) -> Outcome {
    match reason {
        StopReason::Cancelled => Outcome::Cancelled,
        StopReason::Preempted => failed(Reason::Preempted, ""),
        StopReason::GpuLost => failed(Reason::GpuLost, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: Millis = Millis(1_500);

    fn exited(code: i64, out_of_memory: bool) -> End {
        End::Exited { code, out_of_memory, run: RUN }
    }

    #[test]
    fn each_end_has_its_outcome() {
        let reason = |end: &End, full: bool| match end.outcome(|| full) {
            Outcome::Failed { reason, .. } => Some(reason),
            Outcome::Completed | Outcome::Cancelled => None,
        };
        assert_eq!(exited(0, false).outcome(|| panic!("a clean end is not doubted")), Outcome::Completed);
        assert_eq!(reason(&exited(3, false), false), Some(Reason::NonZeroExit { code: 3 }));
        assert_eq!(reason(&exited(3, false), true), Some(Reason::OutputTooLarge));
        assert_eq!(reason(&exited(137, true), true), Some(Reason::OutOfMemory));
        assert_eq!(reason(&exited(EXCEEDED_FILE_SIZE, false), false), Some(Reason::OutputTooLarge));
        let limit = End::Stopped { cause: StopCause::Limit(Reason::LogFlood), run: RUN };
        assert_eq!(reason(&limit, false), Some(Reason::LogFlood));
        let broken = End::Failed(Problem::new(Reason::Interrupted, "Docker was stopped"));
        assert_eq!(reason(&broken, true), Some(Reason::Interrupted));
    }

    #[test]
    fn a_stop_is_told_by_its_reason_before_the_start_and_after() {
        for (stop, outcome) in [
            (StopReason::Cancelled, Outcome::Cancelled),
            (StopReason::Preempted, failed(Reason::Preempted, "")),
            (StopReason::GpuLost, failed(Reason::GpuLost, "")),
        ] {
            assert_eq!(End::NotStarted(stop).outcome(|| false), outcome);
            let stopped = End::Stopped { cause: StopCause::Requested(stop), run: RUN };
            assert_eq!(stopped.outcome(|| false), outcome);
        }
    }

    #[test]
    fn only_code_that_ran_is_paid_for_and_leaves_files() {
        let never = End::NotStarted(StopReason::Cancelled);
        let lost = End::Failed(Problem::new(Reason::Interrupted, ""));
        for end in [never, lost] {
            assert_eq!((end.usage(), end.has_run()), (Usage::default(), false));
        }
        assert_eq!((exited(1, false).usage(), exited(1, false).has_run()), (Usage { run: RUN }, true));
    }
}
