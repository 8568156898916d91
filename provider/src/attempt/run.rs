//! Watches a running container until it has ended, stops it where it has to be stopped, and finds out how it ended.

use std::time::Duration;

use bollard::{errors::Error, models::ContainerState};
use gpubnb_events::{Clock as _, Millis, SystemClock, Timestamp, command::Grant, event::Reason};
use tokio::time::{Instant, sleep};

use super::{
    Problem, boot_id,
    context::AttemptContext,
    end::{End, StopCause},
    outage::Outage,
    prepare::Origin,
    stop::{self, Limits},
    watch::RunSignals,
};

/// Docker, when it is stopped, first ends the containers, gives them up to 15 seconds, and is gone only then.
const DOCKER_STOPS: Duration = Duration::from_secs(16);
/// Time between two looks at whether Docker is being stopped.
const PING: Duration = Duration::from_millis(500);
/// Exit codes of a process that was killed by SIGKILL, by SIGTERM, or with everything around it.
const KILLED: [i64; 3] = [137, 143, 255];

/// The exit of a container.
struct Exit {
    code: i64,
    /// The outage of Docker in which the container ended, if it ended in one.
    outage: Outage,
    /// How long the job had run before this run of the worker watched it.
    ran_before: Duration,
    /// How long it ran since.
    watched: Duration,
}

/// Watches a container that was started until it has ended. Its log is complete when the signal for that is given,
/// which is before everything about the end is known.
pub(super) async fn until_end(context: &AttemptContext, grant: &Grant, origin: Origin, signals: &RunSignals) -> End {
    let began = Instant::now();
    let watched = watch_over(context, &Limits::of(grant), origin, signals, began).await;
    signals.set_container_ended();
    let judged = match watched {
        Ok((exit, stopped)) => judge(context, exit, stopped, began).await,
        Err(problem) => Err(problem),
    };
    judged.unwrap_or_else(End::Failed)
}

async fn watch_over(
    context: &AttemptContext,
    limits: &Limits,
    origin: Origin,
    signals: &RunSignals,
    began: Instant,
) -> Result<(Exit, Option<StopCause>), Problem> {
    let exited = exit(context, began);
    tokio::pin!(exited);
    let ran_before = match origin {
        Origin::ThisRun => Duration::ZERO,
        Origin::FormerRun => ran_before(context).await,
    };
    let cause = tokio::select! {
        exit = &mut exited => return Ok((Exit { ran_before, ..exit? }, None)),
        cause = stop::until_cause(context, limits, signals, began, ran_before) => cause,
    };
    let stopping = async {
        context.container.stop(stop::grace(cause, context.tools.reclaim_grace)).await;
        std::future::pending::<()>().await;
    };
    let exit = tokio::select! {
        exit = &mut exited => exit?,
        () = stopping => return Err(Problem::new(Reason::Internal, "waiting for a container ended")),
    };
    Ok((Exit { ran_before, ..exit }, Some(cause)))
}

/// Waits for the container's exit, also through restarts of Docker.
async fn exit(context: &AttemptContext, began: Instant) -> Result<Exit, Problem> {
    let mut outage = Outage::default();
    let code = loop {
        match context.container.wait().await {
            Some(Ok(response)) => break response.status_code,
            Some(Err(Error::DockerContainerWaitError { code, .. })) => break code,
            Some(Err(Error::RequestTimeoutError)) | None => {}
            Some(Err(e)) => {
                outage.endure(e).await?;
                // The container has outlived the outage: a later exit has nothing to do with it.
                if context.container.state().await.is_ok_and(|state| state.running == Some(true)) {
                    outage = Outage::default();
                }
            }
        }
    };
    Ok(Exit { code, outage, ran_before: Duration::ZERO, watched: began.elapsed() })
}

