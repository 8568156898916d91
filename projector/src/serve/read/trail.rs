//! Trails: the events of a job, a machine or an account, and the part of each event that an actor sees.

use gpubnb_events::{Actor, Aggregate, Event, JobId, Recorded, Seq};
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
/// From the end of a machine's trail, this many events are looked at for each that a stranger asks for.
const HIDDEN: u32 = 8;

/// A part of a trail whose events are still to be read from the log.
pub(crate) struct TrailPart {
    /// The aggregate whose trail it is.
    of: Aggregate,
    /// True if the actor also sees the events of other aggregates in this trail, such as the jobs on a machine.
    all: bool,
    /// Most events of the answer.
    limit: u32,
    /// The sequences of the events.
    pub(crate) sequences: Vec<Seq>,
    /// The number of events before the next part; `None` at the end.
    pub(crate) next: Option<u32>,
}

impl TrailPart {
    /// The events that the actor sees of those that were read from the log; the newest, where there are more than the
    /// limit.
    pub(crate) fn seen(&self, read: &ReadModels, actor: Actor, recorded: Vec<Recorded>) -> Vec<TrailEvent> {
        let visible = |e: &Event| self.all || e.aggregate() == self.of;
        let events = recorded.iter().filter(|r| r.event().is_some_and(visible));
        // `trail_part` has asked already whether the actor may see the job of a job's trail: its row is not read again
        // for each event.
        let sees_job = |job| self.of == Aggregate::Job(job) || read.job(actor, job).is_ok();
        let mut rows: Vec<_> = events.filter_map(|r| redacted(actor, r, sees_job)).collect();
        rows.drain(..rows.len().saturating_sub(self.limit as usize));
        rows
    }
}

impl ReadModels {
    /// The number of events in a trail.
    pub(crate) fn trail_length(&self, aggregate: Aggregate) -> Result<u32, StoreError> {
        timeline::length(&self.tables.of(&Timeline)?, aggregate)
    }

    /// The part of a trail that a query asks for.
    pub(crate) fn trail_part(&self, actor: Actor, query: &TrailQuery) -> Result<TrailPart, Failure> {
        let of = match query.of {
            TrailOf::Job(id) => Aggregate::Job(self.job(actor, id)?.job),
            TrailOf::Account(id) if may_see(actor, id) => Aggregate::Account(id),
            TrailOf::Account(_) => return Err(not_found("account")),
            TrailOf::Machine(id) => Aggregate::Machine(id),
        };
        // The jobs on a machine are the affair of its owner and of the consumers. Strangers see the machine's own
        // events.
        let all = match of {
            Aggregate::Machine(id) => self.machine_row(id)?.is_some_and(|m| may_see(actor, m.owner)),
            _ => true,
        };
        let limit = query.limit.clamp(1, MAX_TRAIL);
        let table = self.tables.of(&Timeline).map_err(broken)?;
        let length = timeline::length(&table, of).map_err(broken)?;
        // Events that strangers may not see are left out after they were read. From the end, more events are read, so
        // that enough remain.
        let looked_at = if query.from_end && !all { limit.saturating_mul(HIDDEN) } else { limit };
        let from_end = length.saturating_sub(query.skip.saturating_add(looked_at));
        let skip = if query.from_end { from_end } else { query.skip };
        let sequences = timeline::sequences(&table, of, skip, looked_at).map_err(broken)?;
        let after = skip.saturating_add(limit);
        let next = (after < length && !query.from_end).then_some(after);
        Ok(TrailPart { of, all, limit, sequences, next })
    }

    /// An event as the actor may see it; `None` where the actor may not see it at all.
    pub(crate) fn seen(&self, actor: Actor, recorded: &Recorded) -> Option<TrailEvent> {
        let about = |of: &Aggregate| match of {
            Aggregate::Account(id) => may_see(actor, *id),
            Aggregate::Job(id) => self.job(actor, *id).is_ok(),
            Aggregate::Machine(_) => false,
        };
        // Everybody may see a machine's own events.
        let public = |e: &Event| matches!(e.aggregate(), Aggregate::Machine(_));
        let may = recorded.event().is_some_and(|e| public(e) || touched(e).iter().any(about)) || may_see_all(actor);
        redacted(actor, recorded, |job| self.job(actor, job).is_ok()).filter(|_| may)
    }

