//! The stream MARKET in memory, with the broker's guard: an append succeeds only if the last message of the aggregate
//! is still the one that the decider has seen. Strays, the messages that are not valid events, count as well. This
//! broker detects no duplicate message ids: the real broker does so only for a short time.

use std::collections::HashMap;

use gpubnb_domain::{Settings, job::Job};
use gpubnb_events::{
    Actor, Aggregate, Event, JobId, Proposal, Recorded, Seq, Timestamp,
    message::{Envelope, Quarantined},
};

/// The outcome of an append.
pub(crate) enum AppendOutcome {
    /// The event was written.
    Written(Seq),
    /// The guard refused the append, because the same event is already the last one of its aggregate. The answer to an
    /// earlier append was lost.
    AlreadyWritten(Seq),
    /// The guard refused the append. The last message of the aggregate has this sequence.
    Conflict(Seq),
}

/// The log.
#[derive(Default)]
pub(crate) struct Broker {
    log: Vec<Recorded>,
    last: HashMap<Aggregate, Seq>,
}

impl Broker {
    /// Appends the event of a decision, if the guard allows it.
    pub(crate) fn append(&mut self, proposal: &Proposal, actor: Actor, at: Timestamp) -> AppendOutcome {
        let aggregate = proposal.event.aggregate();
        let last = self.last.get(&aggregate).copied().unwrap_or_default();
        if last != proposal.expected {
            let written = self.get(last).and_then(|recorded| recorded.entry.as_ref().ok());
            let same = written.is_some_and(|(envelope, event)| envelope.id == proposal.id && *event == proposal.event);
            return if same { AppendOutcome::AlreadyWritten(last) } else { AppendOutcome::Conflict(last) };
        }
        let (id, cause, correlation) = (proposal.id.clone(), proposal.cause, proposal.event.job());
        let envelope = Envelope { id, actor, cause, correlation };
        AppendOutcome::Written(self.write(at, Some(aggregate), Ok((envelope, proposal.event.clone()))))
    }

    /// Writes a stray. The guard counts it, if it has the subject of an aggregate.
    pub(crate) fn write_stray(&mut self, aggregate: Option<Aggregate>, at: Timestamp) -> Seq {
        self.write(at, aggregate, Err(Quarantined("a stray".to_owned())))
    }

    fn write(
        &mut self,
        at: Timestamp,
        aggregate: Option<Aggregate>,
        entry: Result<(Envelope, Event), Quarantined>,
    ) -> Seq {
        let seq = self.last_seq().next();
        if let Some(aggregate) = aggregate {
            self.last.insert(aggregate, seq);
        }
        self.log.push(Recorded { seq, at, aggregate, entry, leaf: [0; 32] });
        seq
    }

    /// All messages of the log.
    pub(crate) fn log(&self) -> &[Recorded] {
        &self.log
    }

    /// The sequence of the last message.
    pub(crate) fn last_seq(&self) -> Seq {
        Seq(self.log.len() as u64)
    }

    /// The message with this sequence.
    pub(crate) fn get(&self, seq: Seq) -> Option<&Recorded> {
        self.log.get(usize::try_from(seq.0.checked_sub(1)?).ok()?)
    }

    /// The messages after a sequence.
    pub(crate) fn messages_after(&self, seq: Seq) -> &[Recorded] {
        self.log.get(usize::try_from(seq.0).unwrap_or(usize::MAX)..).unwrap_or_default()
    }

    /// Loads a job from the log, settled or not. The executor does the same for a job that has left memory
    /// (`services/src/execute.rs`).
    pub(crate) fn load_job(&self, id: JobId, settings: &Settings) -> Option<Job> {
        let aggregate = Some(Aggregate::Job(id));
        let messages: Vec<Recorded> = self.log.iter().filter(|r| r.aggregate == aggregate).cloned().collect();
        let submission = messages.iter().find_map(|recorded| match recorded.event()? {
            Event::JobAssigned(e) => Some(e.submission),
            Event::Cancelled(_) | Event::Failed(_) => recorded.envelope()?.cause,
            _ => None,
        });
        gpubnb_domain::rebuild_job(id, self.get(submission?)?, &messages, settings)
    }
}