/// Tells an exit of the job's own from one that the machine is to blame for.
async fn judge(
    context: &AttemptContext,
    exit: Exit,
    stopped: Option<StopCause>,
    began: Instant,
) -> Result<End, Problem> {
    let Exit { code, mut outage, ran_before, watched } = exit;
    let watched = Millis::of(watched + ran_before);
    let end = |out_of_memory, run| match stopped {
        Some(cause) => End::Stopped { cause, run },
        None => End::Exited { code, out_of_memory, run },
    };
    // A clean exit that was watched from its beginning needs no second look.
    if code == 0 && ran_before.is_zero() {
        return Ok(end(false, watched));
    }
    let state = loop {
        match context.container.state().await {
            Ok(state) => break state,
            Err(e) => outage.endure(e).await?,
        }
    };
    // Docker sets the flag also where only a child was killed and the job went on.
    let out_of_memory = state.oom_killed == Some(true) && code == 137;
    if stopped.is_none() && !out_of_memory && code != 0 {
        let killed = KILLED.contains(&code);
        let unseen = || ended_unwatched(&state, SystemClock.now(), began.elapsed());
        // A program that handles SIGTERM may exit with any code. Nobody saw it alive after the outage or the reboot.
        let ended_meanwhile = outage.has_begun() || boot_id::has_changed(&context.directory()) || (killed && unseen());
        if ended_meanwhile || (killed && docker_is_stopping(context).await) {
            return Err(Problem::new(Reason::Interrupted, "Docker was stopped, and took the job with it"));
        }
    }
    let run = if ran_before.is_zero() { watched } else { run_time(&state).unwrap_or(watched) };
    Ok(end(out_of_memory, run))
}

/// Returns true where the container ended before this worker began to watch it, `watched` ago: Docker, too, may have
/// been restarted before that. A second is allowed for the clocks.
fn ended_unwatched(state: &ContainerState, now: Timestamp, watched: Duration) -> bool {
    let since = |ended| now.since(ended) > Millis::of(watched + Duration::from_secs(1));
    moment(state.finished_at.as_deref()).is_some_and(since)
}

/// Returns true where Docker is being stopped. Docker that is only slow answers again.
async fn docker_is_stopping(context: &AttemptContext) -> bool {
    let deadline = Instant::now() + DOCKER_STOPS;
    let mut unanswered = 0;
    while Instant::now() < deadline && unanswered < 3 {
        unanswered = if context.tools.docker.ping().await.is_err() { unanswered + 1 } else { 0 };
        sleep(PING).await;
    }
    unanswered == 3
}

/// How long the job had run when this run of the worker looked at it first.
async fn ran_before(context: &AttemptContext) -> Duration {
    match context.container.state().await {
        Ok(state) => run_time_until(&state, SystemClock.now()),
        Err(_) => Duration::ZERO,
    }
}

/// How long the job of a container ran, or has run by now. Less than a second counts as nothing: so long it may have
/// run since this worker started it.
fn run_time_until(state: &ContainerState, now: Timestamp) -> Duration {
    let until = moment(state.finished_at.as_deref()).unwrap_or(now);
    let ran = moment(state.started_at.as_deref()).map_or(Duration::ZERO, |started| until.since(started).duration());
    if ran < Duration::from_secs(1) { Duration::ZERO } else { ran }
}

/// How long the job of a container that has ended ran, by Docker's clock.
fn run_time(state: &ContainerState) -> Option<Millis> {
    let started = moment(state.started_at.as_deref())?;
    Some(moment(state.finished_at.as_deref())?.since(started))
}

