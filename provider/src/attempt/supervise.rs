//! Watches a running container: its end, its limits, and what the platform wants.

use std::time::Duration;

use bollard::{errors::Error, models::ContainerState, query_parameters::WaitContainerOptions};
use futures_util::StreamExt;
use gpubnb_events::{JobId, Millis, Timestamp, command::Grant, event::Reason};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tracing::warn;

use super::{Problem, Tools, boot, container::Container, output, outputs};
use crate::hand::Wish;

/// Between SIGTERM and SIGKILL.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// How often the size of the output is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Docker may be away for as long as a restart of it takes.
const DOCKER_AWAY: Duration = Duration::from_secs(120);
/// Docker that is being stopped ends the containers first, gives them up to 15 seconds, and goes itself then.
const DOCKER_STOPS: Duration = Duration::from_secs(16);
/// Exit codes of a process that was killed: by SIGKILL, by SIGTERM, with everything around it.
const KILLED: [i64; 3] = [137, 143, 255];

/// What a run may use up.
pub(super) struct Limits {
    time: Duration,
    time_reason: Reason,
    output: u64,
    pub(super) log: u64,
}

impl Limits {
    pub(super) fn of(grant: &Grant, log: u64) -> Self {
        let output = grant.spec.resources.output.bytes();
        let (time, time_reason) = match grant.budget {
            Some(budget) if budget < grant.time => (budget, Reason::BudgetExhausted),
            _ => (grant.time, Reason::TimeLimit),
        };
        Self { time: time.duration(), time_reason, output, log }
    }

    /// Of what is over, and has only its log left.
    pub(super) fn of_log(log: u64) -> Self {
        Self { time: Duration::MAX, time_reason: Reason::TimeLimit, output: u64::MAX, log }
    }
}

/// Why the worker stopped the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// Somebody wanted it: the consumer, the owner, or the machine whose GPU is gone.
    Wish(Wish),
    /// A limit was reached.
    Limit(Reason),
}

/// How a run ended.
pub(super) struct Ending {
    pub(super) code: i64,
    pub(super) out_of_memory: bool,
    pub(super) stopped: Option<Stop>,
    pub(super) run: Millis,
}

/// A container under watch: its ending, and its log beside that. The two are waited for separately, since a log can only
/// be passed on while the broker is there.
pub(super) struct Watched<'a> {
    tools: &'a Tools,
    job: JobId,
    container: &'a Container,
    limits: Limits,
    began: Instant,
    flood: watch::Sender<bool>,
    over: watch::Sender<bool>,
}

impl<'a> Watched<'a> {
    pub(super) fn new(tools: &'a Tools, job: JobId, container: &'a Container, limits: Limits) -> Self {
        let (flood, over) = (watch::Sender::new(false), watch::Sender::new(false));
        Self { tools, job, container, limits, began: Instant::now(), flood, over }
    }

    /// One that is over already.
    pub(super) fn ended(tools: &'a Tools, job: JobId, container: &'a Container, limits: Limits) -> Self {
        let watched = Self::new(tools, job, container, limits);
        watched.over.send_replace(true);
        watched
    }

    /// Watches until the container has ended.
    pub(super) async fn ending(&self, wish: watch::Receiver<Wish>) -> Result<Ending, Problem> {
        let ending = self.end(wish).await;
        self.over.send_replace(true);
        ending
    }

    async fn end(&self, wish: watch::Receiver<Wish>) -> Result<Ending, Problem> {
        let flooded = self.flood.subscribe();
        let (exit, stopped) = watch_over(self.tools, self.container, &self.limits, wish, flooded, self.began).await?;
        // Its log is whole, whatever else there is to find out.
        self.over.send_replace(true);
        conclude(self.tools, self.container, exit, stopped, self.began).await
    }

    /// Passes its log on, to the end.
    pub(super) async fn pass_on(&self) {
        output::follow(self.tools, self.job, self.container, self.limits.log, &self.flood, self.over.subscribe()).await;
    }
}

