//! The log's own Merkle tree: which hash each message has, and the root at every thousandth, to be signed.

use gpubnb_events::{
    Event, Recorded, Seq,
    log::Hash,
    merkle::{self, Nodes, node},
};

use super::{Projection, key};
use crate::{
    store::{Rows, StoreError},
    tree::Tree,
};

/// `l<block>` → the leaves of up to 256 sequences; `n<level><index>` → the root of a complete subtree, from such a block
/// up; `r<size>` → the root after every thousandth message.
pub struct Merkle;

/// Leaves in a block, as an exponent.
const BLOCK: u32 = 8;
/// Messages between two roots that are kept.
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

/// The roots that are kept, of trees larger than `size`.
pub fn roots(tree: &Tree, size: u64) -> impl Iterator<Item = Result<(u64, Hash), StoreError>> {
    tree.range(root_key(size.saturating_add(1))..vec![b'r' + 1]).map(|entry| {
        let (key, root) = entry?;
        let size = key.get(1..).and_then(|size| size.try_into().ok()).map(u64::from_be_bytes);
        let size = size.ok_or_else(|| StoreError::corrupt(&key, "not a size"))?;
        Ok((size, hash_of(&key, &root)?))
    })
}

/// The root that is kept for a size, where one is.
pub fn root_at(tree: &Tree, size: u64) -> Result<Option<Hash>, StoreError> {
    let key = root_key(size);
    tree.get(&key)?.map(|root| hash_of(&key, &root)).transpose()
}

fn hash_of(key: &[u8], bytes: &[u8]) -> Result<Hash, StoreError> {
    bytes.try_into().map_err(|_| StoreError::corrupt(key, "not a hash"))
}

/// The leaves that were folded, read in the order of their sequences.
#[derive(Default)]
pub(crate) struct LeavesThen {
    block: Option<u64>,
    leaves: Vec<u8>,
}

impl LeavesThen {
    /// The leaf of a message when it was folded; `None` where it has not been. `tree` is the model that answers now.
    pub(crate) fn at<E: From<StoreError>>(
        &mut self,
        seq: Seq,
        tree: impl FnOnce() -> Result<Tree, E>,
    ) -> Result<Option<Hash>, E> {
        let index = seq.0.saturating_sub(1);
        let (block, within) = (index >> BLOCK, usize::try_from(index & ((1 << BLOCK) - 1)).unwrap_or(usize::MAX));
        // A block that was not full may have grown.
        if self.block != Some(block) || self.leaves.len() <= within.saturating_mul(HASH) {
            let row = tree()?.get(block_key(block))?;
            (self.block, self.leaves) = (Some(block), row.map(|row| row.to_vec()).unwrap_or_default());
        }
        Ok(self.leaves.chunks_exact(HASH).nth(within).and_then(|leaf| leaf.try_into().ok()))
    }
}

/// Of messages that changed (sequence, what is there now, what was there then): each, and with which it has changed
/// places, if it has.
pub fn places<T: PartialEq>(changed: &[(Seq, T, T)]) -> impl Iterator<Item = (Seq, Option<Seq>)> {
    changed.iter().map(|(seq, now, then)| {
        let other = changed.iter().find(|(_, other_now, other_then)| other_now == then && other_then == now);
        (*seq, other.map(|(other, ..)| *other))
    })
}

impl Merkle {
    fn put(rows: &mut Rows<'_>, recorded: &Recorded) -> Result<(), StoreError> {
        // Sequences begin at one, places in the tree at zero.
        let index = recorded.seq.0.saturating_sub(1);
        let (block, within) = (index >> BLOCK, index & ((1 << BLOCK) - 1));
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
            let root = merkle::root(&Staged(std::cell::RefCell::new(rows)), 0, recorded.seq.0)?;
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
        2
    }

    fn apply(&self, rows: &mut Rows<'_>, recorded: &Recorded, _: &Event) -> Result<(), StoreError> {
        Self::put(rows, recorded)
    }

    /// What is no event of ours is in the log all the same.
    fn quarantined(&self, rows: &mut Rows<'_>, recorded: &Recorded) -> Result<(), StoreError> {
        Self::put(rows, recorded)
    }
}

/// A subtree within a block.
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

/// A subtree, by how a row's bytes are had.
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

/// The tree while it is folded.
struct Staged<'r, 'a>(std::cell::RefCell<&'r mut Rows<'a>>);

impl Nodes for Staged<'_, '_> {
    type Error = StoreError;
    fn subtree(&self, level: u32, index: u64) -> Result<Hash, StoreError> {
        subtree(level, index, |key| self.0.borrow_mut().bytes(key))
    }
}

/// The tree as it lies there.
pub struct Kept<'a>(pub &'a Tree);

impl Nodes for Kept<'_> {
    type Error = StoreError;
    fn subtree(&self, level: u32, index: u64) -> Result<Hash, StoreError> {
        subtree(level, index, |key| Ok(self.0.get(key)?.map(|bytes| bytes.to_vec()).unwrap_or_default()))
    }
}