/// A time of Docker's. Docker writes the year 1 for a time that has not come.
fn moment(text: Option<&str>) -> Option<Timestamp> {
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

    /// Runs an attempt with 1 MiB of output. `act` is what happens meanwhile.
    async fn end_of(
        grant: &Grant,
        act: impl AsyncFnOnce(&AttemptContext, &StubDocker, &RunSignals),
    ) -> (End, Option<String>) {
        let (state, docker) = (tempfile::tempdir().unwrap(), StubDocker::start().await);
        let context = attempt(state.path(), &docker, &Arc::new(LeaseTable::new(1))).await;
        let signals = RunSignals::running();
        let running = until_end(&context, grant, Origin::ThisRun, &signals);
        let (end, ()) = tokio::join!(running, act(&context, &docker, &signals));
        assert!(*signals.container_ended().borrow(), "the log is complete");
        (end, docker.stopped_by())
    }

    fn ample() -> Grant {
        grant(Millis(60_000), None, Mebibytes(1))
    }

    #[tokio::test]
    async fn a_program_that_ends_is_told_by_its_exit_code() {
        for (code, out_of_memory) in [(0, false), (3, false), (137, true)] {
            let (end, stopped) = end_of(&ample(), async |_, docker, _| docker.exit(code, out_of_memory)).await;
            let End::Exited { code: found, out_of_memory: oom, .. } = end else { panic!("{end:?}") };
            assert_eq!((found, oom, stopped), (code, out_of_memory, None));
        }
    }

    #[tokio::test]
    async fn each_limit_stops_the_container_with_its_reason() {
        let nothing = async |_: &AttemptContext, _: &StubDocker, _: &RunSignals| {};
        let limit_of = |end: (End, Option<String>)| match end {
            (End::Stopped { cause: StopCause::Limit(reason), .. }, Some(grace)) if grace == "t=10" => reason,
            other => panic!("{other:?}"),
        };
        let time = grant(Millis(50), None, Mebibytes(1));
        assert_eq!(limit_of(end_of(&time, nothing).await), Reason::TimeLimit);
        let budget = grant(Millis(60_000), Some(Millis(50)), Mebibytes(1));
        assert_eq!(limit_of(end_of(&budget, nothing).await), Reason::BudgetExhausted);
        let flood = async |_: &AttemptContext, _: &StubDocker, signals: &RunSignals| signals.set_log_flooded();
        assert_eq!(limit_of(end_of(&ample(), flood).await), Reason::LogFlood);
        let outgrow = async |context: &AttemptContext, _: &StubDocker, _: &RunSignals| {
            fs::write(context.output().join("large"), vec![0; (1 << 20) + 1]).unwrap();
        };
        assert_eq!(limit_of(end_of(&ample(), outgrow).await), Reason::OutputTooLarge);
    }

    #[tokio::test]
    async fn a_request_stops_the_container_and_only_the_owner_sets_its_grace() {
        let reclaim = format!("t={}", RECLAIM_GRACE.as_secs());
        for (reason, grace) in [(StopReason::Cancelled, "t=10"), (StopReason::Preempted, reclaim.as_str())] {
            let (end, stopped) = end_of(&ample(), async |context, _, _| {
                context.tools.leases.set_desired(context.lease, DesiredState::Stop(reason));
            })
            .await;
            let cause = StopCause::Requested(reason);
            assert!(matches!(end, End::Stopped { cause: found, .. } if found == cause), "{end:?}");
            assert_eq!(stopped.as_deref(), Some(grace));
        }
    }

    #[tokio::test]
    async fn a_program_that_exits_after_a_reboot_was_interrupted() {
        let (end, _) = end_of(&ample(), async |context, docker, _| {
            fs::write(context.directory().join("boot"), "another\n").unwrap();
            docker.exit(1, false);
        })
        .await;
        let End::Failed(problem) = end else { panic!("{end:?}") };
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
    fn the_run_time_of_an_ended_container_is_dockers() {
        let ended = state("2026-02-02T02:40:00.5Z", "2026-02-02T02:40:10.75Z");
        assert_eq!(run_time(&ended), Some(Millis(10_250)));
        assert_eq!(run_time(&state("2026-02-02T02:40:00Z", NEVER)), None, "it runs still");
        assert_eq!(run_time(&state(NEVER, NEVER)), None, "it never ran");
    }

    #[test]
    fn a_job_that_was_taken_up_again_has_used_some_of_its_time() {
        let running = state("2026-02-02T02:40:00Z", NEVER);
        assert_eq!(run_time_until(&running, at("2026-02-02T02:40:30Z")), Duration::from_secs(30));
        assert_eq!(run_time_until(&running, at("2026-02-02T02:40:00.9Z")), Duration::ZERO);
        let ended = state("2026-02-02T02:40:00Z", "2026-02-02T02:40:05Z");
        assert_eq!(run_time_until(&ended, at("2026-02-02T02:50:00Z")), Duration::from_secs(5));
        assert_eq!(run_time_until(&state(NEVER, NEVER), at("2026-02-02T02:40:00Z")), Duration::ZERO);
    }

    #[test]
    fn an_exit_before_the_watch_began_is_known_by_dockers_time() {
        let ended = state("2026-02-02T02:40:00Z", "2026-02-02T02:40:05Z");
        let unwatched = |seconds| ended_unwatched(&ended, at("2026-02-02T02:40:15Z"), Duration::from_secs(seconds));
        assert!(unwatched(8));
        assert!(!unwatched(9), "a second is allowed for the clocks");
        assert!(!ended_unwatched(&state(NEVER, NEVER), at("2026-02-02T02:40:15Z"), Duration::ZERO));
    }
}