    /// True if an actor sees the whole of an event. Only then may the event be proven to the actor: a proof holds the
    /// message as it was written, with nothing left out.
    pub(crate) fn sees_whole(&self, actor: Actor, recorded: &Recorded) -> bool {
        match (self.seen(actor, recorded), TrailEvent::of(recorded)) {
            (Some(seen), Some(whole)) => seen == whole,
            // A quarantined message has no event that could be hidden.
            _ => may_see_all(actor),
        }
    }
}

/// An event, without the consumer's affairs where it is about a job that the actor may not see.
fn redacted(actor: Actor, recorded: &Recorded, sees_job: impl Fn(JobId) -> bool) -> Option<TrailEvent> {
    let event = TrailEvent::of(recorded)?;
    Some(if event.job.is_none_or(sees_job) { event } else { without_the_consumer(actor, event) })
}

#[cfg(test)]
mod tests {
    use gpubnb_events::{Lease, MicroUsd, event::MachinePaused};
    use gpubnb_model::testing::{History, account, job, machine};
    use gpubnb_query::view::Page;

    use super::*;
    use crate::serve::read::refusal;

    const CONSUMER: u16 = 1;
    const PROVIDER: u16 = 2;
    const STRANGER: u16 = 3;

    fn actor(number: u16) -> Actor {
        Actor::Account(account(number))
    }

    /// A trail as it is answered: its events are those of the history.
    fn trail(history: &History, actor: Actor, query: &TrailQuery) -> Result<Page<TrailEvent>, Failure> {
        let read = ReadModels::after(history);
        let part = read.trail_part(actor, query)?;
        let of = |seq: &Seq| history.messages().iter().find(|r| r.seq == *seq).cloned().unwrap();
        let rows = part.seen(&read, actor, part.sequences.iter().map(of).collect());
        Ok(Page { rows, next: part.next.map(|next| next.to_string()) })
    }

    fn page(history: &History, by: Actor, query: &TrailQuery) -> (Vec<u64>, Option<String>) {
        let page = trail(history, by, query).unwrap();
        (page.rows.iter().map(|event| event.seq.0).collect(), page.next)
    }

    fn from_start(of: TrailOf, skip: u32, limit: u32) -> TrailQuery {
        TrailQuery { of, skip, limit, from_end: false }
    }

    fn from_end(of: TrailOf, skip: u32, limit: u32) -> TrailQuery {
        TrailQuery { from_end: true, ..from_start(of, skip, limit) }
    }

    /// A job of the consumer, paid for, on the machine of the provider: sequences 2 to 7, after the machine's own.
    fn rented() -> History {
        let mut history = History::default();
        history.listed(account(PROVIDER), machine(1));
        history.whole_job(job(1), account(CONSUMER), (account(PROVIDER), machine(1)));
        history
    }

    #[test]
    fn a_trail_comes_in_parts_from_its_beginning() {
        let (history, of) = (rented(), TrailOf::Job(job(1)));
        let part = |skip, limit| page(&history, actor(CONSUMER), &from_start(of, skip, limit));
        assert_eq!(part(0, 2), (vec![2, 3], Some("2".to_owned())));
        assert_eq!(part(2, 3), (vec![4, 5, 6], Some("5".to_owned())));
        assert_eq!(part(5, 3), (vec![7], None));
        assert_eq!(part(0, 6), (vec![2, 3, 4, 5, 6, 7], None), "a page that is exactly full is the last");
        assert_eq!(part(6, 2), (vec![], None));
        assert_eq!(part(u32::MAX, 2), (vec![], None));
    }

    #[test]
    fn a_trail_comes_in_parts_from_its_end_oldest_first() {
        let (history, of) = (rented(), TrailOf::Job(job(1)));
        let part = |skip, limit| page(&history, actor(CONSUMER), &from_end(of, skip, limit));
        assert_eq!(part(0, 2), (vec![6, 7], None));
        assert_eq!(part(2, 2), (vec![4, 5], None));
        assert_eq!(part(0, 100), (vec![2, 3, 4, 5, 6, 7], None));
    }

