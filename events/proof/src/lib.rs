//! Proofs that an event is in the log, and the signed tree heads that they lead to. Anybody who trusts the key of the
//! market's operator can check a proof, without a broker and without the rest of the log.
//!
//! Belongs here: the Merkle tree, signed tree heads, proofs, and the JSON form of a message. Must not come here: the
//! storage of the hashes (`projector`), or fetching a message (`gpubnb-log`).

mod line;
pub mod merkle;

use gpubnb_events::{Event, Recorded, hex as hexadecimal, message::Hash};
use nkeys::KeyPair;
use serde::{Deserialize, Serialize};

pub use line::MessageLine;

/// A signed statement of the log's root after a number of messages: a signed tree head, as RFC 6962 calls it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SignedTreeHead {
    /// The number of messages.
    pub size: u64,
    /// Root of the Merkle tree of these messages (RFC 6962), hexadecimal.
    pub root: String,
    /// Public key (an `NKey`) of the signer.
    pub key: String,
    /// The signer's Ed25519 signature of the size and the root, hexadecimal.
    pub signature: String,
}

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

    /// True if the signature is one by the key that the head names.
    pub fn is_signed(&self) -> bool {
        is_signed(&self.key, &Self::signed_text(self.size, &self.root), &self.signature)
    }
}

/// True if `signature` (hexadecimal) is a signature of `text` by `key` (an `NKey`).
pub fn is_signed(key: &str, text: &[u8], signature: &str) -> bool {
    // The library expects 64 bytes without checking.
    let Some(signature) = hex::decode(signature).ok().filter(|bytes| bytes.len() == 64) else { return false };
    KeyPair::from_public_key(key).is_ok_and(|key| key.verify(text, &signature).is_ok())
}

/// A proof that a message is in the log (RFC 9162, 2.1.3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Proof {
    /// The message.
    #[schema(value_type = Object)]
    pub message: MessageLine,
    /// The hashes with which the message's leaf is hashed, from the leaf to the root, hexadecimal.
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
    /// The head is signed by another key than the one that was asked for.
    #[error("the head is signed by {0}, not by the key you named")]
    OtherKey(String),
    /// The head's signature is not one by the key that the head names.
    #[error("the head's signature is not one of {0}")]
    NotSigned(String),
    /// The path does not lead from the message to the head's root.
    #[error("the event is not the one that the head vouches for")]
    OtherEvent,
}

impl Proof {
    /// Checks the proof and returns the message. With a `key`, only heads that this key signed are trusted.
    pub fn check(&self, key: Option<&str>) -> Result<Recorded, NotProven> {
        let recorded = self.message.read().ok_or(NotProven::Unreadable("message"))?;
        let decoded = |text: &String| hex::decode(text).ok()?.try_into().ok();
        let path: Option<Vec<Hash>> = self.path.iter().map(decoded).collect();
        let path = path.ok_or(NotProven::Unreadable("path"))?;
        let SignedTreeHead { size, root, key: signer, .. } = &self.head;
        if key.is_some_and(|key| key != signer) {
            return Err(NotProven::OtherKey(signer.clone()));
        }
        if !self.head.is_signed() {
            return Err(NotProven::NotSigned(signer.clone()));
        }
        let index = recorded.seq.0.checked_sub(1).ok_or(NotProven::Unreadable("sequence"))?;
        let proven = merkle::proven(&recorded.leaf, index, *size, &path).map(hexadecimal);
        if proven.as_ref() == Some(root) { Ok(recorded) } else { Err(NotProven::OtherEvent) }
    }

    /// Checks the proof and returns a sentence about the message.
    pub fn description(&self, key: Option<&str>) -> Result<String, NotProven> {
        let recorded = self.check(key)?;
        let name = recorded.event().map_or("a message that is no event", Event::wire_name);
        let SignedTreeHead { size, key, .. } = &self.head;
        let (at, seq) = (recorded.at, recorded.seq);
        Ok(format!("{name}, recorded {at}, is event {seq} of the log of {size} events, says {key}"))
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
