//! The Merkle tree of the log (RFC 6962): the leaf of each message, the roots of complete subtrees, and the root after
//! every thousandth message, which is signed.

use gpubnb_events::{Event, Recorded, Seq, message::Hash};
use gpubnb_proof::merkle::{self, Nodes, node};
use gpubnb_store::{StoreError, Table, WriteBatch};

use super::{Projection, key};

/// `l<block>` → the leaves of up to 64 messages; `n<level><index>` → the root of a complete subtree of at least such a
/// block; `r<size>` → the root after every thousandth message.
pub struct Merkle;

/// A block has two to the power of this many leaves. It is also the level of a block's root in the tree.
const BLOCK: u32 = 6;
/// Messages between two stored roots.
pub const EVERY: u64 = 1_000;
const HASH: usize = 32;

fn block_key(block: u64) -> Vec<u8> {
    key(b'l', &[&block.to_be_bytes()])
}

fn node_key(level: u32, index: u64) -> Vec<u8> {
    key(b'n', &[&level.to_be_bytes(), &index.to_be_bytes()])
}

fn root_key(size: u64) -> Vec<u8> {
    key(b'r', &[&size.to_be_bytes()])
}

/// The stored roots after more than `size` messages, each with the number of messages.
pub fn roots(table: &Table, size: u64) -> impl Iterator<Item = Result<(u64, Hash), StoreError>> {
    table.range(root_key(size.saturating_add(1))..vec![b'r' + 1]).map(|entry| {
        let (key, root) = entry?;
        let size = key.get(1..).and_then(|size| size.try_into().ok()).map(u64::from_be_bytes);
        let size = size.ok_or_else(|| StoreError::corrupt(&key, "not a size"))?;
        Ok((size, hash_of(&key, &root)?))
    })
}

/// The stored root after `size` messages, if there is one.
pub fn root_at(table: &Table, size: u64) -> Result<Option<Hash>, StoreError> {
    let key = root_key(size);
    table.get(&key)?.map(|root| hash_of(&key, &root)).transpose()
}

fn hash_of(key: &[u8], bytes: &[u8]) -> Result<Hash, StoreError> {
    bytes.try_into().map_err(|_| StoreError::corrupt(key, "not a hash"))
}

/// A message that changed: its sequence, its present leaf, and the leaf that it had when it was folded.
pub type Changed = (Seq, Hash, Hash);

/// The present leaves of the log, read in order, to be compared with the leaves that were folded. Holds the leaves of
/// one block at a time.
#[derive(Default)]
pub struct LeavesNow(Vec<(Seq, Hash)>);

impl LeavesNow {
    /// Adds the next leaf. Where it begins a new block, returns the changed messages of the block before. `table` gives
    /// the table of the model that answers.
    pub fn push<E: From<StoreError>>(
        &mut self,
        seq: Seq,
        leaf: Hash,
        table: impl FnOnce() -> Result<Table, E>,
    ) -> Result<Vec<Changed>, E> {
        let left = self.0.first().is_some_and(|(first, _)| place(*first).0 != place(seq).0);
        let changed = if left { self.changed(&table()?)? } else { Vec::new() };
        self.0.push((seq, leaf));
        Ok(changed)
    }

    /// The changed messages among the leaves that were added since the last block was compared. A message that is not
    /// folded yet counts as unchanged.
    pub fn changed(&mut self, table: &Table) -> Result<Vec<Changed>, StoreError> {
        let now = std::mem::take(&mut self.0);
        let Some(block) = now.first().map(|(first, _)| place(*first).0) else { return Ok(Vec::new()) };
        let key = block_key(block);
        if now.len() == 1 << BLOCK {
            // To compare the block's root is enough, and reads 32 bytes instead of 2,048.
            let root = root_of_block(&key, &now.iter().flat_map(|(_, leaf)| *leaf).collect::<Vec<_>>())?;
            if table.get(node_key(BLOCK, block))?.is_some_and(|then| *then == root) {
                return Ok(Vec::new());
            }
        }
        let then = table.get(&key)?.unwrap_or_default();
        let changed = now.into_iter().filter_map(|(seq, leaf)| {
            let then = then.chunks_exact(HASH).nth(place(seq).1)?.try_into().ok()?;
            (leaf != then).then_some((seq, leaf, then))
        });
        Ok(changed.collect())
    }
}

