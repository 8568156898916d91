//! The queries about trails. A trail is the list of all events about one job, machine or account. An actor gets only
//! the events that the actor may see, and some events without the consumer's data.
//!
//! The consumer is the account that submitted a job. The provider is the account whose machine ran the job. Strangers
//! are all other accounts.

use gpubnb_events::{Actor, Aggregate, Event, JobId, Recorded, Seq};
use gpubnb_model::{
    affected_aggregates,
    timeline::{self, Timeline},
};
use gpubnb_query::{
    request::{TrailOf, TrailQuery},
    view::TrailEvent,
};
use gpubnb_runtime::rpc::RpcError;
use gpubnb_store::StoreError;

use super::{ReadModels, store_failure};
use crate::serve::access::{may_see, may_see_all, not_found, redact_consumer};

/// The most events of a trail in one answer.
const MAX_TRAIL: u32 = 200;
/// From the end of a machine's trail, this many events are read per event that a stranger requests, because a stranger
/// may not see the events of jobs.
const READS_PER_EVENT: u32 = 8;

/// One page of a trail whose events are not read from the log yet.
pub(crate) struct TrailPage {
    /// The job, machine or account of the trail.
    of: Aggregate,
    /// True if the actor may also see events of other aggregates in this trail, such as the jobs on a machine.
    sees_other_aggregates: bool,
    /// The most events in the answer.
    limit: u32,
    /// The sequences of the events that must be read.
    pub(crate) sequences: Vec<Seq>,
    /// The number of events to skip for the next page; `None` on the last page.
    pub(crate) next: Option<u32>,
}

impl TrailPage {
    /// Selects and redacts the events that the actor may see. `recorded` are the events that were read from the log. If
    /// more than `limit` events are visible, returns the newest.
    pub(crate) fn visible_events(&self, read: &ReadModels, actor: Actor, recorded: Vec<Recorded>) -> Vec<TrailEvent> {
        let visible = |e: &Event| self.sees_other_aggregates || e.aggregate() == self.of;
        let events = recorded.iter().filter(|r| r.event().is_some_and(visible));
        // `trail_page` has already checked that the actor may see the job of a job's trail. The job's row is not read
        // again for each event.
        let sees_job = |job| self.of == Aggregate::Job(job) || read.job(actor, job).is_ok();
        let mut rows: Vec<_> = events.filter_map(|r| redact(actor, r, sees_job)).collect();
        rows.drain(..rows.len().saturating_sub(self.limit as usize));
        rows
    }
}

impl ReadModels {
    /// The number of events in a trail.
    pub(crate) fn trail_length(&self, aggregate: Aggregate) -> Result<u32, StoreError> {
        timeline::length(&self.tables.of(&Timeline)?, aggregate)
    }

    /// Finds the page of a trail that a query asks for.
    pub(crate) fn trail_page(&self, actor: Actor, query: &TrailQuery) -> Result<TrailPage, RpcError> {
        let of = match query.of {
            TrailOf::Job(id) => Aggregate::Job(self.job(actor, id)?.job),
            TrailOf::Account(id) if may_see(actor, id) => Aggregate::Account(id),
            TrailOf::Account(_) => return Err(not_found("account")),
            TrailOf::Machine(id) => Aggregate::Machine(id),
            TrailOf::Batch(id) => Aggregate::Batch(self.batch(actor, id)?.batch),
        };
        // Only the machine's owner may see the events of jobs in a machine's trail. Strangers see the machine's own
        // events.
        let sees_other_aggregates = match of {
            Aggregate::Machine(id) => self.machine_row(id)?.is_some_and(|m| may_see(actor, m.owner)),
            _ => true,
        };
        let limit = query.limit.clamp(1, MAX_TRAIL);
        let table = self.tables.of(&Timeline).map_err(store_failure)?;
        let length = timeline::length(&table, of).map_err(store_failure)?;
        // Hidden events are removed after all events were read. From the end, more events are read, so that enough
        // visible events remain.
        let read_count =
            if query.from_end && !sees_other_aggregates { limit.saturating_mul(READS_PER_EVENT) } else { limit };
        let (skip, read_count) = if query.from_end {
            let end = length.saturating_sub(query.skip);
            (end.saturating_sub(read_count), end.min(read_count))
        } else {
            (query.skip, read_count)
        };
        let sequences = timeline::sequences(&table, of, skip, read_count).map_err(store_failure)?;
        let after = skip.saturating_add(limit);
        let next = (after < length && !query.from_end).then_some(after);
        Ok(TrailPage { of, sees_other_aggregates, limit, sequences, next })
    }

