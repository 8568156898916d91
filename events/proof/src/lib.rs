//! Proofs that an event is in the log. The messages of the log are the leaves of a Merkle tree. The operator signs the
//! root of the tree (a *signed tree head*), and a proof leads from one message to a signed root. Anybody who trusts the
//! operator's key can check a proof, without a broker and without the rest of the log.
//!
//! Belongs here: the Merkle tree, signed tree heads, proofs, and the JSON form of a message. Must not come here: the
//! storage of the hashes (`projector`), or fetching a message (`gpubnb-log`).

mod line;
pub mod merkle;

use gpubnb_events::{Event, Recorded, hex as hexadecimal, message::Hash};
use nkeys::KeyPair;
use serde::{Deserialize, Serialize};

pub use line::MessageLine;

/// A signed statement: after `size` messages, the Merkle tree of the log has this root (RFC 6962, signed tree head).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SignedTreeHead {
    /// The number of messages.
    pub size: u64,
    /// Root of the Merkle tree of these messages (RFC 6962), hexadecimal.
    pub root: String,
    /// Public key of the signer: an `NKey`, which is an Ed25519 key in the form of NATS.
    pub key: String,
    /// The signer's Ed25519 signature of the size and the root, hexadecimal.
    pub signature: String,
}

/// Exit code of a program that found a proof or an archive consistent, but does not know that a trusted key signed it,
/// for example because the user named no key.
pub const EXIT_NO_TRUSTED_KEY: u8 = 3;

impl SignedTreeHead {
    fn signed_text(size: u64, root: &str) -> Vec<u8> {
        format!("gpubnb tree head\n{size}\n{root}\n").into_bytes()
    }

    /// Signs the root after `size` messages.
    pub fn sign(size: u64, root: &Hash, key: &KeyPair) -> Result<Self, nkeys::error::Error> {
        let root = hexadecimal(root);
        let signature = hexadecimal(key.sign(&Self::signed_text(size, &root))?);
        Ok(Self { size, root, key: key.public_key(), signature })
    }

    /// True if `key` made the signature.
    pub fn is_signed(&self) -> bool {
        is_signed(&self.key, &Self::signed_text(self.size, &self.root), &self.signature)
    }
}

/// True if `key` (an `NKey`) made `signature` (hexadecimal) for `text`.
pub fn is_signed(key: &str, text: &[u8], signature: &str) -> bool {
    // The library does not check the length of a signature, and needs 64 bytes.
    let Some(signature) = hex::decode(signature).ok().filter(|bytes| bytes.len() == 64) else { return false };
    KeyPair::from_public_key(key).is_ok_and(|key| key.verify(text, &signature).is_ok())
}

/// A proof that a message is in the log (RFC 9162, 2.1.3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Proof {
    /// The message.
    #[schema(value_type = Object)]
    pub message: MessageLine,
    /// The hashes of the sibling subtrees on the way from the message's leaf to the root, hexadecimal. The first hash
    /// is the sibling of the leaf, the last hash is a child of the root. To compute the root, begin with the leaf and
    /// hash it with one sibling after the other. The sequence of the message and the size of the tree determine
    /// whether a sibling is the left or the right part.
    pub path: Vec<String>,
    /// The signed head of the tree that the message is in.
    pub head: SignedTreeHead,
}

/// The reason why a proof proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum NotProven {
    /// A part of the proof cannot be read.
    #[error("the {0} cannot be read")]
    Unreadable(&'static str),
    /// The head is not signed by a key that the caller trusts.
    #[error("the head is signed by {0}, not by a key that you trust")]
    OtherKey(String),
    /// The key in the head did not make the head's signature.
    #[error("the key {0} did not make the head's signature")]
    NotSigned(String),
    /// The path does not lead from the message to the head's root.
    #[error("the event is not in the log whose root the head signs")]
    OtherEvent,
}

impl Proof {
    /// Checks the proof and returns the message. The head must be signed by one of the keys `trusted`. If there are no
    /// trusted keys, a proof with any signer passes: it is consistent, and nobody vouches for it.
    pub fn check(&self, trusted: &[String]) -> Result<Recorded, NotProven> {
        let recorded = self.message.decode().ok_or(NotProven::Unreadable("message"))?;
        let decoded = |text: &String| hex::decode(text).ok()?.try_into().ok();
        let path: Option<Vec<Hash>> = self.path.iter().map(decoded).collect();
        let path = path.ok_or(NotProven::Unreadable("path"))?;
        let SignedTreeHead { size, root, key: signer, .. } = &self.head;
        if !trusted.is_empty() && !trusted.contains(signer) {
            return Err(NotProven::OtherKey(signer.clone()));
        }
        if !self.head.is_signed() {
            return Err(NotProven::NotSigned(signer.clone()));
        }
        let index = recorded.seq.0.checked_sub(1).ok_or(NotProven::Unreadable("sequence"))?;
        let root_of_path = merkle::root_from_path(&recorded.leaf, index, *size, &path).map(hexadecimal);
        if root_of_path.as_ref() == Some(root) { Ok(recorded) } else { Err(NotProven::OtherEvent) }
    }

    /// Checks the proof and returns a sentence about the message. Without trusted keys, the sentence says that nobody
    /// vouches for the signer: anybody can make a key, and sign a log of their own with it.
    pub fn description(&self, trusted: &[String]) -> Result<String, NotProven> {
        let recorded = self.check(trusted)?;
        let name = recorded.event().map_or("a message that is no event", Event::wire_name);
        let SignedTreeHead { size, key, .. } = &self.head;
        let (at, seq) = (recorded.at, recorded.seq);
        let signed = if trusted.is_empty() {
            "The log is signed by an unknown key, for which nobody vouches:"
        } else {
            "Proven: the log is signed by a key that you trust,"
        };
        Ok(format!("{name}, recorded {at}, is event {seq} of the log of {size} events. {signed} {key}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_that_was_changed_is_not_signed() {
        let head = SignedTreeHead::sign(3, &[7; 32], &KeyPair::new_user()).unwrap();
        assert!(head.is_signed());
        assert!(!SignedTreeHead { size: 4, ..head.clone() }.is_signed());
        assert!(!SignedTreeHead { signature: head.signature[2..].to_owned(), ..head.clone() }.is_signed());
        assert!(!SignedTreeHead { key: KeyPair::new_user().public_key(), ..head }.is_signed());
    }
}
