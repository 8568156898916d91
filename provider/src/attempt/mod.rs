//! One attempt at a job on this machine, from the job message to the recorded outcome.
//!
//! The order is the safety: accept, have `Started` recorded and the container made, and only then start it.
//! Dropping a running attempt (the worker stops) tears nothing down: the container goes on and is taken up
//! again by its labels.

mod boot;
mod cache;
mod container;
mod images;
mod inputs;
mod lines;
mod outbox;
mod output;
mod outputs;
mod quota;
mod supervise;
mod upload;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_nats::jetstream::Context;
use bollard::Docker;
use gpubnb_events::{
    Clock as _, JobId, Lease, MachineId, SystemClock,
    command::{Accept, Done, Grant, Outcome, Report, Start},
    event::Reason,
    manifest,
    spec::{Artifact, Hardware, Usage},
};
use gpubnb_runtime::trace::About;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument as _, Span, info, warn};

pub(crate) use self::{
    cache::CacheLimits,
    container::take_up_again,
    images::{Allowed, Images},
    quota::Outputs,
};
use self::{
    container::Container,
    outbox::Outbox,
    output::Of,
    supervise::{Ending, Limits, Stop, Watched},
};
use crate::{
    hand::{Hand, Wish},
    identity::Identity,
    platform::Platform,
};

/// What every attempt works with.
pub(crate) struct Tools {
    pub(crate) machine: MachineId,
    pub(crate) docker: Docker,
    pub(crate) images: Images,
    pub(crate) js: Context,
    pub(crate) platform: Platform,
    pub(crate) hand: Arc<Hand>,
    /// Where each attempt has its directory.
    pub(crate) leases: PathBuf,
    pub(crate) hardware: Hardware,
    pub(crate) runtime: Option<String>,
    pub(crate) cdi: bool,
    pub(crate) max_log: u64,
    /// What a job gets to end by itself when its owner wants the machine.
    pub(crate) reclaim_grace: Duration,
    pub(crate) outputs: Outputs,
    pub(crate) http: reqwest::Client,
    pub(crate) identity: Arc<Identity>,
}

/// A failure of the attempt: its name, and more of it for people.
#[derive(Debug)]
pub(crate) struct Problem {
    reason: Reason,
    detail: String,
}

impl Problem {
    fn new(reason: Reason, detail: impl std::fmt::Display) -> Self {
        Self { reason, detail: detail.to_string() }
    }
}

/// One attempt.
pub(crate) struct Attempt {
    tools: Arc<Tools>,
    job: JobId,
    lease: Lease,
    wish: watch::Receiver<Wish>,
    /// The room that its output had: the next job may want as much.
    room: Option<u64>,
}

/// What will be reported.
struct Outcomes {
    outcome: Outcome,
    outputs: Vec<Artifact>,
    usage: Option<Usage>,
}

impl From<Problem> for Outcomes {
    fn from(problem: Problem) -> Self {
        let Problem { reason, detail } = problem;
        // Its code never ran, or nobody can tell for how long: nothing is to be paid for.
        Self { outcome: Outcome::Failed { reason, detail }, outputs: Vec::new(), usage: Some(Usage::default()) }
    }
}

impl Outcomes {
    /// Stopped before its code ran.
    fn never_ran(wish: Wish) -> Self {
        Self { outcome: stopped_by(wish), outputs: Vec::new(), usage: Some(Usage::default()) }
    }
}

/// The outcome of an attempt that was stopped because somebody wanted that.
fn stopped_by(wish: Wish) -> Outcome {
    let failed = |reason| Outcome::Failed { reason, detail: String::new() };
    match wish {
        Wish::Preempt => failed(Reason::Preempted),
        Wish::GpuLost => failed(Reason::GpuLost),
        Wish::Keep | Wish::Cancel | Wish::Abandon => Outcome::Cancelled,
    }
}

impl Attempt {
    pub(crate) fn new(tools: Arc<Tools>, job: JobId, lease: Lease, wish: watch::Receiver<Wish>) -> Self {
        Self { tools, job, lease, wish, room: None }
    }

