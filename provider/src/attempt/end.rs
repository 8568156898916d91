//! The end of an attempt, and the outcome in the report to the market.

use gpubnb_events::{Millis, command::Outcome, event::Reason, spec::Usage};

use super::{Problem, job_disk::Fullness};
use crate::desired_state::StopReason;

/// The exit code of a process that was killed: 128 + SIGKILL.
const KILLED: i64 = 137;
/// The detail of an exit after a child process ran out of memory.
const CHILD_OUT_OF_MEMORY: &str =
    "the kernel killed one of the job's processes because the job's memory ran out; ask for more memory (memory_mib)";
/// The detail of an exit of a job that reached its limit of processes.
const PIDS_LIMIT_REACHED: &str = "the job reached its limit of processes and threads; ask for more (pids)";
/// The exit code of a process that wrote a file larger than its limit: 128 + SIGXFSZ.
const EXCEEDED_FILE_SIZE: i64 = 153;

/// The end of an attempt.
#[derive(Debug)]
pub(super) enum AttemptEnd {
    /// The job's code never ran, because the attempt was asked to stop first.
    NotStarted(StopReason),
    /// The job's code never ran, or its run time is not known.
    Failed(Problem),
    /// The worker stopped the container.
    Stopped {
        cause: StopCause,
        /// The run time of the code.
        run: Millis,
    },
    /// The job's program ended by itself.
    Exited {
        code: i64,
        out_of_memory: bool,
        /// True if the job was refused a process or a thread.
        pids_limit_reached: bool,
        /// The run time of the code.
        run: Millis,
    },
}

/// The cause for which the worker stopped a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StopCause {
    /// The consumer or the owner requested the stop, or a GPU failed.
    Requested(StopReason),
    /// The job reached one of its limits.
    Limit(Reason),
}

impl AttemptEnd {
    /// The run time of the job's code. If the run time is not known, it counts as zero, so that nobody pays for such an
    /// attempt.
    pub(super) fn usage(&self) -> Usage {
        match self {
            Self::NotStarted(_) | Self::Failed(_) => Usage::default(),
            Self::Stopped { run, .. } | Self::Exited { run, .. } => Usage { run: *run },
        }
    }

    /// The same end, and whether the job was refused a process or a thread.
    pub(super) fn with_pids_limit_reached(mut self, is_reached: bool) -> Self {
        if let Self::Exited { pids_limit_reached, .. } = &mut self {
            *pids_limit_reached = is_reached;
        }
        self
    }

    /// Returns true if the job's code ran, so that there may be files in `/output`.
    pub(super) fn has_run(&self) -> bool {
        matches!(self, Self::Stopped { .. } | Self::Exited { .. })
    }

    /// The outcome for the market. `fullness` tells which file system is full. It is called only for a nonzero exit
    /// code that neither the limit of memory nor the limit of a file's size explains.
    pub(super) fn outcome(&self, fullness: impl FnOnce() -> Fullness) -> Outcome {
        match self {
            Self::NotStarted(reason) => stopped(*reason),
            Self::Failed(problem) => problem.outcome(),
            Self::Stopped { cause: StopCause::Requested(reason), .. } => stopped(*reason),
            Self::Stopped { cause: StopCause::Limit(reason), .. } => failed(*reason, ""),
            Self::Exited { code: 0, .. } => Outcome::Completed,
            Self::Exited { code: KILLED, out_of_memory: true, .. } => failed(Reason::OutOfMemory, ""),
            Self::Exited { code: EXCEEDED_FILE_SIZE, .. } => {
                failed(Reason::OutputTooLarge, "a file grew past the limit")
            }
            Self::Exited { code, out_of_memory, pids_limit_reached, .. } => match fullness() {
                Fullness::Machine => failed(Reason::DiskFull, "the machine's disk was full"),
                Fullness::Job => {
                    failed(Reason::OutputTooLarge, "the job's disk was full: ask for a larger one (disk_mib)")
                }
                Fullness::NotFull => {
                    let detail = match (out_of_memory, pids_limit_reached) {
                        (true, _) => CHILD_OUT_OF_MEMORY,
                        (_, true) => PIDS_LIMIT_REACHED,
                        _ => explain_exit_code(*code),
                    };
                    failed(Reason::NonZeroExit { code: *code }, detail)
                }
            },
        }
    }
}