    /// An event, redacted for the actor. `None` if the actor may not see the event.
    pub(crate) fn visible_event(&self, actor: Actor, recorded: &Recorded) -> Option<TrailEvent> {
        let about = |of: &Aggregate| match of {
            Aggregate::Account(id) => may_see(actor, *id),
            Aggregate::Job(id) => self.job(actor, *id).is_ok(),
            Aggregate::Batch(id) => self.batch(actor, *id).is_ok(),
            Aggregate::Machine(_) => false,
        };
        // Everybody may see the own events of a machine.
        let public = |e: &Event| matches!(e.aggregate(), Aggregate::Machine(_));
        let may_see_event = |event: &Event| match event {
            // A submission that made nothing, because its id was taken, is not for the eyes of whoever has the id.
            Event::JobSubmitted(e) => may_see(actor, e.account),
            Event::BatchSubmitted(e) => may_see(actor, e.account),
            other => public(other) || affected_aggregates(other).iter().any(about),
        };
        let may = recorded.event().is_some_and(may_see_event) || may_see_all(actor);
        redact(actor, recorded, |job| self.job(actor, job).is_ok()).filter(|_| may)
    }

    /// True if an actor may see the whole event, without redaction. Only such an actor may get a proof of the event,
    /// because a proof contains the whole message.
    pub(crate) fn may_see_whole_event(&self, actor: Actor, recorded: &Recorded) -> bool {
        match (self.visible_event(actor, recorded), TrailEvent::from_recorded(recorded)) {
            (Some(visible), Some(whole)) => visible == whole,
            // A quarantined message is not a valid event. Only operators may see such a message.
            _ => may_see_all(actor),
        }
    }
}

/// Converts an event for an answer. If the event is about a job that the actor may not see, removes the consumer's
/// data.
fn redact(actor: Actor, recorded: &Recorded, sees_job: impl Fn(JobId) -> bool) -> Option<TrailEvent> {
    let event = TrailEvent::from_recorded(recorded)?;
    Some(if event.job.is_none_or(sees_job) { event } else { redact_consumer(actor, event) })
}

#[cfg(test)]
mod tests {
    use gpubnb_events::{Lease, MicroUsd, event::MachinePaused};
    use gpubnb_model::testing::{History, account, job, machine};
    use gpubnb_query::view::Page;

    use super::*;
    use crate::serve::read::expect_refusal;

    const CONSUMER: u16 = 1;
    const PROVIDER: u16 = 2;
    const STRANGER: u16 = 3;

    fn actor(number: u16) -> Actor {
        Actor::Account(account(number))
    }