    /// Runs it until its outcome is recorded, or the platform wants nothing more of it.
    pub(crate) async fn run(mut self) {
        let mut wish = self.wish.clone();
        tokio::select! {
            () = supervise::until(&mut wish, |wish| *wish == Wish::Abandon) => {
                info!(job = %self.job, lease = self.lease.0.0, "abandoned: the lease is no longer live");
            }
            () = self.live() => {}
        }
        self.tools.hand.release(self.lease);
        self.clean_up();
    }

    /// Removes what is left of it, beside whatever comes next. Docker works hard at it: the bill goes first.
    fn clean_up(&self) {
        let (tools, lease, room) = (Arc::clone(&self.tools), self.lease, self.room);
        tokio::spawn(async move {
            let mut pause = REMOVE_AFTER;
            for _ in 0..REMOVE_TRIES {
                tokio::time::sleep(pause).await;
                match container::remove(&tools, lease).await {
                    Ok(()) => break,
                    Err(e) => warn!(lease = lease.0.0, error = %e, "its container could not be removed yet"),
                }
                pause = (pause * 4).min(REMOVE_PAUSE);
            }
            if let Some(room) = room {
                tools.outputs.prepare(room).await;
            }
        });
    }

    async fn live(&mut self) {
        let dir = container::directory(&self.tools, self.lease);
        let outbox = match Outbox::read(&dir) {
            Some(outbox) => {
                // It had ended when the worker did; what it said may not have been passed on.
                self.rest_of_log().await;
                outbox
            }
            None => match self.attempt(&dir).await {
                Some(outbox) => outbox,
                None => return,
            },
        };
        self.say(outbox, &dir).await;
    }

    /// Runs it. `None` where it was not for us to run.
    async fn attempt(&mut self, dir: &Path) -> Option<Outbox> {
        let (job, lease) = (self.job, self.lease);
        match self.tools.platform.insist::<Grant>("accept", &Accept { job, lease }).await {
            Ok(grant) => {
                self.room = Some(grant.spec.resources.output.bytes());
                let ran = self.execute(&grant, dir).await;
                Some(ran.unwrap_or_else(|problem| self.outbox(&grant, problem.into(), dir)))
            }
            Err(refusal) => {
                info!(%job, lease = lease.0.0, %refusal, "not accepted");
                None
            }
        }
    }

    /// What is to be said of it, kept until it is said.
    fn outbox(&self, grant: &Grant, outcomes: Outcomes, dir: &Path) -> Outbox {
        let (job, lease) = (self.job, self.lease);
        let Outcomes { outcome, outputs, usage } = outcomes;
        info!(%job, lease = lease.0.0, ?outcome, "ended");
        let signature = self.sign(&outputs);
        let report = Report { job, lease, outcome, outputs, usage, occurred_at: SystemClock.now(), signature };
        let upload = grant.upload.clone().filter(|_| !report.outputs.is_empty());
        let outbox = Outbox { report, upload };
        outbox.keep_beside(dir);
        outbox
    }

    async fn rest_of_log(&self) {
        let container = Container::ended(&self.tools, self.lease);
        let limits = Limits::of_log(self.tools.max_log);
        Watched::ended(&self.tools, self.job, &container, limits).pass_on().await;
    }

    /// The machine's signature over what the attempt left.
    fn sign(&self, outputs: &[Artifact]) -> Option<String> {
        let text = manifest::signed_text(self.job, self.lease, outputs);
        let signed = self.tools.identity.keys.sign(&text);
        signed.inspect_err(|e| warn!(error = format!("{e:#}"), "the manifest is not signed")).ok()
    }

    /// Puts its files and says how it ended, for as long as that takes: the market may be away for hours.
    async fn say(&self, outbox: Outbox, dir: &Path) {
        let (job, lease) = (self.job, self.lease);
        self.tools.hand.ended(lease, outbox.report.occurred_at);
        if let Some(permit) = &outbox.upload {
            let of = Of { tools: &self.tools, job, lease };
            upload::put_all(of, permit, &dir.join("output"), &outbox.report.outputs).await;
        }
        if let Err(refusal) = self.tools.platform.insist::<Done>("report", &outbox.report).await {
            warn!(%job, lease = lease.0.0, %refusal, "the report was refused");
        }
    }

