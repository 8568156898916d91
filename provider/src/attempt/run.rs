//! Waits until a running container has ended, stops it if necessary, and finds out how it ended. Distinguishes
//! an exit of the job's own program from an exit that a stop of Docker or a reboot caused.

use std::{path::Path, time::Duration};

use bollard::{errors::Error, models::ContainerState};
use gpubnb_events::{Clock as _, Millis, SystemClock, Timestamp, command::Grant, event::Reason};
use tokio::time::{Instant, sleep};

use super::{
    Problem,
    context::AttemptContext,
    door,
    end::{AttemptEnd, StopCause},
    outage::Outage,
    pids_watch::PidsWatch,
    prepare::ContainerOrigin,
    run_clock::{self, ClockReading, StartReading},
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

/// Exit codes of Docker's init for a program that it could not execute.
const NOT_EXECUTED_EXIT_CODES: [i64; 2] = [126, 127];
/// Time between two turns in which this process looks at the clock.
const TURN: Duration = Duration::from_millis(500);
/// A longer pause between two turns of this process means that the process was stopped, and saw the end too late.
const MAX_TURN: Duration = Duration::from_secs(2);
/// Longest run of a program that could not be executed, and the words with which Docker's init (tini) reports that.
const NEVER_RAN: Millis = Millis(2_000);
const INIT_FAILED: &str = "[FATAL tini (";
/// systemd makes this file when the machine begins to shut down.
const SHUTDOWN_BEGUN: &str = "/run/nologin";

/// The exit of a container.
struct ContainerExit {
    code: i64,
    /// The outage of Docker during which the container ended. Not begun if there was no outage.
    outage: Outage,
    /// The clocks when the worker learned of the exit.
    at: ClockReading,
    /// True if the worker learned of the exit at once.
    is_seen: bool,
}

/// Waits until a started container has ended, and finds out how the attempt ended. Sets the signal `container_ended` as
/// soon as the log is complete, which is before the end is fully known.
pub(super) async fn wait_for_end(
    context: &AttemptContext,
    grant: &Grant,
    origin: ContainerOrigin,
    signals: &RunSignals,
) -> AttemptEnd {
    let (limits, pids) = (Limits::of(grant), PidsWatch::default());
    let watched = tokio::select! {
        watched = watch_and_stop(context, &limits, origin, signals) => watched,
        never = pids.run(context) => match never {},
    };
    signals.set_container_ended();
    let end = match watched {
        Ok((exit, stopped)) => classify_exit(context, exit, stopped).await,
        Err(problem) => Err(problem),
    };
    end.unwrap_or_else(AttemptEnd::Failed).with_pids_limit_reached(pids.is_limit_reached())
}

/// Waits until the container has exited, and stops it if there is a cause. Returns the cause, too.
async fn watch_and_stop(
    context: &AttemptContext,
    limits: &Limits,
    origin: ContainerOrigin,
    signals: &RunSignals,
) -> Result<(ContainerExit, Option<StopCause>), Problem> {
    let began = Instant::now();
    let had_ended = origin == ContainerOrigin::FormerRun && context.container.has_ended().await;
    let exited = async {
        let exit = wait_for_exit(context).await?;
        Ok::<_, Problem>(ContainerExit { is_seen: exit.is_seen && !had_ended, ..exit })
    };
    tokio::pin!(exited);
    let ran_before = match origin {
        ContainerOrigin::ThisRun => Duration::ZERO,
        ContainerOrigin::FormerRun => ran_before(context).await,
    };
    let cause = tokio::select! {
        biased;
        exit = &mut exited => return Ok((exit?, None)),
        cause = stop::wait_for_stop_cause(context, limits, signals, began, ran_before) => cause,
    };
    // A worker that was paused (SIGSTOP) meanwhile learns of the limit and of the exit at the same time. The exit came
    // first.
    if context.container.has_ended().await {
        return Ok((exited.await?, None));
    }
    let stopping = async {
        context.container.stop(stop::grace(cause, context.tools.reclaim_grace)).await;
        std::future::pending::<()>().await;
    };
    let exit = tokio::select! {
        exit = &mut exited => exit?,
        () = stopping => return Err(Problem::new(Reason::Internal, "the stop of a container was interrupted")),
    };
    Ok((exit, Some(cause)))
}

/// Waits for the container's exit. Goes on waiting when Docker is restarted.
async fn wait_for_exit(context: &AttemptContext) -> Result<ContainerExit, Problem> {
    let (mut outage, mut turns) = (Outage::default(), Turns::new());
    let code = loop {
        match turns.count_while(context.container.wait()).await {
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
    let at = ClockReading::now().map_err(|e| Problem::caused(Reason::RuntimeMisconfigured, e))?;
    Ok(ContainerExit { code, is_seen: turns.are_regular() && !outage.has_begun(), outage, at })
}

/// Detects that this process was stopped: by SIGSTOP, or because the machine was suspended or overloaded.
struct Turns {
    last: Instant,
    /// The end of the last long pause.
    resumed: Option<Instant>,
}

impl Turns {
    fn new() -> Self {
        Self { last: Instant::now(), resumed: None }
    }

    /// Waits for a future, and takes note of long pauses meanwhile.
    async fn count_while<T>(&mut self, future: impl Future<Output = T>) -> T {
        tokio::pin!(future);
        loop {
            tokio::select! {
                output = &mut future => {
                    self.count();
                    return output;
                }
                () = sleep(TURN) => self.count(),
            }
        }
    }

    fn count(&mut self) {
        let now = Instant::now();
        if now.duration_since(self.last) > MAX_TURN {
            self.resumed = Some(now);
        }
        self.last = now;
    }

    /// True if no long pause ended within the last [`MAX_TURN`].
    fn are_regular(&self) -> bool {
        self.resumed.is_none_or(|resumed| resumed.elapsed() > MAX_TURN)
    }
}

/// Finds out how the attempt ended. Fails if the machine caused the exit, or if the program never ran.
async fn classify_exit(
    context: &AttemptContext,
    exit: ContainerExit,
    stopped: Option<StopCause>,
) -> Result<AttemptEnd, Problem> {
    let ContainerExit { code, mut outage, at, is_seen } = exit;
    let start = StartReading::saved(&context.directory());
    let run_until = |docker| match &start {
        Some(start) => run_clock::run_time(start, &at, docker, is_seen),
        None => docker.unwrap_or_default(),
    };
    let end = |out_of_memory, run| match stopped {
        Some(cause) => AttemptEnd::Stopped { cause, run },
        None => AttemptEnd::Exited { code, out_of_memory, pids_limit_reached: false, run },
    };
    // An exit with code 0 that was seen needs no further check.
    if code == 0 && is_seen && start.as_ref().is_some_and(StartReading::is_exact) {
        return Ok(end(false, run_until(None)));
    }
    let state = loop {
        match context.container.state().await {
            Ok(state) => break state,
            Err(e) => outage.wait_before_retry(e).await?,
        }
    };
    let run = run_until(docker_run_time(&state));
    // Docker also sets the flag if only a child process was killed, and the job went on.
    let out_of_memory = state.oom_killed == Some(true);
    if stopped.is_none() && code != 0 && !(out_of_memory && code == 137) {
        // After an outage or a reboot any exit code counts as interrupted: a program that handles SIGTERM may exit with
        // any code.
        let is_interrupted = outage.has_begun()
            || run_clock::is_rebooted(&context.directory())
            || (KILL_EXIT_CODES.contains(&code) && (!is_seen || Path::new(SHUTDOWN_BEGUN).exists()))
            || was_killed_with_docker(context, code, &state).await;
        if is_interrupted {
            return Err(Problem::new(Reason::Interrupted, "Docker was stopped, and took the job with it"));
        }
        if door::is_broken(context).await {
            return Err(Problem::new(Reason::Interrupted, "the machine broke the job's connections to the internet"));
        }
        if NOT_EXECUTED_EXIT_CODES.contains(&code) && run < NEVER_RAN {
            let line = context.container.first_line().await.unwrap_or_default();
            if let Some(words) = line.strip_prefix(INIT_FAILED).and_then(|rest| rest.split_once("] ")) {
                return Err(Problem::new(Reason::BadCommand, words.1));
            }
        }
    }
    Ok(end(out_of_memory, run))
}

/// Returns true if Docker ended the container, and not the job's own program. Docker notes each signal that it sends.
/// If Docker does not answer, Docker is being stopped, or is only slow. A slow Docker answers a later ping.
async fn was_killed_with_docker(context: &AttemptContext, code: i64, state: &ContainerState) -> bool {
    let started = docker_time(state.started_at.as_deref()).unwrap_or(Timestamp::EPOCH);
    match context.container.was_signalled(started).await {
        Ok(signalled) => signalled || state.error.as_ref().is_some_and(|error| !error.is_empty()),
        Err(_) => KILL_EXIT_CODES.contains(&code) && docker_is_stopping(context).await,
    }
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

/// The run time of the job before this run of the worker began to watch the container. After a reboot, or without a
/// reading of the start, Docker's times decide.
async fn ran_before(context: &AttemptContext) -> Duration {
    let start = StartReading::saved(&context.directory());
    let now = ClockReading::now();
    let ran = start.zip(now.ok()).and_then(|(start, now)| start.until(&now));
    if let Some(ran) = ran {
        return ran.duration();
    }
    let Ok(state) = context.container.state().await else { return Duration::ZERO };
    let until = docker_time(state.finished_at.as_deref()).unwrap_or_else(|| SystemClock.now());
    docker_time(state.started_at.as_deref()).map_or(Duration::ZERO, |started| until.since(started).duration())
}

/// The run time of an ended container's job, by Docker's clock; `None` if the container never ran or still runs.
fn docker_run_time(state: &ContainerState) -> Option<Millis> {
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
        let signals = RunSignals::running(true);
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
            fs::write(context.disk().output().join("large"), vec![0; (1 << 20) + 1]).unwrap();
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
            let another = r#"{"boot_id":"another","monotonic":1,"wall":"2026-02-02T02:40:00Z"}"#;
            fs::write(context.directory().join("clock.json"), another).unwrap();
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

    #[test]
    fn the_run_time_of_an_ended_container_is_computed_from_dockers_times() {
        let ended = state("2026-02-02T02:40:00.5Z", "2026-02-02T02:40:10.75Z");
        assert_eq!(docker_run_time(&ended), Some(Millis(10_250)));
        assert_eq!(docker_run_time(&state("2026-02-02T02:40:00Z", NEVER)), None, "it still runs");
        assert_eq!(docker_run_time(&state(NEVER, NEVER)), None, "it never ran");
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_was_stopped_knows_that_it_saw_an_exit_late() {
        let mut turns = Turns::new();
        turns.count_while(sleep(Duration::from_secs(60))).await;
        assert!(turns.are_regular());
        tokio::time::advance(Duration::from_secs(45)).await;
        turns.count();
        assert!(!turns.are_regular());
        turns.count_while(sleep(Duration::from_secs(3))).await;
        assert!(turns.are_regular(), "the pause is over");
    }
}
