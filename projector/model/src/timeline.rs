//! The model of trails. A *trail* has the sequences of all events that affect a job, a machine or an account. The
//! events themselves are not stored in this model, because they can be read from the stream MARKET.

use gpubnb_events::{Aggregate, Event, Recorded, Seq};
use gpubnb_store::{StoreError, Table, WriteBatch};

use super::{Projection, affected_aggregates, key};

/// Rows: `n<kind><id>` → the length of a trail; `b<kind><id><block>` → a block of its sequences, 8 bytes each.
pub struct Timeline;

/// The number of sequences in a block.
const BLOCK_LENGTH: u32 = 64;

/// The part of a key that names an aggregate: the letter of its kind, then its id.
fn key_part(aggregate: Aggregate) -> [u8; 17] {
    let (kind, id) = match &aggregate {
        Aggregate::Account(id) => (b'a', *id.as_bytes()),
        Aggregate::Machine(id) => (b'm', *id.as_bytes()),
        Aggregate::Job(id) => (b'j', *id.as_bytes()),
        Aggregate::Batch(id) => (b'b', *id.as_bytes()),
    };
    let mut part = [kind; 17];
    part[1..].copy_from_slice(&id);
    part
}

fn length_key(aggregate: Aggregate) -> Vec<u8> {
    key(b'n', &[&key_part(aggregate)])
}

fn block_key(aggregate: Aggregate, block: u32) -> Vec<u8> {
    key(b'b', &[&key_part(aggregate), &block.to_be_bytes()])
}

fn decode_length(bytes: Option<&[u8]>) -> u32 {
    bytes.and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
}

/// The number of events in an aggregate's trail.
pub fn length(table: &Table, aggregate: Aggregate) -> Result<u32, StoreError> {
    Ok(decode_length(table.get(length_key(aggregate))?.as_deref()))
}

/// A part of an aggregate's trail, oldest first: skips the first `skip` sequences and returns at most `limit`.
pub fn sequences(table: &Table, aggregate: Aggregate, skip: u32, limit: u32) -> Result<Vec<Seq>, StoreError> {
    let mut found = Vec::new();
    let until = length(table, aggregate)?.min(skip.saturating_add(limit));
    let mut at = skip;
    while at < until {
        let Some(block) = table.get(block_key(aggregate, at / BLOCK_LENGTH))? else { break };
        let start = (at % BLOCK_LENGTH) as usize * 8;
        let wanted = (until - at).min(BLOCK_LENGTH - at % BLOCK_LENGTH) as usize;
        let taken = block.get(start..).unwrap_or_default().chunks_exact(8).take(wanted);
        let length_before = found.len();
        found.extend(taken.filter_map(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes).map(Seq));
        at += u32::try_from(found.len() - length_before).unwrap_or(0).max(1);
    }
    Ok(found)
}

impl Projection for Timeline {
    fn name(&self) -> &'static str {
        "timeline"
    }

    fn version(&self) -> u32 {
        4
    }

    fn apply(&self, rows: &mut WriteBatch<'_>, recorded: &Recorded, event: &Event) -> Result<(), StoreError> {
        for aggregate in affected_aggregates(event) {
            // A trail of a job begins with the submission that made the job. A later submission with the same id
            // belongs to another account, and makes no job: see docs/adr/0003.
            // The same is true of batches.
            let is_submission = matches!(
                (event, aggregate),
                (Event::JobSubmitted(_), Aggregate::Job(_)) | (Event::BatchSubmitted(_), Aggregate::Batch(_))
            );
            if is_submission && !rows.bytes(&length_key(aggregate))?.is_empty() {
                continue;
            }
            let n = rows.upsert_bytes(&length_key(aggregate), |bytes| {
                let n = decode_length(Some(bytes));
                bytes.clear();
                bytes.extend_from_slice(&(n + 1).to_be_bytes());
                n
            })?;
            let seq = recorded.seq.0.to_be_bytes();
            rows.upsert_bytes(&block_key(aggregate, n / BLOCK_LENGTH), |block| block.extend_from_slice(&seq))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{History, account, job, machine};

    fn trail(table: &Table, aggregate: Aggregate) -> Vec<u64> {
        let length = length(table, aggregate).unwrap();
        sequences(table, aggregate, 0, length).unwrap().into_iter().map(|seq| seq.0).collect()
    }

    #[test]
    fn an_event_is_in_the_trails_of_all_aggregates_that_it_affects() {
        let mut history = History::default();
        history.whole_job(job(1), account(1), (account(2), machine(1)));
        let table = history.fold(&Timeline);
        assert_eq!(trail(&table, Aggregate::Job(job(1))), [1, 2, 3, 4, 5, 6]);
        assert_eq!(trail(&table, Aggregate::Machine(machine(1))), [2]);
        assert_eq!(trail(&table, Aggregate::Account(account(1))), [1, 6]);
        assert_eq!(trail(&table, Aggregate::Account(account(2))), [6]);
        assert!(trail(&table, Aggregate::Account(account(3))).is_empty());
    }

    #[test]
    fn a_second_submission_with_the_same_id_is_not_in_the_trail_of_the_job() {
        let mut history = History::default();
        history.submitted_with(account(1), job(1), |_| {});
        history.submitted_with(account(2), job(1), |_| {});
        let table = history.fold(&Timeline);
        assert_eq!(trail(&table, Aggregate::Job(job(1))), [1]);
        assert_eq!(trail(&table, Aggregate::Account(account(2))), [2]);
    }

    #[test]
    fn an_owner_who_rents_their_own_machine_has_the_settlement_once() {
        let mut history = History::default();
        history.whole_job(job(1), account(1), (account(1), machine(1)));
        assert_eq!(trail(&history.fold(&Timeline), Aggregate::Account(account(1))), [1, 6]);
    }

    #[test]
    fn a_quarantined_message_is_in_no_trail() {
        let mut history = History::default();
        history.submitted(account(1), job(1));
        history.quarantined();
        history.assigned(job(1), machine(1));
        assert_eq!(trail(&history.fold(&Timeline), Aggregate::Job(job(1))), [1, 3]);
    }

    #[test]
    fn a_part_of_a_trail_can_span_several_blocks() {
        let mut history = History::default();
        let aggregate = Aggregate::Account(account(1));
        let events = 2 * u16::try_from(BLOCK_LENGTH).unwrap() + 1;
        for number in 0..events {
            history.submitted(account(1), job(number));
        }
        let table = history.fold(&Timeline);
        assert_eq!(length(&table, aggregate).unwrap(), u32::from(events));
        let part = |skip, limit| sequences(&table, aggregate, skip, limit).unwrap().into_iter().map(|seq| seq.0);
        assert!(part(0, u32::MAX).eq(1..=129));
        assert!(part(BLOCK_LENGTH - 1, 2).eq([64, 65]));
        assert!(part(BLOCK_LENGTH, BLOCK_LENGTH).eq(65..=128));
        assert!(part(2 * BLOCK_LENGTH, 10).eq([129]));
        assert_eq!(part(u32::from(events), 10).count() + part(u32::MAX, u32::MAX).count() + part(5, 0).count(), 0);
    }
}