async fn watch_over(
    tools: &Tools,
    container: &Container,
    limits: &Limits,
    mut wish: watch::Receiver<Wish>,
    mut flooded: watch::Receiver<bool>,
    began: Instant,
) -> Result<(Exit, Option<Stop>), Problem> {
    let exited = wait(tools, container, began);
    tokio::pin!(exited);
    // A run that was taken up again has used some of its time already.
    let before = if container.fresh { Duration::ZERO } else { ran_before(tools, container).await };
    let deadline = began + limits.time.saturating_sub(before);
    let stop = tokio::select! {
        exit = &mut exited => return Ok((exit?.after(before), None)),
        () = sleep_until(deadline) => Stop::Limit(limits.time_reason),
        wish = wanted(&mut wish) => Stop::Wish(wish),
        () = until(&mut flooded, |flooded| *flooded) => Stop::Limit(Reason::LogFlood),
        () = outgrown(container, limits.output) => Stop::Limit(Reason::OutputTooLarge),
    };
    let grace = match stop {
        Stop::Wish(Wish::Preempt) => tools.reclaim_grace,
        _ => STOP_GRACE,
    };
    let stopping = async {
        container.stop(grace).await;
        std::future::pending::<()>().await;
    };
    let exit = tokio::select! {
        exit = &mut exited => exit?,
        () = stopping => return Err(Problem::new(Reason::Internal, "waiting for a container ended")),
    };
    Ok((exit.after(before), Some(stop)))
}

/// What is wanted of the attempt, once that is not to go on.
async fn wanted(wish: &mut watch::Receiver<Wish>) -> Wish {
    until(wish, |wish| *wish != Wish::Keep).await;
    *wish.borrow()
}

/// Returns once the value is as wanted; never, if nobody can change it any more.
pub(super) async fn until<T>(value: &mut watch::Receiver<T>, wanted: impl FnMut(&T) -> bool) {
    let seen = value.wait_for(wanted).await.is_ok();
    if !seen {
        std::future::pending::<()>().await;
    }
}

/// Returns once the output is larger than it may be.
async fn outgrown(container: &Container, most: u64) {
    loop {
        sleep(LOOK).await;
        if outputs::size(container.output.clone()).await > most {
            return;
        }
    }
}

async fn conclude(
    tools: &Tools,
    container: &Container,
    exit: Exit,
    stopped: Option<Stop>,
    began: Instant,
) -> Result<Ending, Problem> {
    let Exit { code, mut away, before, watched } = exit;
    let watched = Millis::of(watched + before);
    // A clean end that was watched from its beginning needs no second look.
    if code == 0 && before.is_zero() {
        return Ok(Ending { code, out_of_memory: false, stopped, run: watched });
    }
    let state = loop {
        match state(tools, container).await {
            Ok(state) => break state,
            Err(e) => away.bear(e).await?,
        }
    };
    // The flag is also set when only a child was killed and the job went on.
    let out_of_memory = state.oom_killed == Some(true) && code == 137;
    if stopped.is_none() && !out_of_memory && code != 0 {
        let (killed, dir) = (KILLED.contains(&code), container.output.parent().unwrap_or(&container.output));
        // Whoever hears SIGTERM ends with whatever code; nobody saw it alive after the outage.
        let gone_meanwhile = away.since.is_some() || boot::was_another(dir) || (killed && unwatched(&state, began));
        if gone_meanwhile || (killed && docker_goes(tools).await) {
            return Err(Problem::new(Reason::Interrupted, "Docker was stopped, and took the job with it"));
        }
    }
    let run = if before.is_zero() { watched } else { span(&state).unwrap_or(watched) };
    Ok(Ending { code, out_of_memory, stopped, run })
}

