//! Turns a command into an event: decides, appends under the guard, and after a conflict catches up and decides again.
//! This is the only retry loop of the services.
//!
//! The guard is the aggregate's last sequence that the decision saw. The broker refuses the append if the aggregate has
//! a newer event.

use std::sync::Arc;

use gpubnb_domain::{Command, Decision, DomainError, Settings, World, job::Job};
use gpubnb_events::{Actor, Aggregate, Chain, Clock, Event, JobId, Refusal, RefusalKind, Seq};
use gpubnb_log::{AppendError, Log, ReadError};
use gpubnb_runtime::{
    metric,
    nats::is_connected,
    rpc::RpcError,
    trace::{self, SpanFields, SpanKind, Step},
};
use tracing::{debug, info};

use crate::{aggregate_lock::AggregateLocks, phase_spans::PhaseSpan, replica::Replica};

/// Number of times that a command is decided before it is refused because of conflicts.
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
    /// Executes one command, and returns the sequence of its event. A repeated command returns the sequence of the
    /// first event again.
    pub(crate) async fn execute(&self, actor: Actor, command: &Command) -> Result<Seq, RpcError> {
        // The phase of the job before the command, such as waiting or running. If the command ends the phase, a span of
        // the job's trace is recorded for it.
        let span = command.job().and_then(|job| self.replica.read(|w| w.job(job).map(PhaseSpan::of)));
        let fields =
            span.map_or_else(|| SpanFields { job: command.job(), ..SpanFields::default() }, |span| span.fields());
        let parent = trace::current_context().or_else(|| fields.job.map(trace::job_context)).unwrap_or_default();
        let step = Step::now(format!("command {}", command.name()), SpanKind::Server);
        let seq = trace::in_span(&parent, step, fields, Box::pin(self.decide(actor, command))).await?;
        if let (Some(job), Some(span)) = (command.job(), span) {
            self.replica.read(|w| span.record_if_over(job, w, self.clock.now()));
        }
        Ok(seq)
    }

    /// Decides and appends. Repeats both after a conflict.
    async fn decide(&self, actor: Actor, command: &Command) -> Result<Seq, RpcError> {
        let _lock = self.locks.lock(command.aggregate()).await;
        let mut has_caught_up = false;
        for _ in 0..ATTEMPTS {
            if !is_connected(&self.log.client()) {
                return Err(RpcError::Unavailable("the broker is away; try again, with the same id".to_owned()));
            }
            let evicted = self.evicted_job(command).await?;
            let now = self.clock.now();
            let decision = self.replica.read(|w| w.decide(actor, command, evicted.as_ref(), now, &self.settings));
            let proposal = match decision {
                Ok(Decision::AlreadyDone(seq)) => return Ok(seq),
                Ok(Decision::Append(proposal)) => proposal,
                // Refuse only on the newest state: another replica may have appended events.
                Err(_) if !has_caught_up && self.catch_up().await? => {
                    has_caught_up = true;
                    continue;
                }
                Err(refusal) => return Err(RpcError::refused(refusal)),
            };
            let (event, fields) = (&proposal.event, SpanFields { job: proposal.event.job(), ..SpanFields::default() });
            let step = Step::now(format!("append {}", event.name()), SpanKind::Producer);
            let parent = trace::current_context().unwrap_or_default();
            match trace::in_span(&parent, step, fields, self.log.append(&proposal, actor)).await {
                Ok(appended) => {
                    let wire_name = proposal.event.wire_name();
                    metrics::counter!(metric::APPENDED, "event" => proposal.event.name()).increment(1);
                    info!(seq = appended.seq.0, %actor, aggregate = %proposal.event.aggregate(), wire_name, "appended");
                    let is_applied = self.replica.wait_for(appended.seq).await;
                    // The guard of a submission is its account, so two accounts can submit one id: the first gets it.
                    let submitted = match event {
                        Event::JobSubmitted(e) => Some((e.job, "job")),
                        Event::BatchSubmitted(e) => Some((e.batch.as_job(), "batch")),
                        _ => None,
                    };
                    if let Some((id, field)) = submitted {
                        if !is_applied {
                            let message = "the submission is not confirmed yet; try again, with the same id";
                            return Err(RpcError::Unavailable(message.to_owned()));
                        }
                        if self.replica.read(|w| w.is_lost(id, appended.seq)) {
                            return Err(RpcError::refused(DomainError::IdReused(field)));
                        }
                    }
                    return Ok(appended.seq);
                }
                Err(AppendError::Conflict { last }) => {
                    debug!(last = last.0, "conflict: deciding again");
                    metrics::counter!(metric::CONFLICTS).increment(1);
                    self.replica.wait_for(last).await;
                }
                Err(e @ (AppendError::Unavailable(_) | AppendError::Encoding(_))) => {
                    let message = "the log of events cannot be written now; try again, with the same id";
                    return Err(RpcError::unavailable(message, &e));
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

    /// Waits until the replica has folded everything in the log. Returns true if there were events to wait for. Fails
    /// on a timeout, because nothing may be concluded from an older state.
    pub(crate) async fn catch_up(&self) -> Result<bool, RpcError> {
        let last = self.log.last_seq().await?;
        if self.replica.read(World::applied) >= last {
            return Ok(false);
        }
        if self.replica.wait_for(last).await {
            return Ok(true);
        }
        Err(RpcError::Unavailable(format!("this replica has not reached sequence {last} yet")))
    }

    /// Waits until the replica has folded `seq`, the lease that a machine names. The machine may get its job message
    /// before this replica has folded the assignment. Returns at once if the log has no such sequence: it is no lease.
    pub(crate) async fn wait_for_lease(&self, seq: Seq) -> Result<(), RpcError> {
        if self.replica.read(World::applied) >= seq || self.log.last_seq().await? < seq {
            return Ok(());
        }
        if self.replica.wait_for(seq).await {
            return Ok(());
        }
        Err(RpcError::Unavailable(format!("this replica has not reached sequence {seq} yet")))
    }

    /// The command's job, loaded from the log if the job has left memory.
    async fn evicted_job(&self, command: &Command) -> Result<Option<Job>, RpcError> {
        let Some(id) = command.job() else { return Ok(None) };
        if self.replica.read(|w| w.job(id).is_some()) {
            return Ok(None);
        }
        Ok(self.load(id).await?)
    }

    /// Loads a job from the log, also a settled job.
    pub(crate) async fn load(&self, id: JobId) -> Result<Option<Job>, ReadError> {
        let events = self.log.load(Aggregate::Job(id)).await?;
        // The submission is an event of the account. The job's own events name it: `JobAssigned` in a field, and the
        // end of a job that was never assigned as its cause.
        let submission = events.iter().find_map(|recorded| match recorded.event()? {
            Event::JobAssigned(e) => Some(e.submission),
            Event::Cancelled(_) | Event::Failed(_) => recorded.envelope()?.cause,
            _ => None,
        });
        let Some(submission) = submission else { return Ok(None) };
        let Some(submission) = self.log.get(submission).await? else { return Ok(None) };
        Ok(gpubnb_domain::rebuild_job(id, &submission, &events, &self.settings))
    }
}