/// The usual meaning of an exit code, and what to do; empty for the codes that only the program itself can explain.
/// Codes above 128 are 128 and a signal.
fn explain_exit_code(code: i64) -> &'static str {
    match code {
        126 => "a command was found but cannot be executed: see that the file is executable",
        127 => "a command was not found: see that the image has the program, and that its name is right",
        132 => "SIGILL: the program uses instructions that this processor does not have",
        134 => "SIGABRT: the program aborted itself; the log says why",
        135 => "SIGBUS: most often /dev/shm is full; ask for more shared memory (shm_mib)",
        136 => "SIGFPE: the program divided by zero",
        KILLED => "SIGKILL: one of the job's own processes killed the program",
        139 => "SIGSEGV: the program used memory that it does not have",
        143 => "SIGTERM: one of the job's own processes ended the program",
        _ => "",
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
    use Fullness::{Job, Machine, NotFull};

    const RUN: Millis = Millis(1_500);

    fn exited(code: i64, out_of_memory: bool) -> AttemptEnd {
        AttemptEnd::Exited { code, out_of_memory, pids_limit_reached: false, run: RUN }
    }

    #[test]
    fn each_end_has_its_outcome() {
        let reason = |end: &AttemptEnd, full: Fullness| match end.outcome(|| full) {
            Outcome::Failed { reason, .. } => Some(reason),
            Outcome::Completed | Outcome::Cancelled => None,
        };
        assert_eq!(exited(0, false).outcome(|| panic!("an exit with code 0 needs no explanation")), Outcome::Completed);
        assert_eq!(reason(&exited(3, false), NotFull), Some(Reason::NonZeroExit { code: 3 }));
        assert_eq!(reason(&exited(3, false), Job), Some(Reason::OutputTooLarge));
        assert_eq!(reason(&exited(3, false), Machine), Some(Reason::DiskFull), "the machine's fault");
        assert_eq!(reason(&exited(137, true), Job), Some(Reason::OutOfMemory));
        let detail = |code, out_of_memory| match exited(code, out_of_memory).outcome(|| NotFull) {
            Outcome::Failed { reason: Reason::NonZeroExit { code: found }, detail } if found == code => detail,
            other => panic!("{other:?}"),
        };
        assert_eq!(detail(1, false), "");
        assert!(detail(1, true).contains("memory_mib"), "a child ran out of memory");
        let crowded = exited(1, false).with_pids_limit_reached(true).outcome(|| NotFull);
        assert!(matches!(crowded, Outcome::Failed { detail, .. } if detail.contains("(pids)")));
        assert!(detail(135, false).contains("shm_mib"));
        assert!(detail(127, false).contains("not found"));
        assert_eq!(reason(&exited(EXCEEDED_FILE_SIZE, false), NotFull), Some(Reason::OutputTooLarge));
        let limit = AttemptEnd::Stopped { cause: StopCause::Limit(Reason::LogFlood), run: RUN };
        assert_eq!(reason(&limit, NotFull), Some(Reason::LogFlood));
        let broken = AttemptEnd::Failed(Problem::new(Reason::Interrupted, "Docker was stopped"));
        assert_eq!(reason(&broken, Job), Some(Reason::Interrupted));
    }

    #[test]
    fn the_outcome_of_a_stop_is_the_same_before_and_after_the_start() {
        for (stop, outcome) in [
            (StopReason::Cancelled, Outcome::Cancelled),
            (StopReason::Preempted, failed(Reason::Preempted, "")),
            (StopReason::GpuLost, failed(Reason::GpuLost, "")),
        ] {
            assert_eq!(AttemptEnd::NotStarted(stop).outcome(|| NotFull), outcome);
            let stopped = AttemptEnd::Stopped { cause: StopCause::Requested(stop), run: RUN };
            assert_eq!(stopped.outcome(|| NotFull), outcome);
        }
    }

    #[test]
    fn only_an_attempt_whose_code_ran_has_usage_and_files() {
        let never = AttemptEnd::NotStarted(StopReason::Cancelled);
        let lost = AttemptEnd::Failed(Problem::new(Reason::Interrupted, ""));
        for end in [never, lost] {
            assert_eq!((end.usage(), end.has_run()), (Usage::default(), false));
        }
        assert_eq!((exited(1, false).usage(), exited(1, false).has_run()), (Usage { run: RUN }, true));
    }
}
