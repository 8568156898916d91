//! The model of the log's Merkle tree (RFC 6962). The tree has a leaf, a hash of 32 bytes, for each message. A *node*
//! is the root of a complete subtree: at level `l` it covers 2^l leaves. The model stores the leaves in blocks of 64,
//! the nodes of level 6 and above, and the root of the whole tree after every thousandth message. The projector signs
//! these roots.

use gpubnb_events::{Event, Recorded, Seq, message::Hash};
use gpubnb_proof::merkle::{self, Nodes, hash_node};
use gpubnb_store::{StoreError, Table, WriteBatch};

use super::{Projection, key};

/// Rows: `l<block>` → the leaves of up to 64 messages; `n<level><index>` → a node of level 6 or above; `r<size>` → the
/// root of the tree of the first `size` messages.
pub struct Merkle;

/// The level of a block's root in the tree: a block has 2^6 = 64 leaves.
const BLOCK_LEVEL: u32 = 6;
/// The number of messages between two stored roots.
pub const ROOT_INTERVAL: u64 = 1_000;
const HASH_BYTES: usize = 32;

fn block_key(block: u64) -> Vec<u8> {
    key(b'l', &[&block.to_be_bytes()])
}

fn node_key(level: u32, index: u64) -> Vec<u8> {
    key(b'n', &[&level.to_be_bytes(), &index.to_be_bytes()])
}

fn root_key(size: u64) -> Vec<u8> {
    key(b'r', &[&size.to_be_bytes()])
}

/// The stored roots of trees with more than `size` messages, each with its number of messages, smallest tree first.
pub fn roots(table: &Table, size: u64) -> impl Iterator<Item = Result<(u64, Hash), StoreError>> {
    table.range(root_key(size.saturating_add(1))..vec![b'r' + 1]).map(|entry| {
        let (key, root) = entry?;
        let size = key.get(1..).and_then(|size| size.try_into().ok()).map(u64::from_be_bytes);
        let size = size.ok_or_else(|| StoreError::corrupt(&key, "the key has no tree size"))?;
        Ok((size, hash_of(&key, &root)?))
    })
}

/// The stored root of the tree of the first `size` messages; `None` if this root is not stored.
pub fn root_at(table: &Table, size: u64) -> Result<Option<Hash>, StoreError> {
    let key = root_key(size);
    table.get(&key)?.map(|root| hash_of(&key, &root)).transpose()
}

fn hash_of(key: &[u8], bytes: &[u8]) -> Result<Hash, StoreError> {
    bytes.try_into().map_err(|_| StoreError::corrupt(key, "the value is not a hash"))
}

/// A message that changed: its sequence, its current leaf in the log, and its stored leaf.
pub type ChangedLeaf = (Seq, Hash, Hash);

/// Compares the current leaves of the log with the stored leaves, to find messages that changed after they were folded.
/// The leaves are added in order, and one block of them is kept in memory.
#[derive(Default)]
pub struct LeafComparison {
    block: Vec<(Seq, Hash)>,
}

impl LeafComparison {
    /// Adds the next leaf. If the leaf begins a new block, compares the previous block first and returns its changed
    /// messages. `table` opens the table of the stored leaves.
    pub fn push<E: From<StoreError>>(
        &mut self,
        seq: Seq,
        leaf: Hash,
        table: impl FnOnce() -> Result<Table, E>,
    ) -> Result<Vec<ChangedLeaf>, E> {
        let is_next_block = self.block.first().is_some_and(|(first, _)| position(*first).0 != position(seq).0);
        let changed = if is_next_block { self.changed(&table()?)? } else { Vec::new() };
        self.block.push((seq, leaf));
        Ok(changed)
    }