    #[test]
    fn a_part_has_at_least_one_event_and_at_most_two_hundred() {
        let mut history = History::default();
        for _ in 0..201 {
            history.deposited(account(CONSUMER), MicroUsd(1));
        }
        let of = TrailOf::Account(account(CONSUMER));
        let part = |limit| page(&history, actor(CONSUMER), &from_start(of, 0, limit));
        let (rows, next) = part(u32::MAX);
        assert_eq!((rows.len(), next.as_deref()), (200, Some("200")));
        assert_eq!(part(0), (vec![1], Some("1".to_owned())));
    }

    #[test]
    fn foreign_trails_look_as_if_they_were_not_there() {
        let history = rented();
        let asked = |of| refusal(trail(&history, actor(STRANGER), &from_start(of, 0, 10)));
        assert_eq!(asked(TrailOf::Job(job(1))), asked(TrailOf::Job(job(9))));
        assert_eq!(asked(TrailOf::Account(account(CONSUMER))), asked(TrailOf::Account(account(9))));
        // The owner of the machine is a stranger to the job.
        let job = from_start(TrailOf::Job(job(1)), 0, 10);
        assert_eq!(refusal(trail(&history, actor(PROVIDER), &job)), asked(TrailOf::Job(gpubnb_model::testing::job(1))));
    }

    #[test]
    fn strangers_see_the_machines_own_events_only() {
        let (history, of) = (rented(), TrailOf::Machine(machine(1)));
        let part = |by| page(&history, by, &from_start(of, 0, 10)).0;
        assert_eq!(part(actor(STRANGER)), [1]);
        assert_eq!(part(actor(CONSUMER)), [1]);
        assert_eq!(part(Actor::Machine(machine(1))), [1]);
        assert_eq!(part(actor(PROVIDER)), [1, 3]);
        assert_eq!(part(Actor::Operator(None)), [1, 3]);
    }

    #[test]
    fn from_the_end_strangers_get_as_many_events_as_there_are_among_the_last() {
        let mut history = History::default();
        history.listed(account(PROVIDER), machine(1));
        let hidden = |history: &mut History, number| {
            history.submitted(account(CONSUMER), job(number));
            history.assigned(job(number), machine(1));
        };
        for number in 1..=5 {
            hidden(&mut history, number);
        }
        history.record(MachinePaused { machine: machine(1), away: false });
        hidden(&mut history, 6);
        let last = from_end(TrailOf::Machine(machine(1)), 0, 1);
        assert_eq!(page(&history, actor(STRANGER), &last).0, [12]);
        assert_eq!(page(&history, actor(PROVIDER), &last).0, [14]);
        let two = from_end(TrailOf::Machine(machine(1)), 0, 2);
        assert_eq!(page(&history, actor(STRANGER), &two).0, [1, 12]);
    }

    #[test]
    fn a_quarantined_message_is_shown_to_nobody() {
        let mut history = rented();
        history.quarantined();
        let (read, recorded) = (ReadModels::after(&history), history.last());
        for by in [actor(CONSUMER), actor(PROVIDER), Actor::Operator(None)] {
            assert_eq!(read.seen(by, recorded), None);
        }
        assert!(read.sees_whole(Actor::Operator(None), recorded), "an operator may have the message proven");
        assert!(!read.sees_whole(actor(CONSUMER), recorded));
    }

    /// The event with this sequence, as `event` answers it.
    fn event(history: &History, by: Actor, seq: u64) -> Option<TrailEvent> {
        let recorded = history.messages().iter().find(|r| r.seq.0 == seq).unwrap();
        ReadModels::after(history).seen(by, recorded)
    }

    /// Fails where an event shows anything of the consumer: the name, the budget, the limit, what is held or available.
    fn shows_nothing_of_the_consumer(event: &TrailEvent) {
        let text = serde_json::to_string(event).unwrap();
        let consumer = account(CONSUMER).to_string();
        for hidden in [consumer.as_str(), "consumer", "budget", "limit", "held:", "-60000", "59710"] {
            assert!(!text.contains(hidden), "{hidden} stands in {text}");
        }
    }

