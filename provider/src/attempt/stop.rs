//! The causes to stop a running container: a request, or a limit of the job. Also the grace: the time between SIGTERM
//! and SIGKILL, in which the job can end by itself.

use std::time::Duration;

use gpubnb_events::{command::Grant, event::Reason};
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    artifacts,
    context::AttemptContext,
    end::StopCause,
    watch::{RunSignals, wait_until},
};
use crate::desired_state::StopReason;

/// The grace, except if the owner needs the machine.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// Time between two measurements of the job's disk.
const MEASURE_INTERVAL: Duration = Duration::from_millis(500);

/// The limits of a running job.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Longest run time: the time limit, or the time that the budget buys if that is shorter.
    time: Duration,
    /// The reason of the attempt's failure when that time is over.
    time_reason: Reason,
    /// Size of the job's disk, bytes.
    disk: u64,
}

impl Limits {
    pub(super) fn of(grant: &Grant) -> Self {
        let (time, time_reason) = match grant.budget {
            Some(budget) if budget < grant.time => (budget, Reason::BudgetExhausted),
            _ => (grant.time, Reason::TimeLimit),
        };
        Self { time: time.duration(), time_reason, disk: grant.spec.resources.disk_size().bytes() }
    }

    /// The remaining time of a job that has run for the time `ran`.
    fn time_left(&self, ran: Duration) -> Duration {
        self.time.saturating_sub(ran)
    }
}

/// Waits until the container must be stopped, and returns the cause. `ran_before` is the run time of the job at
/// `began`.
pub(super) async fn wait_for_stop_cause(
    context: &AttemptContext,
    limits: &Limits,
    signals: &RunSignals,
    began: Instant,
    ran_before: Duration,
) -> StopCause {
    let mut flooded = signals.log_flooded();
    tokio::select! {
        () = sleep_until(began + limits.time_left(ran_before)) => StopCause::Limit(limits.time_reason),
        reason = context.stop_requested() => StopCause::Requested(reason),
        () = wait_until(&mut flooded, |flooded| *flooded) => StopCause::Limit(Reason::LogFlood),
        () = wait_until_disk_exceeds(context, limits.disk) => StopCause::Limit(Reason::OutputTooLarge),
    }
}

/// The grace for a cause. `reclaim_grace` is the owner's setting.
pub(super) fn grace(cause: StopCause, reclaim_grace: Duration) -> Duration {
    match cause {
        StopCause::Requested(StopReason::Preempted) => reclaim_grace,
        StopCause::Requested(_) | StopCause::Limit(_) => STOP_GRACE,
    }
}

/// Returns when the files on the job's disk are larger than `max_bytes`.
async fn wait_until_disk_exceeds(context: &AttemptContext, max_bytes: u64) {
    loop {
        sleep(MEASURE_INTERVAL).await;
        if artifacts::measured_size(context.disk().root).await > max_bytes {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attempt::testing::grant;
    use gpubnb_events::{Millis, spec::Mebibytes};

    fn limits(time: u64, budget: Option<u64>) -> Limits {
        Limits::of(&grant(Millis(time), budget.map(Millis), Mebibytes(3)))
    }

    #[test]
    fn the_shorter_of_time_limit_and_budget_is_the_limit() {
        for (time, budget, expected, reason) in [
            (5_000, None, 5, Reason::TimeLimit),
            (5_000, Some(9_000), 5, Reason::TimeLimit),
            (5_000, Some(5_000), 5, Reason::TimeLimit),
            (5_000, Some(2_000), 2, Reason::BudgetExhausted),
            (5_000, Some(0), 0, Reason::BudgetExhausted),
        ] {
            let expected = Limits { time: Duration::from_secs(expected), time_reason: reason, disk: 3 << 20 };
            assert_eq!(limits(time, budget), expected, "{time} {budget:?}");
        }
    }

    #[test]
    fn run_time_before_a_restart_of_the_worker_counts() {
        let limits = limits(5_000, None);
        assert_eq!(limits.time_left(Duration::ZERO), Duration::from_secs(5));
        assert_eq!(limits.time_left(Duration::from_secs(3)), Duration::from_secs(2));
        assert_eq!(limits.time_left(Duration::from_secs(9)), Duration::ZERO);
    }

    #[test]
    fn only_preemption_uses_the_owners_grace() {
        let reclaim = Duration::from_secs(3);
        assert_eq!(grace(StopCause::Requested(StopReason::Preempted), reclaim), reclaim);
        for cause in [
            StopCause::Requested(StopReason::Cancelled),
            StopCause::Requested(StopReason::GpuLost),
            StopCause::Limit(Reason::TimeLimit),
        ] {
            assert_eq!(grace(cause, reclaim), STOP_GRACE);
        }
    }
}