    async fn execute(&mut self, grant: &Grant, dir: &Path) -> Result<Outbox, Problem> {
        let (tools, job, lease) = (&*self.tools, self.job, self.lease);
        let mut wish = self.wish.clone();
        let prepare = async {
            let image_id = Container::image(tools, job, lease, grant).await?;
            // Recorded while the container is made: neither lets the code run without the other.
            let start = Start { job, lease, image_digest: image_id.clone() };
            let recorded = tools.platform.insist::<Done>("start", &start);
            let (made, recorded) = tokio::join!(Container::make(tools, job, lease, grant, image_id), recorded);
            Ok((made?, recorded))
        };
        let (container, recorded) = tokio::select! {
            () = supervise::until(&mut wish, |wish| *wish != Wish::Keep) => {
                let wish = *self.wish.borrow();
                return Ok(self.outbox(grant, Outcomes::never_ran(wish), dir));
            }
            prepared = prepare => prepared?,
        };
        if let Err(refusal) = recorded {
            // It is being cancelled, or is over: whichever it is, the platform knows what to make of this.
            info!(%job, lease = lease.0.0, %refusal, "not started");
            return Ok(self.outbox(grant, Outcomes::never_ran(Wish::Cancel), dir));
        }
        container.start().await?;
        let watched = Watched::new(tools, job, &container, Limits::of(grant, tools.max_log));
        let ended = async {
            let ending = watched.ending(self.wish.clone()).await;
            let concluded = match ending {
                Ok(ending) => self.conclude(grant, &container, ending).await,
                Err(problem) => problem.into(),
            };
            self.outbox(grant, concluded, dir)
        };
        let (outbox, ()) = tokio::join!(ended, watched.pass_on());
        Ok(outbox)
    }

    async fn conclude(&self, grant: &Grant, container: &Container, ending: Ending) -> Outcomes {
        let usage = Some(Usage { run: ending.run });
        let failed = |reason, detail: String| Outcome::Failed { reason, detail };
        let outcome = match (ending.stopped, ending.code) {
            (Some(Stop::Wish(wish)), _) => stopped_by(wish),
            (Some(Stop::Limit(reason)), _) => failed(reason, String::new()),
            (None, 0) => Outcome::Completed,
            (None, _) if ending.out_of_memory => failed(Reason::OutOfMemory, String::new()),
            (None, EXCEEDED_FILE_SIZE) => failed(Reason::OutputTooLarge, "a file grew past the limit".to_owned()),
            // It was told that there is no room, and gave up.
            (None, _) if quota::is_full(&container.output) => {
                failed(Reason::OutputTooLarge, "there was no room left in /output".to_owned())
            }
            (None, code) => failed(Reason::NonZeroExit { code }, String::new()),
        };
        let most = grant.spec.resources.output.bytes();
        match outputs::collect(container.output.clone(), most).await {
            Ok(outputs) => Outcomes { outcome, outputs, usage },
            Err(problem) if outcome == Outcome::Completed => {
                Outcomes { outcome: failed(problem.reason, problem.detail), outputs: Vec::new(), usage }
            }
            Err(_) => Outcomes { outcome, outputs: Vec::new(), usage },
        }
    }
}

/// Pause between a report and the removal of its container.
const REMOVE_AFTER: Duration = Duration::from_millis(50);
/// How often, and with what longest pause, a removal is tried; the next start of the worker tries it again.
const REMOVE_TRIES: u32 = 100;
const REMOVE_PAUSE: Duration = Duration::from_secs(60);
/// 128 + SIGXFSZ: the kernel's answer to a file past its limit.
const EXCEEDED_FILE_SIZE: i64 = 153;

/// Every line that is logged of an attempt says of which.
pub(crate) fn attempted(tools: &Tools, job: JobId, lease: Lease) -> Span {
    About { job: Some(job), machine: Some(tools.machine), lease: Some(lease) }.logged()
}

/// Spawns an attempt that has no job message: one that was taken up again.
fn spawn(tools: &Arc<Tools>, tasks: &TaskTracker, shutdown: &CancellationToken, job: JobId, lease: Lease) {
    let wish = tools.hand.take_again(job, lease);
    let attempt = Attempt::new(Arc::clone(tools), job, lease, wish);
    let stop = shutdown.clone();
    let run = async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = attempt.run() => {}
        }
    };
    tasks.spawn(run.instrument(attempted(tools, job, lease)));
}