    #[test]
    fn a_provider_sees_the_own_part_of_a_bill_and_nothing_of_the_consumer() {
        let history = rented();
        let bill = event(&history, actor(PROVIDER), 7).unwrap();
        shows_nothing_of_the_consumer(&bill);
        let earned = format!("available:{}", account(PROVIDER));
        let postings = bill.body["postings"].as_array().unwrap();
        let accounts: Vec<_> = postings.iter().map(|posting| posting["account"].as_str().unwrap()).collect();
        assert_eq!(accounts, [earned.as_str(), "fees"]);
        assert_eq!((&bill.body["cost"], &bill.body["earned"]), (&290.into(), &261.into()));
        assert_eq!(bill.body["metering"]["billed"], 2908);
    }

    #[test]
    fn a_provider_sees_nothing_of_the_consumer_in_the_own_trails() {
        let mut history = rented();
        history.submitted(account(CONSUMER), job(2));
        let lease = history.assigned(job(2), machine(1));
        history.requeued(job(2), lease, machine(1), gpubnb_events::event::Reason::ProviderLost);
        for of in [TrailOf::Account(account(PROVIDER)), TrailOf::Machine(machine(1))] {
            let rows = trail(&history, actor(PROVIDER), &from_start(of, 0, 100)).unwrap().rows;
            assert!(!rows.is_empty(), "{of:?}");
            rows.iter().for_each(shows_nothing_of_the_consumer);
        }
        let own = trail(&history, actor(PROVIDER), &from_start(TrailOf::Account(account(PROVIDER)), 0, 100)).unwrap();
        assert_eq!(own.rows.last().map(|e| e.event.as_str()), Some("Settled"));
    }

    #[test]
    fn a_provider_does_not_see_the_job_itself() {
        let history = rented();
        let seen = (1..=7).filter(|seq| event(&history, actor(PROVIDER), *seq).is_some()).collect::<Vec<_>>();
        assert_eq!(seen, [1, 7], "the own machine, and the bill");
        let seen = (1..=7).filter(|seq| event(&history, actor(STRANGER), *seq).is_some()).collect::<Vec<_>>();
        assert_eq!(seen, [1]);
    }

    #[test]
    fn what_a_provider_does_not_see_whole_cannot_be_proven_to_the_provider() {
        let history = rented();
        let read = &ReadModels::after(&history);
        let provable = |by| history.messages().iter().filter(move |r| read.sees_whole(by, r)).map(|r| r.seq.0);
        assert!(provable(actor(PROVIDER)).eq([1]), "the bill is seen in part");
        assert!(provable(actor(STRANGER)).eq([1]));
        assert!(provable(actor(CONSUMER)).eq(1..=7));
        assert!(provable(Actor::Operator(None)).eq(1..=7));
    }

    #[test]
    fn the_consumer_and_operators_see_the_whole_bill() {
        let history = rented();
        let whole = TrailEvent::of(history.last()).unwrap();
        assert_eq!(whole.body["postings"].as_array().unwrap().len(), 4);
        for by in [actor(CONSUMER), Actor::Operator(None), Actor::Operator(Some(account(PROVIDER))), Actor::Platform] {
            assert_eq!(event(&history, by, 7), Some(whole.clone()));
            let job = trail(&history, by, &from_start(TrailOf::Job(job(1)), 0, 100)).unwrap();
            assert_eq!(job.rows.last(), Some(&whole));
        }
        let own = trail(&history, actor(CONSUMER), &from_end(TrailOf::Account(account(CONSUMER)), 0, 1)).unwrap();
        assert_eq!(own.rows, [whole]);
    }

    #[test]
    fn who_rents_their_own_machine_sees_the_whole_bill() {
        let mut history = History::default();
        history.listed(account(CONSUMER), machine(1));
        let lease: Lease = history.whole_job(job(1), account(CONSUMER), (account(CONSUMER), machine(1)));
        assert_eq!(lease, Lease(Seq(3)));
        assert_eq!(event(&history, actor(CONSUMER), 7), TrailEvent::of(history.last()));
    }
}
