//! MARKET in memory, with the broker's guard: an append succeeds only if nobody has written to the aggregate since,
//! events and unreadable messages alike. Message ids are not remembered, as if the duplicate window were over.

use std::collections::HashMap;

use gpubnb_domain::{Settings, job::Job};
use gpubnb_events::{
    Actor, Aggregate, Event, JobId, Proposal, Recorded, Seq, Timestamp,
    message::{Envelope, Quarantined},
};

/// The outcome of an append.
pub(crate) enum Appended {
    /// The event was written.
    Now(Seq),
    /// The guard refused, because this very event is the last of its aggregate: an earlier answer was lost.
    Before(Seq),
    /// The guard refused.
    Conflict(Seq),
}

/// The log.
#[derive(Default)]
pub(crate) struct Broker {
    log: Vec<Recorded>,
    last: HashMap<Aggregate, Seq>,
}

impl Broker {
    /// Appends one decision under its guard.
    pub(crate) fn append(&mut self, proposal: &Proposal, actor: Actor, at: Timestamp) -> Appended {
        let aggregate = proposal.event.aggregate();
        let last = self.last.get(&aggregate).copied().unwrap_or_default();
        if last != proposal.expected {
            let same = self.get(last).and_then(Recorded::envelope).is_some_and(|e| e.id == proposal.id);
            return if same { Appended::Before(last) } else { Appended::Conflict(last) };
        }
        let (id, cause, correlation) = (proposal.id.clone(), proposal.cause, proposal.event.job());
        let envelope = Envelope { id, actor, cause, correlation };
        Appended::Now(self.write(at, Some(aggregate), Ok((envelope, proposal.event.clone()))))
    }

    /// Writes a message that no fold reads. The guard counts it, if it has an aggregate's subject.
    pub(crate) fn stray(&mut self, aggregate: Option<Aggregate>, at: Timestamp) -> Seq {
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

    /// All messages.
    pub(crate) fn log(&self) -> &[Recorded] {
        &self.log
    }

    /// The last sequence.
    pub(crate) fn last_seq(&self) -> Seq {
        Seq(self.log.len() as u64)
    }

    /// One message.
    pub(crate) fn get(&self, seq: Seq) -> Option<&Recorded> {
        self.log.get(usize::try_from(seq.0.checked_sub(1)?).ok()?)
    }

    /// The messages after a sequence.
    pub(crate) fn after(&self, seq: Seq) -> &[Recorded] {
        self.log.get(usize::try_from(seq.0).unwrap_or(usize::MAX)..).unwrap_or_default()
    }

    /// Loads a job from its own messages, settled or not, as the executor loads a job that has left memory.
    pub(crate) fn load(&self, id: JobId, settings: &Settings) -> Option<Job> {
        let aggregate = Some(Aggregate::Job(id));
        let own: Vec<Recorded> = self.log.iter().filter(|r| r.aggregate == aggregate).cloned().collect();
        let submission = own.iter().find_map(|recorded| match recorded.event()? {
            Event::JobAssigned(e) => Some(e.submission),
            Event::Cancelled(_) | Event::Failed(_) => recorded.envelope()?.cause,
            _ => None,
        });
        gpubnb_domain::rebuild(self.get(submission?)?, &own, settings)
    }
}
