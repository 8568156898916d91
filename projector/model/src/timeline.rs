//! The trails: for each job, machine and account the sequences of its events. The events themselves are read back from
//! MARKET, so that nothing is stored twice.

use gpubnb_events::{Aggregate, Event, Recorded, Seq};
use gpubnb_store::{StoreError, Table, WriteBatch};

use super::{Projection, key, touched};

/// `n<kind><id>` → the length of a trail; `b<kind><id><block>` → a block of its sequences, eight bytes each.
pub struct Timeline;

/// The number of sequences in a block.
pub const BLOCK: u32 = 64;

/// The bytes of an aggregate in a key: the letter of its kind, and its id.
fn name(aggregate: Aggregate) -> [u8; 17] {
    let (kind, id) = match &aggregate {
        Aggregate::Account(id) => (b'a', *id.as_bytes()),
        Aggregate::Machine(id) => (b'm', *id.as_bytes()),
        Aggregate::Job(id) => (b'j', *id.as_bytes()),
    };
    let mut name = [kind; 17];
    name[1..].copy_from_slice(&id);
    name
}

fn count_key(aggregate: Aggregate) -> Vec<u8> {
    key(b'n', &[&name(aggregate)])
}

fn block_key(aggregate: Aggregate, block: u32) -> Vec<u8> {
    key(b'b', &[&name(aggregate), &block.to_be_bytes()])
}

fn count(bytes: Option<&[u8]>) -> u32 {
    bytes.and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
}

/// The number of events in an aggregate's trail.
pub fn length(table: &Table, aggregate: Aggregate) -> Result<u32, StoreError> {
    Ok(count(table.get(count_key(aggregate))?.as_deref()))
}

/// A part of an aggregate's trail: at most `most` sequences, after the first `from`.
pub fn sequences(table: &Table, aggregate: Aggregate, from: u32, most: u32) -> Result<Vec<Seq>, StoreError> {
    let mut found = Vec::new();
    let until = length(table, aggregate)?.min(from.saturating_add(most));
    let mut at = from;
    while at < until {
        let Some(block) = table.get(block_key(aggregate, at / BLOCK))? else { break };
        let skip = (at % BLOCK) as usize * 8;
        let wanted = (until - at).min(BLOCK - at % BLOCK) as usize;
        let taken = block.get(skip..).unwrap_or_default().chunks_exact(8).take(wanted);
        let before = found.len();
        found.extend(taken.filter_map(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes).map(Seq));
        at += u32::try_from(found.len() - before).unwrap_or(0).max(1);
    }
    Ok(found)
}

impl Projection for Timeline {
    fn name(&self) -> &'static str {
        "timeline"
    }

    fn version(&self) -> u32 {
        2
    }

    fn apply(&self, rows: &mut WriteBatch<'_>, recorded: &Recorded, event: &Event) -> Result<(), StoreError> {
        for aggregate in touched(event) {
            let n = rows.upsert_bytes(&count_key(aggregate), |bytes| {
                let n = count(Some(bytes));
                bytes.clear();
                bytes.extend_from_slice(&(n + 1).to_be_bytes());
                n
            })?;
            let seq = recorded.seq.0.to_be_bytes();
            rows.upsert_bytes(&block_key(aggregate, n / BLOCK), |block| block.extend_from_slice(&seq))?;
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
    fn an_event_is_in_the_trail_of_everything_that_it_touches() {
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
    fn who_rents_their_own_machine_has_the_bill_once() {
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
    fn a_part_of_a_trail_goes_over_the_blocks() {
        let mut history = History::default();
        let of = Aggregate::Account(account(1));
        let events = 2 * u16::try_from(BLOCK).unwrap() + 1;
        for number in 0..events {
            history.submitted(account(1), job(number));
        }
        let table = history.fold(&Timeline);
        assert_eq!(length(&table, of).unwrap(), u32::from(events));
        let part = |from, most| sequences(&table, of, from, most).unwrap().into_iter().map(|seq| seq.0);
        assert!(part(0, u32::MAX).eq(1..=129));
        assert!(part(BLOCK - 1, 2).eq([64, 65]));
        assert!(part(BLOCK, BLOCK).eq(65..=128));
        assert!(part(2 * BLOCK, 10).eq([129]));
        assert_eq!(part(u32::from(events), 10).count() + part(u32::MAX, u32::MAX).count() + part(5, 0).count(), 0);
    }
}
