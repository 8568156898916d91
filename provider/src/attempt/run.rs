//! Waits until a running container has ended, stops it if necessary, and finds out how it ended. Distinguishes
//! an exit of the job's own program from an exit that a stop of Docker or a reboot caused.

use std::time::Duration;

use bollard::{errors::Error, models::ContainerState};
use gpubnb_events::{Clock as _, Millis, SystemClock, Timestamp, command::Grant, event::Reason};
use tokio::time::{Instant, sleep};

use super::{
    Problem, boot_id,
    context::AttemptContext,
    end::{AttemptEnd, StopCause},
    outage::Outage,
    prepare::ContainerOrigin,
    stop::{self, Limits},
    watch::RunSignals,
};

/// Longest time for Docker to stop. Docker first ends the containers, which takes up to 15 seconds. Docker answers
/// requests until the containers have ended.
const DOCKER_STOP_TIME: Duration = Duration::from_secs(16);
/// Time between two checks whether Docker still answers.
const PING_INTERVAL: Duration = Duration::from_millis(500);
/// Exit codes of a process that was killed: 137 by SIGKILL, 143 by SIGTERM, and 255 if Docker itself was killed, too.
const KILL_EXIT_CODES: [i64; 3] = [137, 143, 255];

/// The exit of a container.
struct ContainerExit {
    code: i64,
    /// The outage of Docker during which the container ended. Not begun if there was no outage.
    outage: Outage,
    /// The run time of the job before this run of the worker watched the container.
    ran_before: Duration,
    /// The run time of the job since then.
    watched: Duration,
}

/// Waits until a started container has ended, and finds out how the attempt ended. Sets the signal `container_ended` as
/// soon as the log is complete, which is before the end is fully known.
pub(super) async fn wait_for_end(
    context: &AttemptContext,
    grant: &Grant,
    origin: ContainerOrigin,
    signals: &RunSignals,
) -> AttemptEnd {
    let began = Instant::now();
    let watched = watch_and_stop(context, &Limits::of(grant), origin, signals, began).await;
    signals.set_container_ended();
    let end = match watched {
        Ok((exit, stopped)) => classify_exit(context, exit, stopped, began).await,
        Err(problem) => Err(problem),
    };
    end.unwrap_or_else(AttemptEnd::Failed)
}

/// Waits until the container has exited, and stops it if there is a cause. Returns the cause, too.
async fn watch_and_stop(
    context: &AttemptContext,
    limits: &Limits,
    origin: ContainerOrigin,
    signals: &RunSignals,
    began: Instant,
) -> Result<(ContainerExit, Option<StopCause>), Problem> {
    let exited = wait_for_exit(context, began);
    tokio::pin!(exited);
    let ran_before = match origin {
        ContainerOrigin::ThisRun => Duration::ZERO,
        ContainerOrigin::FormerRun => ran_before(context).await,
    };
    let cause = tokio::select! {
        exit = &mut exited => return Ok((ContainerExit { ran_before, ..exit? }, None)),
        cause = stop::wait_for_stop_cause(context, limits, signals, began, ran_before) => cause,
    };
    let stopping = async {
        context.container.stop(stop::grace(cause, context.tools.reclaim_grace)).await;
        std::future::pending::<()>().await;
    };
    let exit = tokio::select! {
        exit = &mut exited => exit?,
        () = stopping => return Err(Problem::new(Reason::Internal, "the stop of a container was interrupted")),
    };
    Ok((ContainerExit { ran_before, ..exit }, Some(cause)))
}

/// Waits for the container's exit. Goes on waiting when Docker is restarted.
async fn wait_for_exit(context: &AttemptContext, began: Instant) -> Result<ContainerExit, Problem> {
    let mut outage = Outage::default();
    let code = loop {
        match context.container.wait().await {
            Some(Ok(response)) => break response.status_code,
            Some(Err(Error::DockerContainerWaitError { code, .. })) => break code,
            Some(Err(Error::RequestTimeoutError)) | None => {}
            Some(Err(e)) => {
                outage.wait_before_retry(e).await?;
                // The container survived the outage, so a later exit has another cause.
                if context.container.state().await.is_ok_and(|state| state.running == Some(true)) {
                    outage = Outage::default();
                }
            }
        }
    };
    Ok(ContainerExit { code, outage, ran_before: Duration::ZERO, watched: began.elapsed() })
}

