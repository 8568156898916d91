//! Which events each job, machine and account is told of: blocks of sequences. The events themselves are
//! read back from MARKET, so that nothing is stored twice.

use gpubnb_events::{Aggregate, Event, Recorded, Seq};
use gpubnb_store::{StoreError, Table, WriteBatch};

use super::{Projection, key, touched};

/// `n<kind><id>` → how many; `b<kind><id><block>` → sequences, eight bytes each.
pub struct Timeline;

/// Sequences in one block.
pub const BLOCK: u32 = 64;

/// The bytes that name an aggregate.
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

/// How many events an aggregate's trail has.
pub fn length(table: &Table, aggregate: Aggregate) -> Result<u32, StoreError> {
    Ok(count(table.get(count_key(aggregate))?.as_deref()))
}

/// The sequences of an aggregate's trail from the `from`th on, at most `most`.
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
