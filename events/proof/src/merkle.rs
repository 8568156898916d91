//! The Merkle tree of MARKET: hashes, roots and proofs, as RFC 6962 (2.1) and RFC 9162 define them. A leaf is the hash
//! of a message; leaf 0 is the message with sequence 1. These functions store nothing: `gpubnb-model` stores the
//! hashes.

use gpubnb_events::message::Hash;
use sha2::{Digest as _, Sha256};

/// The hash of the node above two subtrees.
pub fn hash_node(left: &Hash, right: &Hash) -> Hash {
    let mut hash = Sha256::new();
    hash.update([1]);
    hash.update(left);
    hash.update(right);
    hash.finalize().into()
}

/// The root of a tree without leaves.
pub fn empty_root() -> Hash {
    Sha256::digest([]).into()
}

/// A source of the hashes of complete subtrees.
pub trait Nodes {
    /// The error if a hash cannot be read.
    type Error;
    /// The root of the `index`-th subtree with `2^level` leaves, counted from the left and from 0. Callers request only
    /// complete subtrees.
    fn subtree(&self, level: u32, index: u64) -> Result<Hash, Self::Error>;
}

/// The exponent of the greatest power of two below `n`, for example 2 for `n` from 5 to 8. `n` is at least 2.
fn split(n: u64) -> u32 {
    (n - 1).ilog2()
}

/// The root of `size` leaves, beginning with leaf `start`. `start` must be a multiple of `size.next_power_of_two()`: 8
/// and 16, for example, for 5 leaves.
pub fn root<N: Nodes>(nodes: &N, start: u64, size: u64) -> Result<Hash, N::Error> {
    if size == 0 {
        return Ok(empty_root());
    }
    if size.is_power_of_two() {
        let level = size.ilog2();
        return nodes.subtree(level, start >> level);
    }
    let left = 1 << split(size);
    Ok(hash_node(&root(nodes, start, left)?, &root(nodes, start + left, size - left)?))
}

/// The proof that a leaf is in the tree of the first `size` leaves: the hashes that are combined with the leaf's hash
/// one after the other, which results in the root. The hash next to the leaf is first.
pub fn path<N: Nodes>(nodes: &N, leaf: u64, size: u64) -> Result<Vec<Hash>, N::Error> {
    fn collect_path<N: Nodes>(
        nodes: &N,
        leaf: u64,
        start: u64,
        size: u64,
        path: &mut Vec<Hash>,
    ) -> Result<(), N::Error> {
        if size <= 1 {
            return Ok(());
        }
        let left = 1 << split(size);
        if leaf < start + left {
            collect_path(nodes, leaf, start, left, path)?;
            path.push(root(nodes, start + left, size - left)?);
        } else {
            collect_path(nodes, leaf, start + left, size - left, path)?;
            path.push(root(nodes, start, left)?);
        }
        Ok(())
    }
    let mut path = Vec::new();
    collect_path(nodes, leaf, 0, size, &mut path)?;
    Ok(path)
}

/// The root that results from a leaf and its proof (RFC 9162, 2.1.3.2); `None` if the proof's length does not fit the
/// leaf's index.
pub fn root_from_path(leaf: &Hash, index: u64, size: u64, path: &[Hash]) -> Option<Hash> {
    if index >= size {
        return None;
    }
    let (mut first, mut last, mut hash) = (index, size - 1, *leaf);
    for sibling in path {
        if last == 0 {
            return None;
        }
        if first & 1 == 1 || first == last {
            hash = hash_node(sibling, &hash);
            while first & 1 == 0 && first != 0 {
                (first, last) = (first >> 1, last >> 1);
            }
        } else {
            hash = hash_node(&hash, sibling);
        }
        (first, last) = (first >> 1, last >> 1);
    }
    (last == 0).then_some(hash)
}

/// A tree for computing the root of many leaves. It stores one hash per level, so it can produce no proofs.
#[derive(Default)]
pub struct GrowingTree {
    size: u64,
    /// Roots of complete subtrees, the largest first.
    complete_roots: Vec<Hash>,
}

impl GrowingTree {
    /// Adds a leaf.
    pub fn push(&mut self, leaf: Hash) {
        let mut hash = leaf;
        // Each trailing one bit of the size is a complete subtree without a right sibling. The new leaf completes the
        // right siblings, so each of these subtrees is combined with its sibling.
        for _ in 0..self.size.trailing_ones() {
            let Some(left) = self.complete_roots.pop() else { break };
            hash = hash_node(&left, &hash);
        }
        self.complete_roots.push(hash);
        self.size += 1;
    }

    /// The number of leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The root of all leaves.
    pub fn root(&self) -> Hash {
        let smallest_first = self.complete_roots.iter().rev().copied();
        smallest_first.reduce(|right, left| hash_node(&left, &right)).unwrap_or_else(empty_root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Leaves(Vec<Hash>);

    impl Nodes for Leaves {
        type Error = std::convert::Infallible;
        fn subtree(&self, level: u32, index: u64) -> Result<Hash, Self::Error> {
            if level == 0 {
                return Ok(self.0[usize::try_from(index).unwrap()]);
            }
            Ok(hash_node(&self.subtree(level - 1, 2 * index)?, &self.subtree(level - 1, 2 * index + 1)?))
        }
    }

    /// The leaves and the roots are the test data of Certificate Transparency's reference implementation.
    #[test]
    fn roots_equal_the_roots_of_the_reference_implementation() {
        let inputs: [&[u8]; 8] = [
            b"",
            b"\x00",
            b"\x10",
            b"\x20\x21",
            b"\x30\x31",
            b"\x40\x41\x42\x43",
            b"\x50\x51\x52\x53\x54\x55\x56\x57",
            b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
        ];
        let leaf = |data: &&[u8]| Sha256::digest([&[0], *data].concat()).into();
        let leaves = Leaves(inputs.iter().map(leaf).collect());
        let root_of = |size| gpubnb_events::hex(root(&leaves, 0, size).unwrap());
        assert_eq!(root_of(0), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(root_of(1), "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d");
        assert_eq!(root_of(3), "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77");
        assert_eq!(root_of(8), "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328");
    }

    #[test]
    fn a_proof_leads_to_the_root_only_from_its_own_leaf() {
        let leaves = Leaves((0..40_u8).map(|n| [n; 32]).collect());
        let mut growing = GrowingTree::default();
        for size in 1..=40 {
            growing.push(leaves.subtree(0, size - 1).unwrap());
            let whole = root(&leaves, 0, size).unwrap();
            assert_eq!(growing.root(), whole);
            for index in 0..size {
                let (leaf, path) = (leaves.subtree(0, index).unwrap(), path(&leaves, index, size).unwrap());
                assert_eq!(root_from_path(&leaf, index, size, &path), Some(whole), "{index} of {size}");
                for other in (0..=size).filter(|other| *other != index) {
                    assert_ne!(root_from_path(&leaf, other, size, &path), Some(whole), "{index} as {other} of {size}");
                }
            }
        }
    }
}