/// Finds out how the attempt ended. Fails if the machine caused the exit, and not the job.
async fn classify_exit(
    context: &AttemptContext,
    exit: ContainerExit,
    stopped: Option<StopCause>,
    began: Instant,
) -> Result<AttemptEnd, Problem> {
    let ContainerExit { code, mut outage, ran_before, watched } = exit;
    let watched = Millis::from_duration(watched + ran_before);
    let end = |out_of_memory, run| match stopped {
        Some(cause) => AttemptEnd::Stopped { cause, run },
        None => AttemptEnd::Exited { code, out_of_memory, run },
    };
    // A job that this run of the worker started, and that exited with code 0, needs no further check.
    if code == 0 && ran_before.is_zero() {
        return Ok(end(false, watched));
    }
    let state = loop {
        match context.container.state().await {
            Ok(state) => break state,
            Err(e) => outage.wait_before_retry(e).await?,
        }
    };
    // Docker also sets the flag if only a child process was killed, and the job went on.
    let out_of_memory = state.oom_killed == Some(true) && code == 137;
    if stopped.is_none() && !out_of_memory && code != 0 {
        let is_killed = KILL_EXIT_CODES.contains(&code);
        let is_unseen = || ended_before_watch(&state, SystemClock.now(), began.elapsed());
        // After an outage or a reboot any exit code counts as interrupted: a program that handles SIGTERM may exit with
        // any code.
        let ended_meanwhile =
            outage.has_begun() || boot_id::has_changed(&context.directory()) || (is_killed && is_unseen());
        if ended_meanwhile || (is_killed && docker_is_stopping(context).await) {
            return Err(Problem::new(Reason::Interrupted, "Docker was stopped, and took the job with it"));
        }
    }
    let run = if ran_before.is_zero() { watched } else { run_time(&state).unwrap_or(watched) };
    Ok(end(out_of_memory, run))
}

/// Returns true if the container ended before this worker began to watch it, which was `watched` ago. Docker may have
/// been restarted in that time. The tolerance of one second allows for different clocks.
fn ended_before_watch(state: &ContainerState, now: Timestamp, watched: Duration) -> bool {
    let is_earlier = |ended| now.since(ended) > Millis::from_duration(watched + Duration::from_secs(1));
    docker_time(state.finished_at.as_deref()).is_some_and(is_earlier)
}

/// Returns true if Docker is being stopped: three pings in a row fail. If Docker is only slow, a later ping succeeds.
async fn docker_is_stopping(context: &AttemptContext) -> bool {
    let deadline = Instant::now() + DOCKER_STOP_TIME;
    let mut unanswered = 0;
    while Instant::now() < deadline && unanswered < 3 {
        unanswered = if context.tools.docker.ping().await.is_err() { unanswered + 1 } else { 0 };
        sleep(PING_INTERVAL).await;
    }
    unanswered == 3
}

/// The run time of the job before this run of the worker began to watch the container.
async fn ran_before(context: &AttemptContext) -> Duration {
    match context.container.state().await {
        Ok(state) => run_time_until(&state, SystemClock.now()),
        Err(_) => Duration::ZERO,
    }
}

/// The run time of a container's job until its end or until `now`. A time under one second counts as zero, because this
/// run of the worker may have started the container within that second.
fn run_time_until(state: &ContainerState, now: Timestamp) -> Duration {
    let until = docker_time(state.finished_at.as_deref()).unwrap_or(now);
    let ran =
        docker_time(state.started_at.as_deref()).map_or(Duration::ZERO, |started| until.since(started).duration());
    if ran < Duration::from_secs(1) { Duration::ZERO } else { ran }
}

/// The run time of an ended container's job, by Docker's clock; `None` if the container never ran or still runs.
fn run_time(state: &ContainerState) -> Option<Millis> {
    let started = docker_time(state.started_at.as_deref())?;
    Some(docker_time(state.finished_at.as_deref())?.since(started))
}

