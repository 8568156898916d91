//! Trails: which events a thing's trail has, and what an actor sees of each event.

use gpubnb_events::{Actor, Aggregate, Event, Recorded, Seq};
use gpubnb_model::{
    timeline::{self, Timeline},
    touched,
};
use gpubnb_query::{
    request::{TrailOf, TrailQuery},
    view::TrailEvent,
};
use gpubnb_runtime::rpc::Failure;
use gpubnb_store::StoreError;

use super::{ReadModels, broken};
use crate::serve::access::{may_see, may_see_all, not_found, without_the_consumer};

/// Most events of a trail in one answer.
const MAX_TRAIL: u32 = 200;
/// So many events are looked at for one that strangers may see.
const HIDDEN: u32 = 8;

/// A part of a trail before its events are read back from the log.
pub(crate) struct TrailPart {
    /// Whose trail.
    of: Aggregate,
    /// Whether the actor sees what others do there, too.
    all: bool,
    /// Most events of the answer.
    limit: u32,
    /// The sequences of the events.
    pub(crate) sequences: Vec<Seq>,
    /// Where the next part begins; `None` at the end.
    pub(crate) next: Option<u32>,
}

impl TrailPart {
    /// The events that an actor sees of those that were read back, the newest where there are too many.
    pub(crate) fn seen(&self, read: &ReadModels, actor: Actor, recorded: Vec<Recorded>) -> Vec<TrailEvent> {
        let visible = |e: &Event| self.all || e.aggregate() == self.of;
        let events = recorded.iter().filter(|r| r.event().is_some_and(visible));
        let mut rows: Vec<_> = events.filter_map(|r| read.redacted(actor, r)).collect();
        rows.drain(..rows.len().saturating_sub(self.limit as usize));
        rows
    }
}

impl ReadModels {
    /// How many events a trail has.
    pub(crate) fn trail_length(&self, aggregate: Aggregate) -> Result<u32, StoreError> {
        timeline::length(&self.tables.of(&Timeline)?, aggregate)
    }

    /// Which events to read back for a part of a trail.
    pub(crate) fn trail_part(&self, actor: Actor, query: &TrailQuery) -> Result<TrailPart, Failure> {
        let of = match query.of {
            TrailOf::Job(id) => Aggregate::Job(self.job(actor, id)?.job),
            TrailOf::Account(id) if may_see(actor, id) => Aggregate::Account(id),
            TrailOf::Account(_) => return Err(not_found("account")),
            TrailOf::Machine(id) => Aggregate::Machine(id),
        };
        // What runs on a machine is its owner's and the consumer's affair: strangers see the machine's own events.
        let all = match of {
            Aggregate::Machine(id) => self.machine_row(id)?.is_some_and(|m| may_see(actor, m.owner)),
            _ => true,
        };
        let limit = query.limit.clamp(1, MAX_TRAIL);
        let table = self.tables.of(&Timeline).map_err(broken)?;
        let length = timeline::length(&table, of).map_err(broken)?;
        // What strangers do not see is left out after it was read: from the end, more is looked at for as many.
        let looked_at = if query.from_end && !all { limit.saturating_mul(HIDDEN) } else { limit };
        let from_end = length.saturating_sub(query.skip.saturating_add(looked_at));
        let skip = if query.from_end { from_end } else { query.skip };
        let sequences = timeline::sequences(&table, of, skip, looked_at).map_err(broken)?;
        let after = skip.saturating_add(limit);
        let next = (after < length && !query.from_end).then_some(after);
        Ok(TrailPart { of, all, limit, sequences, next })
    }

    /// The event as an actor may see it; `None` where the actor may not.
    pub(crate) fn seen(&self, actor: Actor, recorded: &Recorded) -> Option<TrailEvent> {
        let about = |of: &Aggregate| match of {
            Aggregate::Account(id) => may_see(actor, *id),
            Aggregate::Job(id) => self.job(actor, *id).is_ok(),
            Aggregate::Machine(_) => false,
        };
        // What a machine is and does on the market, everybody may see.
        let public = |e: &Event| matches!(e.aggregate(), Aggregate::Machine(_));
        let may = recorded.event().is_some_and(|e| public(e) || touched(e).iter().any(about)) || may_see_all(actor);
        self.redacted(actor, recorded).filter(|_| may)
    }

    /// The event, without the consumer's affairs where it is about a job that the actor may not see.
    fn redacted(&self, actor: Actor, recorded: &Recorded) -> Option<TrailEvent> {
        let event = TrailEvent::of(recorded)?;
        let own = event.job.is_none_or(|job| self.job(actor, job).is_ok());
        Some(if own { event } else { without_the_consumer(actor, event) })
    }
}