    /// Answers a trail query with the events of a history instead of the log.
    fn trail(history: &History, actor: Actor, query: &TrailQuery) -> Result<Page<TrailEvent>, RpcError> {
        let read = ReadModels::from_history(history);
        let page = read.trail_page(actor, query)?;
        let of = |seq: &Seq| history.messages().iter().find(|r| r.seq == *seq).cloned().unwrap();
        let rows = page.visible_events(&read, actor, page.sequences.iter().map(of).collect());
        Ok(Page { rows, next: page.next.map(|next| next.to_string()) })
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

    /// A history: sequence 1 lists the provider's machine, sequences 2 to 7 are a settled job of the consumer on that
    /// machine.
    fn settled_job() -> History {
        let mut history = History::default();
        history.listed(account(PROVIDER), machine(1));
        history.whole_job(job(1), account(CONSUMER), (account(PROVIDER), machine(1)));
        history
    }

    #[test]
    fn a_trail_is_answered_in_pages_from_its_start() {
        let (history, of) = (settled_job(), TrailOf::Job(job(1)));
        let read_page = |skip, limit| page(&history, actor(CONSUMER), &from_start(of, skip, limit));
        assert_eq!(read_page(0, 2), (vec![2, 3], Some("2".to_owned())));
        assert_eq!(read_page(2, 3), (vec![4, 5, 6], Some("5".to_owned())));
        assert_eq!(read_page(5, 3), (vec![7], None));
        assert_eq!(read_page(0, 6), (vec![2, 3, 4, 5, 6, 7], None), "a full page can be the last page");
        assert_eq!(read_page(6, 2), (vec![], None));
        assert_eq!(read_page(u32::MAX, 2), (vec![], None));
    }

    #[test]
    fn a_page_from_the_end_of_a_trail_is_oldest_first() {
        let (history, of) = (settled_job(), TrailOf::Job(job(1)));
        let read_page = |skip, limit| page(&history, actor(CONSUMER), &from_end(of, skip, limit));
        assert_eq!(read_page(0, 2), (vec![6, 7], None));
        assert_eq!(read_page(2, 2), (vec![4, 5], None));
        assert_eq!(read_page(0, 100), (vec![2, 3, 4, 5, 6, 7], None));
    }

    #[test]
    fn a_page_of_a_trail_has_between_1_and_200_events() {
        let mut history = History::default();
        for _ in 0..201 {
            history.deposited(account(CONSUMER), MicroUsd(1));
        }
        let of = TrailOf::Account(account(CONSUMER));
        let read_page = |limit| page(&history, actor(CONSUMER), &from_start(of, 0, limit));
        let (rows, next) = read_page(u32::MAX);
        assert_eq!((rows.len(), next.as_deref()), (200, Some("200")));
        assert_eq!(read_page(0), (vec![1], Some("1".to_owned())));
    }

    #[test]
    fn a_trail_that_the_actor_may_not_see_is_answered_like_a_missing_trail() {
        let history = settled_job();
        let asked = |of| expect_refusal(trail(&history, actor(STRANGER), &from_start(of, 0, 10)));
        assert_eq!(asked(TrailOf::Job(job(1))), asked(TrailOf::Job(job(9))));
        assert_eq!(asked(TrailOf::Account(account(CONSUMER))), asked(TrailOf::Account(account(9))));
        // The owner of the machine may not see the job's trail either.
        let job = from_start(TrailOf::Job(job(1)), 0, 10);
        assert_eq!(
            expect_refusal(trail(&history, actor(PROVIDER), &job)),
            asked(TrailOf::Job(gpubnb_model::testing::job(1)))
        );
    }

    #[test]
    fn strangers_see_only_the_own_events_of_a_machine() {
        let (history, of) = (settled_job(), TrailOf::Machine(machine(1)));
        let read_page = |by| page(&history, by, &from_start(of, 0, 10)).0;
        assert_eq!(read_page(actor(STRANGER)), [1]);
        assert_eq!(read_page(actor(CONSUMER)), [1]);
        assert_eq!(read_page(Actor::Machine(machine(1))), [1]);
        assert_eq!(read_page(actor(PROVIDER)), [1, 3]);
        assert_eq!(read_page(Actor::Operator(None)), [1, 3]);
    }

    #[test]
    fn a_page_from_the_end_skips_hidden_events_for_strangers() {
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
    fn a_quarantined_message_has_no_visible_event() {
        let mut history = settled_job();
        history.quarantined();
        let (read, recorded) = (ReadModels::from_history(&history), history.last());
        for by in [actor(CONSUMER), actor(PROVIDER), Actor::Operator(None)] {
            assert_eq!(read.visible_event(by, recorded), None);
        }
        assert!(
            read.may_see_whole_event(Actor::Operator(None), recorded),
            "an operator may get a proof of the message"
        );
        assert!(!read.may_see_whole_event(actor(CONSUMER), recorded));
    }

    /// The event with this sequence, as the query `event` answers it.
    fn event(history: &History, by: Actor, seq: u64) -> Option<TrailEvent> {
        let recorded = history.messages().iter().find(|r| r.seq.0 == seq).unwrap();
        ReadModels::from_history(history).visible_event(by, recorded)
    }

    /// Fails if an event contains the consumer's account, budget, limit, or amounts.
    fn assert_no_consumer_data(event: &TrailEvent) {
        let text = serde_json::to_string(event).unwrap();
        let consumer = account(CONSUMER).to_string();
        for hidden in [consumer.as_str(), "consumer", "budget", "limit", "held:", "-60000", "59710"] {
            assert!(!text.contains(hidden), "{hidden} is in {text}");
        }
    }

    #[test]
    fn a_provider_sees_only_the_providers_part_of_a_bill() {
        let history = settled_job();
        let bill = event(&history, actor(PROVIDER), 7).unwrap();
        assert_no_consumer_data(&bill);
        let earned = format!("available:{}", account(PROVIDER));
        let postings = bill.body["postings"].as_array().unwrap();
        let accounts: Vec<_> = postings.iter().map(|posting| posting["account"].as_str().unwrap()).collect();
        assert_eq!(accounts, [earned.as_str(), "fees"]);
        assert_eq!((&bill.body["cost"], &bill.body["earned"]), (&290.into(), &261.into()));
        assert_eq!(bill.body["metering"]["billed"], 2908);
    }

    #[test]
    fn the_providers_trails_have_no_data_of_the_consumer() {
        let mut history = settled_job();
        history.submitted(account(CONSUMER), job(2));
        let lease = history.assigned(job(2), machine(1));
        history.requeued(job(2), lease, machine(1), gpubnb_events::event::Reason::ProviderLost);
        for of in [TrailOf::Account(account(PROVIDER)), TrailOf::Machine(machine(1))] {
            let rows = trail(&history, actor(PROVIDER), &from_start(of, 0, 100)).unwrap().rows;
            assert!(!rows.is_empty(), "{of:?}");
            rows.iter().for_each(assert_no_consumer_data);
        }
        let own = trail(&history, actor(PROVIDER), &from_start(TrailOf::Account(account(PROVIDER)), 0, 100)).unwrap();
        assert_eq!(own.rows.last().map(|e| e.event.as_str()), Some("Settled"));
    }

    #[test]
    fn a_provider_sees_the_bill_but_not_the_other_events_of_the_job() {
        let history = settled_job();
        let seen = (1..=7).filter(|seq| event(&history, actor(PROVIDER), *seq).is_some()).collect::<Vec<_>>();
        assert_eq!(seen, [1, 7], "the provider's machine, and the bill");
        let seen = (1..=7).filter(|seq| event(&history, actor(STRANGER), *seq).is_some()).collect::<Vec<_>>();
        assert_eq!(seen, [1]);
    }

    #[test]
    fn a_provider_gets_no_proof_of_a_redacted_event() {
        let history = settled_job();
        let read = &ReadModels::from_history(&history);
        let provable = |by| history.messages().iter().filter(move |r| read.may_see_whole_event(by, r)).map(|r| r.seq.0);
        assert!(provable(actor(PROVIDER)).eq([1]), "the provider sees the bill only redacted");
        assert!(provable(actor(STRANGER)).eq([1]));
        assert!(provable(actor(CONSUMER)).eq(1..=7));
        assert!(provable(Actor::Operator(None)).eq(1..=7));
    }

    #[test]
    fn the_consumer_and_operators_see_the_whole_bill() {
        let history = settled_job();
        let whole = TrailEvent::from_recorded(history.last()).unwrap();
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
    fn a_consumer_who_uses_their_own_machine_sees_the_whole_bill() {
        let mut history = History::default();
        history.listed(account(CONSUMER), machine(1));
        let lease: Lease = history.whole_job(job(1), account(CONSUMER), (account(CONSUMER), machine(1)));
        assert_eq!(lease, Lease(Seq(3)));
        assert_eq!(event(&history, actor(CONSUMER), 7), TrailEvent::from_recorded(history.last()));
    }
}