async fn state(tools: &Tools, container: &Container) -> Result<ContainerState, Error> {
    Ok(tools.docker.inspect_container(&container.name, None).await?.state.unwrap_or_default())
}

/// Whether it ended while this worker was not there: Docker may have been restarted meanwhile, too.
fn unwatched(state: &ContainerState, began: Instant) -> bool {
    use gpubnb_events::{Clock as _, SystemClock};
    let since = |ended| SystemClock.now().since(ended) > Millis::of(began.elapsed() + Duration::from_secs(1));
    moment(state.finished_at.as_deref()).is_some_and(since)
}

/// Whether Docker is being stopped: a moment after its containers it is gone itself. One that is slow is still there.
async fn docker_goes(tools: &Tools) -> bool {
    let deadline = Instant::now() + DOCKER_STOPS;
    let mut silent = 0;
    while Instant::now() < deadline && silent < 3 {
        silent = if tools.docker.ping().await.is_err() { silent + 1 } else { 0 };
        sleep(LOOK).await;
    }
    silent == 3
}

fn moment(text: Option<&str>) -> Option<Timestamp> {
    text.and_then(|text| text.parse().ok()).filter(|at: &Timestamp| *at > Timestamp::EPOCH)
}

fn span(state: &ContainerState) -> Option<Millis> {
    let started = moment(state.started_at.as_deref())?;
    Some(moment(state.finished_at.as_deref())?.since(started))
}

/// How long the container had run when it was looked at first.
async fn ran_before(tools: &Tools, container: &Container) -> Duration {
    use gpubnb_events::{Clock as _, SystemClock};
    let Ok(state) = state(tools, container).await else { return Duration::ZERO };
    let until = moment(state.finished_at.as_deref()).unwrap_or_else(|| SystemClock.now());
    let ran = moment(state.started_at.as_deref()).map_or(Duration::ZERO, |started| until.since(started).duration());
    // What it has run since this worker started it is not "before".
    if ran < Duration::from_secs(1) { Duration::ZERO } else { ran }
}

/// How a container ended.
struct Exit {
    code: i64,
    away: Away,
    /// How long it had run before it was watched, and since.
    before: Duration,
    watched: Duration,
}

impl Exit {
    fn after(self, before: Duration) -> Self {
        Self { before, ..self }
    }
}

/// The container's exit code. Waits through restarts of Docker.
async fn wait(tools: &Tools, container: &Container, began: Instant) -> Result<Exit, Problem> {
    let mut away = Away::default();
    let code = loop {
        let mut waiting = tools.docker.wait_container(&container.name, None::<WaitContainerOptions>);
        match waiting.next().await {
            Some(Ok(response)) => break response.status_code,
            Some(Err(Error::DockerContainerWaitError { code, .. })) => break code,
            Some(Err(Error::RequestTimeoutError)) | None => {}
            Some(Err(e)) => {
                away.bear(e).await?;
                // It has outlived that: what it ends with later is its own.
                if state(tools, container).await.is_ok_and(|state| state.running == Some(true)) {
                    away = Away::default();
                }
            }
        }
    };
    Ok(Exit { code, away, before: Duration::ZERO, watched: began.elapsed() })
}

/// How long Docker has been away, if it was.
#[derive(Default)]
struct Away {
    since: Option<Instant>,
}

impl Away {
    /// Waits a moment, for Docker to be asked again; or says that it is of no use.
    async fn bear(&mut self, e: Error) -> Result<(), Problem> {
        if matches!(e, Error::DockerResponseServerError { status_code: 404, .. }) {
            return Err(Problem::new(Reason::RuntimeMisconfigured, "the container was removed by someone else"));
        }
        if self.since.get_or_insert_with(Instant::now).elapsed() > DOCKER_AWAY {
            return Err(Problem::new(Reason::RuntimeMisconfigured, e));
        }
        warn!(error = %e, "Docker does not answer: asked again");
        sleep(Duration::from_secs(1)).await;
        Ok(())
    }
}