/// The block that has a message's leaf, and the leaf's place in the block. Sequences begin at one, places at zero.
fn place(seq: Seq) -> (u64, usize) {
    let index = seq.0.saturating_sub(1);
    (index >> BLOCK, usize::try_from(index & ((1 << BLOCK) - 1)).unwrap_or(usize::MAX))
}

/// The sequence of each changed message, and of the message with which it has changed places, if there is one.
pub fn places<T: PartialEq>(changed: &[(Seq, T, T)]) -> impl Iterator<Item = (Seq, Option<Seq>)> {
    changed.iter().map(|(seq, now, then)| {
        let other = changed.iter().find(|(_, other_now, other_then)| other_now == then && other_then == now);
        (*seq, other.map(|(other, ..)| *other))
    })
}

impl Merkle {
    fn put(rows: &mut WriteBatch<'_>, recorded: &Recorded) -> Result<(), StoreError> {
        let (block, within) = place(recorded.seq);
        let key = block_key(block);
        let full = rows.upsert_bytes(&key, |leaves| {
            leaves.extend_from_slice(&recorded.leaf);
            (within == (1 << BLOCK) - 1).then(|| leaves.clone())
        })?;
        if let Some(leaves) = full {
            let mut hash = root_of_block(&key, &leaves)?;
            let (mut level, mut index) = (BLOCK, block);
            loop {
                rows.put_bytes(node_key(level, index), hash.to_vec());
                if index & 1 == 0 {
                    break;
                }
                let left = node_key(level, index - 1);
                hash = node(&hash_of(&left, &rows.bytes(&left)?)?, &hash);
                (level, index) = (level + 1, index >> 1);
            }
        }
        if recorded.seq.0.is_multiple_of(EVERY) {
            let root = merkle::root(&StagedTree(std::cell::RefCell::new(rows)), 0, recorded.seq.0)?;
            rows.put_bytes(root_key(recorded.seq.0), root.to_vec());
        }
        Ok(())
    }
}

impl Projection for Merkle {
    fn name(&self) -> &'static str {
        "merkle"
    }

    fn version(&self) -> u32 {
        3
    }

    fn apply(&self, rows: &mut WriteBatch<'_>, recorded: &Recorded, _: &Event) -> Result<(), StoreError> {
        Self::put(rows, recorded)
    }

    /// A quarantined message has a leaf like any other: it is in the log.
    fn quarantined(&self, rows: &mut WriteBatch<'_>, recorded: &Recorded) -> Result<(), StoreError> {
        Self::put(rows, recorded)
    }
}

/// The root of a subtree within a block.
fn within(key: &[u8], leaves: &[u8], level: u32, index: u64) -> Result<Hash, StoreError> {
    if level == 0 {
        let at = usize::try_from(index).unwrap_or(usize::MAX).saturating_mul(HASH);
        return hash_of(key, leaves.get(at..at.saturating_add(HASH)).unwrap_or_default());
    }
    Ok(node(&within(key, leaves, level - 1, 2 * index)?, &within(key, leaves, level - 1, 2 * index + 1)?))
}

fn root_of_block(key: &[u8], leaves: &[u8]) -> Result<Hash, StoreError> {
    within(key, leaves, BLOCK, 0)
}

/// The root of a complete subtree. `bytes` reads a row.
fn subtree(
    level: u32,
    index: u64,
    mut bytes: impl FnMut(&[u8]) -> Result<Vec<u8>, StoreError>,
) -> Result<Hash, StoreError> {
    if level >= BLOCK {
        let key = node_key(level, index);
        return hash_of(&key, &bytes(&key)?);
    }
    let key = block_key(index >> (BLOCK - level));
    within(&key, &bytes(&key)?, level, index & ((1 << (BLOCK - level)) - 1))
}

