//! The causes for which a running container is stopped, which are a request or one of the job's limits, and the time
//! that the job then has to end by itself.

use std::time::Duration;

use gpubnb_events::{command::Grant, event::Reason};
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    artifacts,
    context::AttemptContext,
    end::StopCause,
    watch::{RunSignals, until},
};
use crate::desired_state::StopReason;

/// Time between SIGTERM and SIGKILL, except where the owner needs the machine.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// How often the size of the output is measured.
const MEASURE: Duration = Duration::from_millis(500);

/// The limits that a running job is watched for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// How long the job may run.
    time: Duration,
    /// The reason that is given when that time is over.
    time_reason: Reason,
    /// Largest output, bytes.
    output: u64,
}

impl Limits {
    pub(super) fn of(grant: &Grant) -> Self {
        let (time, time_reason) = match grant.budget {
            Some(budget) if budget < grant.time => (budget, Reason::BudgetExhausted),
            _ => (grant.time, Reason::TimeLimit),
        };
        Self { time: time.duration(), time_reason, output: grant.spec.resources.output.bytes() }
    }

    /// The time that is left to a job that has run for so long.
    fn time_left(&self, ran: Duration) -> Duration {
        self.time.saturating_sub(ran)
    }
}

/// Waits until the container has to be stopped, and returns the cause. `ran_before` is how long the job had run at `began`.
pub(super) async fn until_cause(
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
        () = until(&mut flooded, |flooded| *flooded) => StopCause::Limit(Reason::LogFlood),
        () = outgrown(context, limits.output) => StopCause::Limit(Reason::OutputTooLarge),
    }
}

/// How long the job has to end by itself. `reclaim_grace` is the owner's setting.
pub(super) fn grace(cause: StopCause, reclaim_grace: Duration) -> Duration {
    match cause {
        StopCause::Requested(StopReason::Preempted) => reclaim_grace,
        StopCause::Requested(_) | StopCause::Limit(_) => STOP_GRACE,
    }
}

/// Returns once the output is larger than it may be.
async fn outgrown(context: &AttemptContext, most: u64) {
    loop {
        sleep(MEASURE).await;
        if artifacts::size(context.output()).await > most {
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
    fn whichever_of_time_and_budget_is_over_first_is_the_limit_and_its_reason() {
        for (time, budget, expected, reason) in [
            (5_000, None, 5, Reason::TimeLimit),
            (5_000, Some(9_000), 5, Reason::TimeLimit),
            (5_000, Some(5_000), 5, Reason::TimeLimit),
            (5_000, Some(2_000), 2, Reason::BudgetExhausted),
            (5_000, Some(0), 0, Reason::BudgetExhausted),
        ] {
            let expected = Limits { time: Duration::from_secs(expected), time_reason: reason, output: 3 << 20 };
            assert_eq!(limits(time, budget), expected, "{time} {budget:?}");
        }
    }

    #[test]
    fn time_that_was_used_before_the_worker_restarted_counts() {
        let limits = limits(5_000, None);
        assert_eq!(limits.time_left(Duration::ZERO), Duration::from_secs(5));
        assert_eq!(limits.time_left(Duration::from_secs(3)), Duration::from_secs(2));
        assert_eq!(limits.time_left(Duration::from_secs(9)), Duration::ZERO);
    }

    #[test]
    fn only_an_owner_who_needs_the_machine_sets_the_grace() {
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