    /// Compares the leaves in memory, removes them from memory, and returns the changed messages. A message without a
    /// stored leaf, which is not folded yet, counts as unchanged.
    pub fn changed(&mut self, table: &Table) -> Result<Vec<ChangedLeaf>, StoreError> {
        let current = std::mem::take(&mut self.block);
        let Some(block) = current.first().map(|(first, _)| position(*first).0) else { return Ok(Vec::new()) };
        let key = block_key(block);
        if current.len() == 1 << BLOCK_LEVEL {
            // A full block is unchanged if its root is unchanged. The root has 32 bytes, the leaves have 2,048.
            let root = root_of_block(&key, &current.iter().flat_map(|(_, leaf)| *leaf).collect::<Vec<_>>())?;
            if table.get(node_key(BLOCK_LEVEL, block))?.is_some_and(|stored| *stored == root) {
                return Ok(Vec::new());
            }
        }
        let stored = table.get(&key)?.unwrap_or_default();
        let changed = current.into_iter().filter_map(|(seq, leaf)| {
            let stored = stored.chunks_exact(HASH_BYTES).nth(position(seq).1)?.try_into().ok()?;
            (leaf != stored).then_some((seq, leaf, stored))
        });
        Ok(changed.collect())
    }
}

/// The block of a message's leaf, and the leaf's index in the block. Sequence 1 is in block 0 at index 0; sequence 65
/// is in block 1 at index 0.
fn position(seq: Seq) -> (u64, usize) {
    let index = seq.0.saturating_sub(1);
    (index >> BLOCK_LEVEL, usize::try_from(index & ((1 << BLOCK_LEVEL) - 1)).unwrap_or(usize::MAX))
}

/// The sequence of each changed message. If two messages have swapped their leaves, each comes with the sequence of the
/// other one. The parameter is a list of [`ChangedLeaf`].
pub fn find_swaps<T: PartialEq>(changed: &[(Seq, T, T)]) -> impl Iterator<Item = (Seq, Option<Seq>)> {
    changed.iter().map(|(seq, current, stored)| {
        let is_swapped = |other: &&(Seq, T, T)| other.1 == *stored && other.2 == *current;
        (*seq, changed.iter().find(is_swapped).map(|(other, ..)| *other))
    })
}