/// The tree with the changes of a batch that is not written yet.
struct StagedTree<'r, 'a>(std::cell::RefCell<&'r mut WriteBatch<'a>>);

impl Nodes for StagedTree<'_, '_> {
    type Error = StoreError;
    fn subtree(&self, level: u32, index: u64) -> Result<Hash, StoreError> {
        subtree(level, index, |key| self.0.borrow_mut().bytes(key))
    }
}

/// The tree in a table.
pub struct StoredTree<'a>(pub &'a Table);

impl Nodes for StoredTree<'_> {
    type Error = StoreError;
    fn subtree(&self, level: u32, index: u64) -> Result<Hash, StoreError> {
        subtree(level, index, |key| Ok(self.0.get(key)?.map(|bytes| bytes.to_vec()).unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use gpubnb_proof::merkle::GrowingTree;

    use super::*;
    use crate::testing::{History, account, job};

    fn history(messages: u16) -> History {
        let mut history = History::default();
        for number in 0..messages {
            // A message that is no event has its leaf like any other.
            if number % 10 == 9 {
                history.quarantined();
            } else {
                history.submitted(account(1), job(number));
            }
        }
        history
    }

    #[test]
    fn the_stored_tree_has_the_roots_of_a_tree_in_memory() {
        let history = history(130);
        let table = history.fold(&Merkle);
        let mut tree = GrowingTree::default();
        for recorded in history.messages() {
            tree.push(recorded.leaf);
            let root = merkle::root(&StoredTree(&table), 0, tree.size()).unwrap();
            assert_eq!(root, tree.root(), "of {} messages", tree.size());
        }
    }

    #[test]
    fn every_thousandth_root_is_kept() {
        let history = history(2_001);
        let table = history.fold(&Merkle);
        let mut tree = GrowingTree::default();
        history.messages()[..1_000].iter().for_each(|recorded| tree.push(recorded.leaf));
        assert_eq!(root_at(&table, 1_000).unwrap(), Some(tree.root()));
        assert_eq!(root_at(&table, 999).unwrap(), None);
        let sizes = |after| roots(&table, after).map(|root| root.unwrap().0).collect::<Vec<_>>();
        assert_eq!((sizes(0), sizes(999), sizes(1_000)), (vec![1_000, 2_000], vec![1_000, 2_000], vec![2_000]));
    }

    /// The messages that changed, where each is read again with the leaf that `now` gives it.
    fn changed(history: &History, now: impl Fn(Seq, Hash) -> Hash) -> Vec<u64> {
        let table = history.fold(&Merkle);
        let (mut leaves, mut changed) = (LeavesNow::default(), Vec::new());
        for recorded in history.messages() {
            let leaf = now(recorded.seq, recorded.leaf);
            changed.extend(leaves.push::<StoreError>(recorded.seq, leaf, || Ok(table.clone())).unwrap());
        }
        changed.extend(leaves.changed(&table).unwrap());
        changed.into_iter().map(|(seq, ..)| seq.0).collect()
    }

    #[test]
    fn a_message_that_changed_is_found_in_a_full_block_and_in_the_last() {
        let history = history(70);
        assert!(changed(&history, |_, leaf| leaf).is_empty());
        let tampered = [1, 64, 65, 70];
        assert_eq!(changed(&history, |seq, leaf| if tampered.contains(&seq.0) { [0; 32] } else { leaf }), tampered);
    }

    #[test]
    fn messages_that_changed_places_name_each_other() {
        let changed = [(Seq(3), 'b', 'a'), (Seq(5), 'x', 'c'), (Seq(9), 'a', 'b')];
        let found: Vec<_> = places(&changed).collect();
        assert_eq!(found, [(Seq(3), Some(Seq(9))), (Seq(5), None), (Seq(9), Some(Seq(3)))]);
    }
}