/// Parses a time from Docker. Docker writes the year 1 for an event that has not happened; it is read as `None`.
fn docker_time(text: Option<&str>) -> Option<Timestamp> {
    text.and_then(|text| text.parse().ok()).filter(|at: &Timestamp| *at > Timestamp::EPOCH)
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Arc};

    use gpubnb_events::spec::Mebibytes;

    use super::*;
    use crate::{
        attempt::testing::{RECLAIM_GRACE, StubDocker, attempt, grant},
        desired_state::{DesiredState, StopReason},
        lease_table::LeaseTable,
    };

    /// Runs an attempt, and does `act` at the same time. Returns the end and the grace with which Docker stopped the
    /// container.
    async fn end_of(
        grant: &Grant,
        act: impl AsyncFnOnce(&AttemptContext, &StubDocker, &RunSignals),
    ) -> (AttemptEnd, Option<String>) {
        let (state, docker) = (tempfile::tempdir().unwrap(), StubDocker::start().await);
        let context = attempt(state.path(), &docker, &Arc::new(LeaseTable::new(1))).await;
        let signals = RunSignals::running();
        let running = wait_for_end(&context, grant, ContainerOrigin::ThisRun, &signals);
        let (end, ()) = tokio::join!(running, act(&context, &docker, &signals));
        assert!(*signals.container_ended().borrow(), "the log is complete");
        (end, docker.stopped_by())
    }

    fn grant_with_high_limits() -> Grant {
        grant(Millis(60_000), None, Mebibytes(1))
    }

    #[tokio::test]
    async fn a_program_that_exits_ends_with_its_exit_code() {
        for (code, out_of_memory) in [(0, false), (3, false), (137, true)] {
            let (end, stopped) =
                end_of(&grant_with_high_limits(), async |_, docker, _| docker.exit(code, out_of_memory)).await;
            let AttemptEnd::Exited { code: found, out_of_memory: oom, .. } = end else { panic!("{end:?}") };
            assert_eq!((found, oom, stopped), (code, out_of_memory, None));
        }
    }

    #[tokio::test]
    async fn each_exceeded_limit_stops_the_container_with_its_own_reason() {
        let nothing = async |_: &AttemptContext, _: &StubDocker, _: &RunSignals| {};
        let limit_of = |end: (AttemptEnd, Option<String>)| match end {
            (AttemptEnd::Stopped { cause: StopCause::Limit(reason), .. }, Some(grace)) if grace == "t=10" => reason,
            other => panic!("{other:?}"),
        };
        let time = grant(Millis(50), None, Mebibytes(1));
        assert_eq!(limit_of(end_of(&time, nothing).await), Reason::TimeLimit);
        let budget = grant(Millis(60_000), Some(Millis(50)), Mebibytes(1));
        assert_eq!(limit_of(end_of(&budget, nothing).await), Reason::BudgetExhausted);
        let flood = async |_: &AttemptContext, _: &StubDocker, signals: &RunSignals| signals.set_log_flooded();
        assert_eq!(limit_of(end_of(&grant_with_high_limits(), flood).await), Reason::LogFlood);
        let outgrow = async |context: &AttemptContext, _: &StubDocker, _: &RunSignals| {
            fs::write(context.output().join("large"), vec![0; (1 << 20) + 1]).unwrap();
        };
        assert_eq!(limit_of(end_of(&grant_with_high_limits(), outgrow).await), Reason::OutputTooLarge);
    }

    #[tokio::test]
    async fn a_stop_request_stops_the_container_and_only_preemption_uses_the_owners_grace() {
        let reclaim = format!("t={}", RECLAIM_GRACE.as_secs());
        for (reason, grace) in [(StopReason::Cancelled, "t=10"), (StopReason::Preempted, reclaim.as_str())] {
            let (end, stopped) = end_of(&grant_with_high_limits(), async |context, _, _| {
                context.tools.leases.set_desired(context.lease, DesiredState::Stop(reason));
            })
            .await;
            let cause = StopCause::Requested(reason);
            assert!(matches!(end, AttemptEnd::Stopped { cause: found, .. } if found == cause), "{end:?}");
            assert_eq!(stopped.as_deref(), Some(grace));
        }
    }

    #[tokio::test]
    async fn a_program_that_exits_after_a_reboot_was_interrupted() {
        let (end, _) = end_of(&grant_with_high_limits(), async |context, docker, _| {
            fs::write(context.directory().join("boot"), "another\n").unwrap();
            docker.exit(1, false);
        })
        .await;
        let AttemptEnd::Failed(problem) = end else { panic!("{end:?}") };
        assert_eq!(problem.reason, Reason::Interrupted);
    }

    const NEVER: &str = "0001-01-01T00:00:00Z";

    fn state(started: &str, finished: &str) -> ContainerState {
        ContainerState {
            started_at: Some(started.to_owned()),
            finished_at: Some(finished.to_owned()),
            ..Default::default()
        }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn the_run_time_of_an_ended_container_is_computed_from_dockers_times() {
        let ended = state("2026-02-02T02:40:00.5Z", "2026-02-02T02:40:10.75Z");
        assert_eq!(run_time(&ended), Some(Millis(10_250)));
        assert_eq!(run_time(&state("2026-02-02T02:40:00Z", NEVER)), None, "it still runs");
        assert_eq!(run_time(&state(NEVER, NEVER)), None, "it never ran");
    }

    #[test]
    fn the_run_time_before_a_resumption_counts() {
        let running = state("2026-02-02T02:40:00Z", NEVER);
        assert_eq!(run_time_until(&running, at("2026-02-02T02:40:30Z")), Duration::from_secs(30));
        assert_eq!(run_time_until(&running, at("2026-02-02T02:40:00.9Z")), Duration::ZERO);
        let ended = state("2026-02-02T02:40:00Z", "2026-02-02T02:40:05Z");
        assert_eq!(run_time_until(&ended, at("2026-02-02T02:50:00Z")), Duration::from_secs(5));
        assert_eq!(run_time_until(&state(NEVER, NEVER), at("2026-02-02T02:40:00Z")), Duration::ZERO);
    }

    #[test]
    fn an_exit_before_the_watch_is_detected_by_dockers_time() {
        let ended = state("2026-02-02T02:40:00Z", "2026-02-02T02:40:05Z");
        let is_before = |seconds| ended_before_watch(&ended, at("2026-02-02T02:40:15Z"), Duration::from_secs(seconds));
        assert!(is_before(8));
        assert!(!is_before(9), "a second is allowed for the clocks");
        assert!(!ended_before_watch(&state(NEVER, NEVER), at("2026-02-02T02:40:15Z"), Duration::ZERO));
    }
}