impl Merkle {
    /// Stores a message's leaf, the nodes that the leaf completes, and the root after every thousandth message.
    fn put_leaf(rows: &mut WriteBatch<'_>, recorded: &Recorded) -> Result<(), StoreError> {
        let (block, index_in_block) = position(recorded.seq);
        let key = block_key(block);
        let full_block = rows.upsert_bytes(&key, |leaves| {
            leaves.extend_from_slice(&recorded.leaf);
            (index_in_block == (1 << BLOCK_LEVEL) - 1).then(|| leaves.clone())
        })?;
        if let Some(leaves) = full_block {
            let mut hash = root_of_block(&key, &leaves)?;
            let (mut level, mut index) = (BLOCK_LEVEL, block);
            loop {
                rows.put_bytes(node_key(level, index), hash.to_vec());
                // An odd index is a right child: its parent is complete now. An even index still waits for its
                // sibling.
                if index & 1 == 0 {
                    break;
                }
                let left = node_key(level, index - 1);
                hash = hash_node(&hash_of(&left, &rows.bytes(&left)?)?, &hash);
                (level, index) = (level + 1, index >> 1);
            }
        }
        if recorded.seq.0.is_multiple_of(ROOT_INTERVAL) {
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
        Self::put_leaf(rows, recorded)
    }

    /// A quarantined message has a leaf too, because it is a message of the log.
    fn quarantined(&self, rows: &mut WriteBatch<'_>, recorded: &Recorded) -> Result<(), StoreError> {
        Self::put_leaf(rows, recorded)
    }
}

/// The node of a level below 6, from the leaves of its block. `index` counts the nodes of the level in this block.
fn node_in_block(key: &[u8], leaves: &[u8], level: u32, index: u64) -> Result<Hash, StoreError> {
    if level == 0 {
        let start = usize::try_from(index).unwrap_or(usize::MAX).saturating_mul(HASH_BYTES);
        return hash_of(key, leaves.get(start..start.saturating_add(HASH_BYTES)).unwrap_or_default());
    }
    let left = node_in_block(key, leaves, level - 1, 2 * index)?;
    let right = node_in_block(key, leaves, level - 1, 2 * index + 1)?;
    Ok(hash_node(&left, &right))
}

fn root_of_block(key: &[u8], leaves: &[u8]) -> Result<Hash, StoreError> {
    node_in_block(key, leaves, BLOCK_LEVEL, 0)
}

/// A node of any level. `bytes` reads the row of a key.
fn subtree(
    level: u32,
    index: u64,
    mut bytes: impl FnMut(&[u8]) -> Result<Vec<u8>, StoreError>,
) -> Result<Hash, StoreError> {
    if level >= BLOCK_LEVEL {
        let key = node_key(level, index);
        return hash_of(&key, &bytes(&key)?);
    }
    let key = block_key(index >> (BLOCK_LEVEL - level));
    node_in_block(&key, &bytes(&key)?, level, index & ((1 << (BLOCK_LEVEL - level)) - 1))
}

/// The tree in a write batch: the stored rows and the changes that are not written yet.
struct StagedTree<'r, 'a>(std::cell::RefCell<&'r mut WriteBatch<'a>>);

impl Nodes for StagedTree<'_, '_> {
    type Error = StoreError;
    fn subtree(&self, level: u32, index: u64) -> Result<Hash, StoreError> {
        subtree(level, index, |key| self.0.borrow_mut().bytes(key))
    }
}

/// The tree in a table of this model.
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
            // Every tenth message is quarantined.
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
    fn the_root_after_every_thousandth_message_is_stored() {
        let history = history(2_001);
        let table = history.fold(&Merkle);
        let mut tree = GrowingTree::default();
        history.messages()[..1_000].iter().for_each(|recorded| tree.push(recorded.leaf));
        assert_eq!(root_at(&table, 1_000).unwrap(), Some(tree.root()));
        assert_eq!(root_at(&table, 999).unwrap(), None);
        let sizes = |after| roots(&table, after).map(|root| root.unwrap().0).collect::<Vec<_>>();
        assert_eq!((sizes(0), sizes(999), sizes(1_000)), (vec![1_000, 2_000], vec![1_000, 2_000], vec![2_000]));
    }

    /// The changed messages of a folded history, if `current_leaf` gives each message its current leaf.
    fn changed(history: &History, current_leaf: impl Fn(Seq, Hash) -> Hash) -> Vec<u64> {
        let table = history.fold(&Merkle);
        let (mut leaves, mut changed) = (LeafComparison::default(), Vec::new());
        for recorded in history.messages() {
            let leaf = current_leaf(recorded.seq, recorded.leaf);
            changed.extend(leaves.push::<StoreError>(recorded.seq, leaf, || Ok(table.clone())).unwrap());
        }
        changed.extend(leaves.changed(&table).unwrap());
        changed.into_iter().map(|(seq, ..)| seq.0).collect()
    }

    #[test]
    fn a_changed_message_is_found_in_a_full_block_and_in_the_last_block() {
        let history = history(70);
        assert!(changed(&history, |_, leaf| leaf).is_empty());
        let tampered = [1, 64, 65, 70];
        assert_eq!(changed(&history, |seq, leaf| if tampered.contains(&seq.0) { [0; 32] } else { leaf }), tampered);
    }

    #[test]
    fn swapped_messages_name_each_other() {
        let changed = [(Seq(3), 'b', 'a'), (Seq(5), 'x', 'c'), (Seq(9), 'a', 'b')];
        let found: Vec<_> = find_swaps(&changed).collect();
        assert_eq!(found, [(Seq(3), Some(Seq(9))), (Seq(5), None), (Seq(9), Some(Seq(3)))]);
    }
}
