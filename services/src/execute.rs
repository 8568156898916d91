//! From a command to an event: decide, append under the guard, and after a conflict catch up and decide again. This is
//! the only retry loop of the services.

use std::sync::Arc;

use gpubnb_domain::{Command, Decision, Settings, World, job::Job};
use gpubnb_events::{Actor, Aggregate, Chain, Clock, Event, JobId, Refusal, RefusalKind, Seq};
use gpubnb_log::{AppendError, Log, ReadError};
use gpubnb_runtime::{
    metric,
    nats::connected,
    rpc::Failure,
    trace::{self, About, SpanKind, Step},
};
use tracing::{debug, info};

use crate::{aggregate_lock::AggregateLocks, phase_spans::PhaseSpan, replica::Replica};

/// How often a command is decided before it is refused because of conflicts.
const ATTEMPTS: u32 = 5;

/// Executes commands.
#[derive(Clone)]
pub(crate) struct Executor {
    pub(crate) log: Log,
    pub(crate) replica: Arc<Replica>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) locks: AggregateLocks,
}

impl Executor {
    /// Executes one command, and returns the sequence of its event, written now or before.
    pub(crate) async fn execute(&self, actor: Actor, command: &Command) -> Result<Seq, Failure> {
        let span = command.job().and_then(|job| self.replica.read(|w| w.job(job).map(PhaseSpan::of)));
        let about = span.map_or_else(|| About { job: command.job(), ..About::default() }, |span| span.about());
        let parent = trace::current().or_else(|| about.job.map(trace::of_job)).unwrap_or_default();
        let step = Step::now(format!("command {}", command.name()), SpanKind::Server);
        let seq = trace::within(&parent, step, about, Box::pin(self.decide(actor, command))).await?;
        if let (Some(job), Some(span)) = (command.job(), span) {
            self.replica.read(|w| span.record_if_over(job, w, self.clock.now()));
        }
        Ok(seq)
    }

    /// Decides and appends, and does both again after a conflict.
    async fn decide(&self, actor: Actor, command: &Command) -> Result<Seq, Failure> {
        let _lock = self.locks.lock(command.aggregate()).await;
        let mut fresh = false;
        for _ in 0..ATTEMPTS {
            if !connected(&self.log.client()) {
                return Err(Failure::Unavailable("the broker is away; try again, with the same id".to_owned()));
            }
            let absent = self.absent(command).await?;
            let now = self.clock.now();
            let decision = self.replica.read(|w| w.decide(actor, command, absent.as_ref(), now, &self.settings));
            let proposal = match decision {
                Ok(Decision::Already(seq)) => return Ok(seq),
                Ok(Decision::Append(proposal)) => proposal,
                // Refuse only on the newest state: another replica may have seen more.
                Err(_) if !fresh && self.catch_up().await? => {
                    fresh = true;
                    continue;
                }
                Err(refusal) => return Err(Failure::refused(refusal)),
            };
            let (event, about) = (&proposal.event, About { job: proposal.event.job(), ..About::default() });
            let step = Step::now(format!("append {}", event.name()), SpanKind::Producer);
            let parent = trace::current().unwrap_or_default();
            match trace::within(&parent, step, about, self.log.append(&proposal, actor)).await {
                Ok(appended) => {
                    let wire_name = proposal.event.wire_name();
                    metrics::counter!(metric::APPENDED, "event" => proposal.event.name()).increment(1);
                    info!(seq = appended.seq.0, %actor, aggregate = %proposal.event.aggregate(), wire_name, "appended");
                    self.replica.wait_for(appended.seq).await;
                    return Ok(appended.seq);
                }
                Err(AppendError::Conflict { last }) => {
                    debug!(last = last.0, "conflict: deciding again");
                    metrics::counter!(metric::CONFLICTS).increment(1);
                    self.replica.wait_for(last).await;
                }
                Err(e @ (AppendError::Unavailable(_) | AppendError::Encoding(_))) => {
                    let message = "the log of events cannot be written now; try again, with the same id";
                    return Err(Failure::unavailable(message, &e));
                }
                Err(e @ AppendError::TooLarge(_)) => {
                    info!(error = %Chain(&e), command = command.name(), "refused");
                    let message = "This is too large for the log of events. Make the request smaller.";
                    return Err(Refusal::new("TooLarge", RefusalKind::Invalid, message).into());
                }
            }
        }
        let message = "Others changed the same thing at the same time. Try again.";
        Err(Refusal::new("Conflict", RefusalKind::Conflict, message).into())
    }

    /// Waits until the replica has folded everything in the log. Returns whether there was anything to wait for. Fails
    /// where the events did not arrive in time, for nothing may be concluded from an older state.
    pub(crate) async fn catch_up(&self) -> Result<bool, Failure> {
        let last = self.log.last_seq().await?;
        if self.replica.read(World::applied) >= last {
            return Ok(false);
        }
        if self.replica.wait_for(last).await {
            return Ok(true);
        }
        Err(Failure::Unavailable(format!("this replica has not reached sequence {last} yet")))
    }

    /// Waits until the replica has folded a sequence that a machine names: the machine's job message may arrive before
    /// this replica has folded the assignment. A sequence that the log does not have is no lease, and is not waited
    /// for.
    pub(crate) async fn reached(&self, seq: Seq) -> Result<(), Failure> {
        if self.replica.read(World::applied) >= seq || self.log.last_seq().await? < seq {
            return Ok(());
        }
        if self.replica.wait_for(seq).await {
            return Ok(());
        }
        Err(Failure::Unavailable(format!("this replica has not reached sequence {seq} yet")))
    }

    /// The command's job, loaded from the log if the job has left memory.
    async fn absent(&self, command: &Command) -> Result<Option<Job>, Failure> {
        let Some(id) = command.job() else { return Ok(None) };
        if self.replica.read(|w| w.job(id).is_some()) {
            return Ok(None);
        }
        Ok(self.load(id).await?)
    }

    /// A job from the log, settled or not.
    pub(crate) async fn load(&self, id: JobId) -> Result<Option<Job>, ReadError> {
        let own = self.log.load(Aggregate::Job(id)).await?;
        let submission = own.iter().find_map(|recorded| match recorded.event()? {
            Event::JobAssigned(e) => Some(e.submission),
            Event::Cancelled(_) | Event::Failed(_) => recorded.envelope()?.cause,
            _ => None,
        });
        let Some(submission) = submission else { return Ok(None) };
        let Some(submission) = self.log.get(submission).await? else { return Ok(None) };
        Ok(gpubnb_domain::rebuild(&submission, &own, &self.settings))
    }
}
